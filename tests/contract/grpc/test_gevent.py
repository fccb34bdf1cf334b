"""The client in a gevent worker, as the gateways are: calls wait side by side, and hold no other greenlet up."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.contract.grpc.rig import Things
from tests.support.eventually import time_scale

ROOT = Path(__file__).parents[3]
CALLS = 40
WORK_S = 0.3

SCRIPT = f"""
import os, sys, time
os.environ["WORKER_CLASS"] = "gevent"
from services.kit import early
import gevent
from discovery import ClientSettings, Instance, StaticView
from services.kit.grpc.client import GrpcClient
from services.kit.telemetry.metrics import Metrics
from tests.contract.grpc.rig import Stub

scale = {time_scale()}
view = StaticView([Instance("things-grpc", "things-1", "node-1", "127.0.0.1", int(sys.argv[1]))])
settings = ClientSettings(deadline_s=20 * scale, attempt_timeout_s=10 * scale)
stub = GrpcClient(lambda: view, Metrics("test"), settings=settings).stub("things", Stub)
stub.GetThing(b"")
ticks = []

def tick():
    while True:
        ticks.append(time.monotonic())
        time.sleep(0.01)

ticker = gevent.spawn(tick)
began = time.monotonic()
calls = [gevent.spawn(stub.GetThing, b"x") for _ in range({CALLS})]
gevent.joinall(calls, raise_error=True)
took = time.monotonic() - began
assert {{call.value for call in calls}} == {{b"done"}}
assert took < {WORK_S} * 4 * scale, took
longest = max(after - before for before, after in zip(ticks, ticks[1:]))
assert longest < {WORK_S} * 0.5 * scale, longest
assert list(stub.ListThings(b"")) == [b"1", b"2"]
print("done")
"""


def work(request: bytes, context: Any) -> bytes:
    time.sleep(WORK_S if request else 0)
    return b"done"


class Both(Things):
    def _answers(self, request: bytes, context: Any) -> Any:
        yield from (b"1", b"2")


def test_calls_wait_side_by_side_and_hold_nothing_up() -> None:
    things = Both(work)
    with things.running():
        command = [sys.executable, "-c", SCRIPT, str(things.port)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60 * time_scale(), cwd=ROOT)
        assert done.stdout == "done\n", done.stderr[-3000:]
