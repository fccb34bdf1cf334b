"""Imported before anything else of the kit: with WORKER_CLASS=gevent the standard library is patched first.

Patched later, modules that have already taken hold of a lock or a socket class would block the whole process. So a service
that asks for gevent by `create_service(…, worker="gevent")` begins again.
"""

from __future__ import annotations

import os
import sys

PATCHED = os.environ.get("WORKER_CLASS") == "gevent"

if PATCHED:
    from gevent import monkey

    monkey.patch_all()

# gRPC, which reads this when it is imported, would write lines of its own kind between those of the log whenever a server leaves.
# What goes wrong is in a call's error.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

# structlog loads it for a terminal's colours: 3 MB in each process.
sys.modules.setdefault("rich", None)  # type: ignore[arg-type]
import structlog  # noqa: E402, F401

if sys.modules["rich"] is None:
    del sys.modules["rich"]


def begin_again() -> None:
    """Replace this process by one of the same command, patched."""
    os.environ["WORKER_CLASS"] = "gevent"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - its own command
