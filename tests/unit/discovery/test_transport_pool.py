"""Which connections are kept, for how long, and what becomes of a request on one that has died."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from discovery import (
    BreakerSettings,
    CallError,
    ConnectFailed,
    ResponseLost,
    RetrySettings,
    ServiceClient,
    StaticView,
)
from discovery.clock import SystemClock
from discovery.http.connection import connect
from tests.support.eventually import eventually
from tests.support.raw import ANSWER, Peer, RawServer, answering, client_of, raw_server, recording
from tests.unit.discovery.calling import busy


@pytest.fixture
def server() -> Iterator[RawServer]:
    with raw_server(answering(ANSWER)) as raw:
        raw.behave = recording(raw, lambda peer: peer.say(ANSWER))
        yield raw


def test_connection_closed_while_idle_is_noticed_before_a_post_goes_out(server: RawServer) -> None:
    def behave(peer: Peer) -> None:
        server.requests.append(peer.request())
        peer.say(ANSWER)

    server.behave = behave
    calls = client_of(server.instance())
    for number in range(1, 4):
        assert calls.request("POST", "users", "/").attempts == 1
        eventually(lambda peer=server.peers[-1]: peer.sock.fileno() < 0, within_s=5)
        assert len(server.requests) == len(server.peers) == number


def test_words_out_of_turn_are_nobodys_answer(server: RawServer) -> None:
    said = threading.Event()

    def behave(peer: Peer) -> None:
        while peer.request():
            peer.say(ANSWER)
            time.sleep(0.02)
            peer.say(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
            said.set()

    server.behave = behave
    calls = client_of(server.instance())
    for _ in range(2):
        said.clear()
        assert calls.request("GET", "users", "/").status == 200
        assert said.wait(5)
    assert len(server.peers) == 2


def dies_on_its_second_request(server: RawServer, after_s: float = 0.0) -> Callable[[Peer], None]:
    def behave(peer: Peer) -> None:
        server.requests.append(peer.request())
        peer.say(ANSWER)
        if second := peer.request():
            server.requests.append(second)
            time.sleep(after_s)

    return behave


def test_kept_connection_that_ends_unheard_is_replaced_for_what_may_run_twice(server: RawServer) -> None:
    server.behave = dies_on_its_second_request(server)
    calls = client_of(server.instance())
    calls.request("GET", "users", "/1")
    response = calls.request("GET", "users", "/2")
    assert (response.status, response.attempts) == (200, 1)
    assert [request.split(b" ")[1] for request in server.requests] == [b"/1", b"/2", b"/2"]
    assert len(server.peers) == 2


def test_kept_connection_that_ends_unheard_loses_what_may_not_run_twice(server: RawServer) -> None:
    server.behave = dies_on_its_second_request(server)
    calls = client_of(server.instance(), retry=RetrySettings(attempts=3))
    calls.request("POST", "users", "/1")
    with pytest.raises(ResponseLost):
        calls.request("POST", "users", "/2")
    assert [request.split(b" ")[1] for request in server.requests] == [b"/1", b"/2"]
    server.requests.clear()
    calls.request("POST", "users", "/3")
    assert calls.request("POST", "users", "/4", headers={"Idempotency-Key": "k"}).status == 200


def test_kept_connection_that_ends_late_had_its_request(server: RawServer) -> None:
    server.behave = dies_on_its_second_request(server, after_s=0.7)
    calls = client_of(server.instance())
    calls.request("GET", "users", "/1")
    with pytest.raises(ResponseLost):
        calls.request("GET", "users", "/2")


@pytest.mark.parametrize("stream", [False, True])
def test_fresh_connection_that_ends_unheard_is_not_replaced(server: RawServer, stream: bool) -> None:
    def behave(peer: Peer) -> None:
        server.requests.append(peer.request())

    server.behave = behave
    with pytest.raises(ResponseLost):
        client_of(server.instance()).request("GET", "users", "/", stream=stream)
    assert len(server.requests) == 1


def test_connection_reset_before_anything_was_written_is_a_failed_one(
    server: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that even a POST goes to another instance."""

    def connect_slowly(*where: Any) -> socket.socket:
        sock = connect(*where)
        time.sleep(0.05)
        return sock

    def reset(peer: Peer) -> None:
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    monkeypatch.setattr("discovery.http.transport.connect", connect_slowly)
    server.behave = reset
    with pytest.raises(ConnectFailed):
        client_of(server.instance()).request("POST", "users", "/", body=b"x")
    with raw_server(answering(ANSWER)) as other:
        calls = client_of(server.instance(id="a"), other.instance(id="b"), retry=RetrySettings(attempts=2))
        assert calls.request("POST", "users", "/", body=b"x", balance="first").instance.id == "b"


def test_idle_connections_are_bounded(server: RawServer) -> None:
    together = threading.Barrier(6)

    def answer(peer: Peer) -> None:
        together.wait(10)
        peer.say(ANSWER)

    server.behave = recording(server, answer)
    calls = client_of(server.instance(), connections=2)
    threads = [threading.Thread(target=calls.request, args=("GET", "users", "/")) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(server.peers) == 6
    eventually(lambda: sum(peer.sock.fileno() >= 0 for peer in server.peers) == 2, within_s=5)


class ShiftedClock(SystemClock):
    """The real clock, `shift_s` ahead."""

    shift_s = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.shift_s


def test_what_may_not_run_twice_goes_out_on_a_connection_of_a_moment_ago(server: RawServer) -> None:
    clock = ShiftedClock()
    calls = client_of(server.instance(), clock=clock)
    calls.request("POST", "users", "/")
    calls.request("POST", "users", "/")
    assert len(server.peers) == 1
    clock.shift_s = 2
    calls.request("GET", "users", "/")
    clock.shift_s = 4
    calls.request("POST", "users", "/")
    assert len(server.peers) == 2
    calls.request("GET", "users", "/")
    calls.request("PUT", "users", "/")
    assert len(server.peers) == 2


def test_connections_idle_for_a_minute_are_closed(server: RawServer) -> None:
    clock = ShiftedClock()
    with raw_server(answering(ANSWER)) as other:
        calls = client_of(server.instance(id="a"), other.instance(id="b"), clock=clock)
        calls.request("GET", "users", "/", balance="first")
        clock.shift_s = 55
        calls.request("GET", "users", "/", balance="first")
        assert len(server.peers) == 1
        clock.shift_s = 120
        # Whichever is called next, what has been idle goes.
        places = {("node-1", "a", server.address, server.port)}
        assert calls.request("GET", "users", "/", places=places).instance.id == "b"
        eventually(lambda: server.peers[0].sock.fileno() < 0, within_s=5)


def test_connections_to_an_instance_that_is_gone_are_closed(server: RawServer) -> None:
    release = threading.Event()

    def answer(peer: Peer) -> None:
        if b"/busy" in server.requests[-1]:
            release.wait(10)
        if b"/hold" in server.requests[-1]:
            peer.say(ANSWER[:-2])
            time.sleep(0.1)
            peer.say(b"ok")
        else:
            peer.say(ANSWER)

    server.behave = recording(server, answer)
    with raw_server(answering(ANSWER)) as other:
        view = StaticView([server.instance(id="a")])
        calls = ServiceClient(view)
        # Responses are held on to, so that nothing closes by being forgotten.
        answers = [calls.request("GET", "users", "/")]
        held = calls.request("GET", "users", "/hold", stream=True)
        busy = threading.Thread(target=lambda: answers.append(calls.request("GET", "users", "/busy")))
        busy.start()
        eventually(lambda: len(server.requests) == 3, within_s=5)
        assert len(server.peers) == 2
        assert held.data == b"ok"
        view.replace([other.instance(id="b")])
        assert calls.request("GET", "users", "/").instance.id == "b"
        release.set()
        busy.join(10)
        assert [answer.data for answer in answers] == [b"ok", b"ok"], "a call under way ends well"
        eventually(lambda: all(peer.sock.fileno() < 0 for peer in server.peers), within_s=5)


def answer_in_some_way(peer: Peer, method: bytes, path: bytes) -> None:
    """With the path forty times over; how it comes goes by the number that the path ends in."""
    kind = int(path.rsplit(b"/", 1)[1]) % 7
    body = b"" if method == b"HEAD" else path * 40
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nX-Path: %b\r\n\r\n" % (len(path) * 40, path)
    if kind == 1:  # in two halves
        peer.say(head + body[: len(body) // 2])
        time.sleep(0.01)
        peer.say(body[len(body) // 2 :])
    elif kind == 2:  # when the caller has left
        time.sleep(0.2)
        peer.say(head + body)
    elif kind == 3:  # with more behind it
        peer.say(head + body + b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad")
    elif kind == 4:
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(path), path) for _ in range(40))
        peer.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-Path: %b\r\n\r\n" % path)
        peer.say(b"" if method == b"HEAD" else chunks + b"0\r\n\r\n")
    else:
        peer.say(head + body)


def call_and_compare(calls: ServiceClient, worker: int, wrong: list[object]) -> None:
    for number in range(150):
        path = f"/{worker}/{number}"
        method = "HEAD" if number % 5 == 0 else "GET"
        stream = number % 2 == 0
        late = number % 7 == 2
        try:
            response = calls.request(method, "users", path, stream=stream, deadline_s=0.1 if late else 5)
            if response.headers["x-path"] != path:
                wrong.append((path, response.headers["x-path"]))
            if stream and number % 3 == 0:
                response.close()
            elif response.data != (b"" if method == "HEAD" else path.encode() * 40):
                wrong.append((path, response.data))
        except CallError as error:
            if not late:
                wrong.append((path, error))


def test_no_answer_reaches_anothers_request(server: RawServer) -> None:
    """Whatever became of the calls before: read, left, timed out, refused, cut off."""

    def behave(peer: Peer) -> None:
        while request := peer.request():
            answer_in_some_way(peer, *request.split(b" ", 2)[:2])

    server.behave = behave
    calls = client_of(server.instance(), connections=4, breaker=BreakerSettings(min_calls=10**6))
    wrong: list[object] = []
    threads = [threading.Thread(target=call_and_compare, args=(calls, worker, wrong)) for worker in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    assert len(server.peers) > 6, "connections were given up on the way"


def test_answer_that_is_forgotten_closes_its_connection_and_frees_its_place(server: RawServer) -> None:
    def behave(peer: Peer) -> None:
        peer.request()
        peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        peer.closed()

    server.behave = behave
    calls = client_of(server.instance())
    ended = []
    response = calls.request("GET", "users", "/", stream=True)
    response.on_end(ended.append)
    del response
    assert ended == [None]
    assert not busy(calls, server.instance())
    eventually(lambda: server.peers[0].sock.fileno() < 0, within_s=2)


def test_closing_an_answer_wakes_who_waits_for_it(server: RawServer) -> None:
    def behave(peer: Peer) -> None:
        peer.request()
        peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        peer.closed(10)

    server.behave = behave
    response = client_of(server.instance()).request("GET", "users", "/", stream=True)
    raised: list[BaseException] = []
    waiting = threading.Event()

    def read() -> None:
        try:
            for _ in response.iter_bytes():
                waiting.set()
        except CallError as error:
            raised.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    assert waiting.wait(5)
    time.sleep(0.05)
    response.close()
    reader.join(2)
    assert not reader.is_alive()
    assert isinstance(raised[0], ResponseLost)
