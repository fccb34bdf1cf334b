"""The load generator is an instrument: it must see each kind of failure for what it is."""

from __future__ import annotations

import contextlib
import math
import socket
import socketserver
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.eventually import eventually
from tests.support.load import Answer, Load, Plan, Report

GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Served-By: one\r\n\r\nok"


Behave = Callable[[socket.socket], object]


def load_on(behave: Behave, *paths: str, enough: int = 3, connections: int = 1, **plan: Any) -> Report:
    """What a load records of a server that hands each connection to `behave` in a thread."""

    class Connection(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                behave(self.request)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Connection) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        plan = {"rate_per_s": 20, **plan}
        with Load(Plan(server.server_address[1], paths or ("/",), connections=connections, **plan)) as load:
            eventually(lambda: len(load.report().answers) >= enough, 10)
        server.shutdown()
    return load.report()


def answer_all(connection: socket.socket) -> None:
    while connection.recv(65536):
        connection.sendall(GOOD)


def answer_once(piece: bytes) -> Behave:
    return lambda connection: connection.recv(65536) and connection.sendall(piece)


def test_healthy_server_gives_good_answers_at_the_rate_on_kept_connections() -> None:
    began = time.monotonic()
    report = load_on(answer_all, "/a", "/b", enough=100, connections=4, rate_per_s=200)
    took_s = time.monotonic() - began
    assert not report.failures()
    assert not report.cuts()
    assert len(report.answers) <= 200 * took_s + 5
    assert report.connects == 4
    assert set(report.served()) == {"one"}
    assert {a.path for a in report.answers} == {"/a", "/b"}


@pytest.mark.parametrize(
    ("piece", "kind", "cut"),
    [
        (b"", "closed", False),
        (b"H", "closed", True),
        (GOOD[:-1], "closed", True),
        (b"not http\r\n\r\n", "malformed", False),
    ],
)
def test_connection_ended_early_is_told_apart_by_its_first_byte(piece: bytes, kind: str, cut: bool) -> None:
    report = load_on(answer_once(piece))
    assert {(a.error, a.cut) for a in report.answers} == {(kind, cut)}
    assert bool(report.cuts()) == cut
    assert bool(report.failures()) != cut


def test_torn_answer_still_names_its_instance() -> None:
    report = load_on(answer_once(GOOD[:-1]))
    assert {(a.status, a.served_by) for a in report.cuts()} == {(200, "one")}


def test_silent_server_is_a_timeout_and_no_cut() -> None:
    report = load_on(lambda connection: time.sleep(1), timeout_s=0.1)
    assert {(a.error, a.cut) for a in report.answers} == {("timeout", False)}


def test_refused_connection_is_a_failure() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with Load(Plan(port, ("/",), connections=1, rate_per_s=50)) as load:
        eventually(lambda: load.report().answers, 5)
    assert {a.error for a in load.report().failures()} == {"connect"}


def test_chunked_answer_is_read_whole_and_its_connection_kept() -> None:
    def behave(connection: socket.socket) -> None:
        while connection.recv(65536):
            connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
            time.sleep(0.01)
            connection.sendall(b"1\r\nd\r\n0\r\n\r\n")

    report = load_on(behave, enough=4, rate_per_s=None)
    assert len(report.good()) == len(report.answers)
    assert report.connects == 1


def test_waiting_behind_a_slow_answer_counts_as_latency() -> None:
    """Open loop: what was due while the server slept shows its wait."""
    slept = threading.Event()

    def behave(connection: socket.socket) -> None:
        while connection.recv(65536):
            if not slept.is_set():
                slept.set()
                time.sleep(0.5)
            connection.sendall(GOOD)

    report = load_on(behave, enough=20, rate_per_s=50)
    assert len([a for a in report.answers if a.latency_s > 0.2]) > 5


def test_answer_that_is_not_right_is_a_failure() -> None:
    report = load_on(answer_all, "/a", "/b", right=lambda path, body: path == "/a" and body == b"ok")
    assert {(a.path, a.error) for a in report.answers} == {("/a", None), ("/b", "wrong")}
    assert {a.path for a in report.failures()} == {"/b"}


def answer(ended_s: float, status: int = 200, error: str | None = None, cut: bool = False) -> Answer:
    return Answer(ended_s - 0.01, ended_s, status, error, cut)


def test_recovery_is_the_time_of_the_last_bad_answer_after_the_fault() -> None:
    healthy = Report((answer(1), answer(2), answer(3)))
    assert healthy.recovered_within(1.5) == 0.0
    hurt = Report((answer(1, 503), answer(2, 503), answer(2.5, 200, "closed", cut=True), answer(3)))
    assert hurt.recovered_within(1.5) == pytest.approx(1.0)
    assert len(hurt.failures()) == 2
    assert len(hurt.cuts()) == 1


def test_without_a_good_answer_at_the_end_there_is_no_recovery() -> None:
    assert Report((answer(1), answer(2, 503))).recovered_within(1.5) == math.inf
    assert Report(()).recovered_within(0) == math.inf
