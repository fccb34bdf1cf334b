"""The client under gevent: calls run side by side in one thread, and the breaker holds none of them up."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.matrix import one_always

ROOT = Path(__file__).parents[3]

SCRIPT = """
from gevent import monkey
monkey.patch_all()
import time
import gevent
from discovery import ServiceClient, StaticView
from tests.support.scripted import upstream

def slow(handler):
    time.sleep(0.2)
    handler.answer()

with upstream(slow) as server:
    client = ServiceClient(StaticView([server.instance()]))
    began = time.monotonic()
    calls = [gevent.spawn(client.request, "GET", "users", "/") for _ in range(50)]
    gevent.joinall(calls, raise_error=True)
    took = time.monotonic() - began
    assert {call.value.status for call in calls} == {200}
    assert client.breakers()["users"].calls == 50
    assert took < 1.5, took
print("done")
"""


def test_calls_run_side_by_side_in_one_thread() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=30, cwd=ROOT
    )
    assert done.stdout == "done\n", done.stderr


@pytest.mark.parametrize("files", one_always("test_transport_attacks.py", "test_transport*.py"))
def test_transport_keeps_its_promises_under_gevents_patches(files: str) -> None:
    """The same tests again, where every socket waits in gevent's loop."""
    command = [sys.executable, "-m", "gevent.monkey", "--module", "pytest", "-q", "-p", "no:cacheprovider"]
    found = sorted(str(file) for file in Path(__file__).parent.glob(files))
    done = subprocess.run([*command, *found], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-5000:]
