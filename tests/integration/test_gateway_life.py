"""How a gateway's process begins and ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

from tests.support.eventually import eventually
from tests.support.gateway_rig import ROOT, gateway_rig
from tests.support.scripted import Handler


def test_a_drained_gateway_ends_what_it_has_begun_and_leaves_consul() -> None:
    arrived, go = threading.Event(), threading.Event()

    def waits(handler: Handler) -> None:
        arrived.set()
        assert go.wait(10)
        handler.answer(200, b"late")

    with gateway_rig("identity") as rig, rig.service(waits) as pears:
        (gateway,) = rig.gateways
        answers = []
        asking = threading.Thread(target=lambda: answers.append(rig.ask("GET", pears.path, service=pears)))
        asking.start()
        assert arrived.wait(10)
        gateway.process.popen.send_signal(signal.SIGTERM)  # type: ignore[union-attr]
        eventually(lambda: rig.consul.call("GET", "/v1/catalog/service/gateway-identity") == [], 5)
        go.set()
        asking.join(10)
        assert [(each.status, each.body) for each in answers] == [(200, b"late")]
        assert gateway.process.popen.wait(15) == 0  # type: ignore[union-attr]


def test_nothing_is_imported_before_the_library_is_patched_and_a_bad_port_ends_the_start() -> None:
    """gevent warns of what had a hold of the library already."""
    environment = {**os.environ, "EDGE_CONTROL_PORTS": "http", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", "-m", "gateway"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert ended.stderr == "cannot start: EDGE_CONTROL_PORTS='http': must be integers from 1 to 65535\n"
