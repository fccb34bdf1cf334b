"""One instance of a gateway: `GATEWAY_DOMAIN=business python -m gateway`."""

import os

# Before the kit is imported: it patches the standard library for gevent first of all. A gateway mostly waits and streams.
os.environ["WORKER_CLASS"] = "gevent"

from gateway.app import create
from services.kit import run

if __name__ == "__main__":
    run(create)
