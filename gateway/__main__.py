"""One instance of a gateway: `GATEWAY_DOMAIN=business python -m gateway`."""

import os

# A gateway mostly waits and streams. The kit patches the standard library for gevent, before any module has taken hold of it.
os.environ["WORKER_CLASS"] = "gevent"

from services.kit import run  # isort: skip
from gateway.app import create  # isort: skip

if __name__ == "__main__":
    run(create)
