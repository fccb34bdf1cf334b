"""Imported before anything else of the kit: with WORKER_CLASS=gevent the standard library is patched first.

Patched later, modules that have already taken hold of a lock or a socket class would block the whole process.
"""

from __future__ import annotations

import os

if os.environ.get("WORKER_CLASS") == "gevent":
    from gevent import monkey

    monkey.patch_all()
