"""A call that is killed, in whatever phase: its connection closes, no instance is ejected, nothing is left counted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]

# The greenlet of a call is killed once it is in its phase; what is left then is printed as JSON, a line for each phase.
SCRIPT = """
from gevent import monkey
monkey.patch_all()
import gc, json, socket, time
import gevent
from discovery import BreakerSettings, ClientSettings, Instance, OutlierSettings, RetrySettings, ServiceClient, StaticView
from tests.support.raw import ANSWER, raw_server
from tests.unit.discovery.calling import busy

OK = b"HTTP/1.1 200 OK\\r\\n"

def hang(begin=b""):
    def behave(peer):
        peer.head()
        peer.say(begin)
        gevent.sleep(20)
    return behave

def refuse(peer):
    peer.request()
    peer.say(b"HTTP/1.1 502 No\\r\\nContent-Length: 0\\r\\nConnection: close\\r\\n\\r\\n")

def slow_body():
    yield b"x"
    gevent.sleep(20)

def long_body():
    while True:
        yield b"x" * 65536

def read(response):
    for _ in response.iter_bytes():
        pass

def use(response):
    for _ in response.iter_bytes():
        gevent.sleep(20)

CHUNKS = OK + b"Transfer-Encoding: chunked\\r\\n\\r\\n1\\r\\na\\r\\n"
PHASES = {
    "head": (hang(), {}, None),
    "half a head": (hang(OK), {}, None),
    "body": (hang(OK + b"Content-Length: 9\\r\\n\\r\\nok"), {}, None),
    "stream": (hang(CHUNKS), {"stream": True}, read),
    "use": (hang(CHUNKS), {"stream": True}, use),
    "sending": (lambda peer: gevent.sleep(20), {"body": b"x" * 30_000_000}, None),
    "sending pieces": (lambda peer: gevent.sleep(20), {"body": long_body}, None),
    "callers body": (hang(), {"body": slow_body}, None),
    "pause": (refuse, {}, None),
}

def report(name, calls, instance, sock_closed):
    upstream = calls.guard.upstream("users")
    snapshot = calls.breakers()["users"]
    print(json.dumps({
        "phase": name,
        "closed": sock_closed,
        "busy": busy(calls, instance),
        "failures": snapshot.failures,
        "state": snapshot.state,
        "blamed": len(upstream.outliers.ejected()),
        "next": calls.request("GET", "users", "/").status,
    }), flush=True)

SETTINGS = ClientSettings(
    retry=RetrySettings(attempts=2, backoff_base_s=1e6, backoff_max_s=1e6, floor=9),
    breaker=BreakerSettings(min_calls=1, rate=0.01, open_s=60),
    outlier=OutlierSettings(failures=1),
    connect_timeout_s=5,
)

def phase(name, behave, options, then, how):
    with raw_server(behave) as server:
        instance = server.instance()
        calls = ServiceClient(StaticView([instance]), settings=SETTINGS)
        options = {key: value() if callable(value) else value for key, value in options.items()}
        def call():
            response = calls.request("GET", "users", "/", **options)
            if then:
                then(response)
        if how == "timeout":
            def timed(call=call):
                with gevent.Timeout(0.5, False):
                    call()
            greenlet = gevent.spawn(timed)
            greenlet.join(5)
        else:
            greenlet = gevent.spawn(call)
            gevent.sleep(0.5)
        assert how == "timeout" or not greenlet.dead, (name, greenlet.exception)
        began = time.monotonic()
        greenlet.kill(timeout=2)
        assert time.monotonic() - began < 1
        assert greenlet.dead
        peer = server.peers[0]
        closed = peer.sock.fileno() < 0 or peer.closed(2)
        def good(peer):
            while peer.request():
                peer.say(ANSWER)
        server.behave = good
        report(name + " " + how, calls, instance, closed)

gevent.joinall(
    [gevent.spawn(phase, name, *what, how) for name, what in PHASES.items() for how in ("kill", "timeout")],
    raise_error=True,
)

with socket.socket() as full:
    full.bind(("127.0.0.1", 0))
    full.listen(0)
    filler = [socket.socket() for _ in range(4)]
    for each in filler:
        each.setblocking(False)
        each.connect_ex(full.getsockname())
    instance = Instance("users", "users-0", "node-1", *full.getsockname())
    view = StaticView([instance])
    calls = ServiceClient(view, settings=SETTINGS)
    greenlet = gevent.spawn(calls.request, "GET", "users", "/")
    gevent.sleep(0.5)
    assert not greenlet.dead
    connecting = [
        each for each in gc.get_objects()
        if isinstance(each, socket.socket) and each not in filler and each is not full and each.fileno() >= 0
    ]
    assert len(connecting) == 1
    greenlet.kill(timeout=2)
    with raw_server(lambda peer: (peer.request(), peer.say(ANSWER))) as server:
        view.replace([server.instance(id="users-1")])
        report("connecting kill", calls, instance, connecting[0].fileno() < 0)
print(json.dumps({"phase": "end"}))
"""


@pytest.fixture(scope="module")
def phases() -> dict[str, dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    # The others are the log's.
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    told = {line["phase"]: line for line in lines}
    assert "end" in told, done.stderr
    return told


PHASES = [
    "head",
    "half a head",
    "body",
    "stream",
    "use",
    "sending",
    "sending pieces",
    "callers body",
    "pause",
]


@pytest.mark.parametrize(
    "phase", [*(f"{phase} {how}" for phase in PHASES for how in ("kill", "timeout")), "connecting kill"]
)
def test_killed_call_leaves_nothing_behind(phases: dict[str, dict[str, Any]], phase: str) -> None:
    told = phases[phase]
    assert told["closed"], "its connection is closed"
    assert not told["busy"]
    # A 502 that came before the pause did happen.
    assert (told["failures"], told["blamed"]) == (0, 1 if phase.startswith("pause") else 0)
    assert told["state"] == "closed"
    assert told["next"] == 200
