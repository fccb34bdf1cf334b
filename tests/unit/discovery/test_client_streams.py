"""Streamed answers: piece by piece, cut short, left, and too slow."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Iterator

import pytest

from discovery import BreakerSettings, OutlierSettings, ResponseLost, ResponseTimeout
from discovery.calls.client import Relay
from discovery.http.body import BodyFailed
from tests.support.eventually import time_scale
from tests.support.scripted import Handler, Upstream, upstream
from tests.unit.discovery.calling import busy, client


def test_stream_arrives_piece_by_piece(good: Upstream) -> None:
    def talk(handler: Handler) -> None:
        handler.begin_chunks()
        for number in range(3):
            handler.chunk(b"data: %d\n\n" % number)
            time.sleep(0.15)
        handler.chunk(b"")

    good.behave = talk
    began = time.monotonic()
    with client(good).request("GET", "users", "/", stream=True) as response:
        pieces = [(piece, time.monotonic() - began) for piece in response.iter_bytes()]
    assert [piece for piece, _ in pieces] == [b"data: 0\n\n", b"data: 1\n\n", b"data: 2\n\n"]
    assert pieces[0][1] < 0.14
    assert pieces[2][1] >= 0.29


def test_stream_cut_short_raises_and_counts() -> None:
    def cut(handler: Handler) -> None:
        handler.begin_chunks()
        handler.chunk(b"one")
        time.sleep(0.05)
        handler.hang_up()

    with upstream(cut) as bad:
        calls = client(bad, breaker=BreakerSettings(min_calls=1, open_s=30))
        response = calls.request("GET", "users", "/", stream=True)
        with pytest.raises(ResponseLost):
            list(response.iter_bytes())
        assert calls.breakers()["users"].state == "open"


def test_left_stream_does_not_count_and_frees_its_place(good: Upstream) -> None:
    def talk(handler: Handler) -> None:
        handler.begin_chunks()
        with contextlib.suppress(OSError):
            for _ in range(100):
                handler.chunk(b"x")
                time.sleep(0.01)

    good.behave = talk
    calls = client(good, breaker=BreakerSettings(min_calls=1))
    reader = calls.request("GET", "users", "/", stream=True).iter_bytes()
    next(reader)
    instance = good.instance()
    assert busy(calls, instance)
    reader.close()
    assert not busy(calls, instance)
    assert calls.breakers()["users"].failures == 0


def test_stream_that_pauses_too_long_times_out(good: Upstream) -> None:
    def pause(handler: Handler) -> None:
        handler.begin_chunks()
        handler.chunk(b"one")
        time.sleep(1)

    good.behave = pause
    response = client(good, stream_idle_s=0.2).request("GET", "users", "/", stream=True)
    with pytest.raises(ResponseTimeout):
        list(response.iter_bytes())


def test_open_streams_stand_for_good_calls_and_few_quick_failures_open_nothing(good: Upstream) -> None:
    """Counted at their end, sixty of them would not be there while twenty failures were all that was seen."""

    def behave(handler: Handler) -> None:
        if handler.path == "/bad":
            return handler.answer(503)
        handler.begin_chunks()
        handler.chunk(b"data: 1\n\n")
        return hold.wait(20) and None

    hold = threading.Event()
    good.behave = behave
    calls = client(good, outlier=OutlierSettings(failures=1000))
    try:
        streams = [calls.request("GET", "users", "/", stream=True) for _ in range(60)]
        for _ in range(20):
            calls.request("GET", "users", "/bad")
        assert (calls.breakers()["users"].calls, calls.breakers()["users"].failures) == (80, 20)
        assert calls.breakers()["users"].state == "closed"
    finally:
        hold.set()
    for each in streams:
        each.close()


def test_stream_closes_a_half_open_breaker_when_its_head_has_come(good: Upstream) -> None:
    calls = client(good, breaker=BreakerSettings(min_calls=1, open_s=0.1, successes=1))
    good.behave = lambda handler: handler.answer(503)
    calls.request("GET", "users", "/")
    assert calls.breakers()["users"].state == "open"
    hold = threading.Event()

    def talk(handler: Handler) -> None:
        handler.begin_chunks()
        hold.wait(20)

    good.behave = talk
    time.sleep(0.15)
    try:
        response = calls.request("GET", "users", "/", stream=True)
        assert calls.breakers()["users"].state == "closed"
        response.close()
    finally:
        hold.set()


def test_short_answer_that_breaks_off_is_asked_for_again_before_anything_is_passed_on(good: Upstream) -> None:
    def cut(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "10")
        handler.end_headers()
        handler.wfile.write(b"half")
        handler.hang_up()

    relay = Relay(5.0, 5.0, whole_bytes=100)
    with upstream(cut) as bad:
        first = bad.instance(id="users-0")
        calls = client(first, good)
        response = calls.request("GET", "users", "/", balance="first", stream=True, relay=relay)
        assert (response.attempts, response.complete, response.data) == (2, True, b"{}")
        with pytest.raises(ResponseLost):
            client(first, good).request("POST", "users", "/", balance="first", stream=True, relay=relay)
    assert not any(busy(calls, each) for each in (first, good.instance()))


def test_short_answer_that_pauses_is_passed_on_as_far_as_it_has_come(
    good: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pause(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "8")
        handler.end_headers()
        handler.wfile.write(b"half")
        go_on.wait(20)
        handler.wfile.write(b"half")

    go_on = threading.Event()
    good.behave = pause
    monkeypatch.setattr("discovery.calls.client.GATHER_S", 0.2)
    relay = Relay(5.0, 5.0, whole_bytes=100)
    with client(good).request("GET", "users", "/", stream=True, relay=relay) as response:
        assert not response.complete
        pieces = response.iter_bytes()
        assert next(pieces) == b"half"
        go_on.set()
        assert b"".join(pieces) == b"half"


def test_head_is_waited_for_as_long_as_its_route_says_and_the_host_is_the_clients(good: Upstream) -> None:
    def slow(handler: Handler) -> None:
        time.sleep(0.6)
        handler.answer()

    good.behave = slow
    with client(good).request(
        "GET", "users", "/", deadline_s=2.0, stream=True, relay=Relay(1.9, 5.0, host="shop.example:81")
    ) as response:
        assert (response.status, response.attempts) == (200, 1)
    assert good.requests[0].headers["host"] == "shop.example:81"
    began = time.monotonic()
    with pytest.raises(ResponseTimeout):
        client(good).request("POST", "users", "/", deadline_s=5.0, stream=True, relay=Relay(0.5, 5.0))
    assert time.monotonic() - began < 0.6 * time_scale()


# -- bodies that are still coming when their answer has begun

BOTH_WAYS = Relay(5.0, 5.0, both_ways=True)


def say_back(handler: Handler) -> None:
    handler.begin_chunks()
    while piece := handler.piece():
        handler.chunk(piece)
    handler.wfile.write(b"0\r\n\r\n")


def test_both_sides_of_a_stream_talk_at_once(good: Upstream) -> None:
    good.behave = say_back
    pieces: queue.Queue[bytes] = queue.Queue()
    body = iter(lambda: pieces.get(timeout=10), b"")
    response = client(good).request(
        "POST", "users", "/", body=body, headers={"X-Live": "1"}, stream=True, relay=BOTH_WAYS
    )
    answer = response.iter_bytes()
    for piece in (b"one", b"x" * 300_000, b"three"):
        pieces.put(piece)
        got = b""
        while len(got) < len(piece):
            got += next(answer)
        assert got == piece
    pieces.put(b"")
    assert list(answer) == []


def test_body_that_fails_while_it_is_answered_is_the_callers_failure(good: Upstream) -> None:
    good.behave = say_back
    begun = threading.Event()

    def body() -> Iterator[bytes]:
        yield b"one"
        assert begun.wait(10)
        raise OSError("the caller's own source")

    calls = client(good, breaker=BreakerSettings(min_calls=1))
    response = calls.request(
        "POST", "users", "/", body=body(), headers={"X-Live": "1"}, stream=True, relay=BOTH_WAYS
    )
    answer = response.iter_bytes()
    assert next(answer) == b"one"
    begun.set()
    with pytest.raises(BodyFailed):
        next(answer)
    assert calls.breaker_state("users") == "closed"


def test_answer_may_end_before_the_body_does(good: Upstream) -> None:
    ended = threading.Event()
    good.behave = lambda handler: handler.answer(413, b"too long")

    def body() -> Iterator[bytes]:
        yield b"one"
        ended.wait(10)

    calls = client(good)
    for _ in range(2):
        response = calls.request(
            "POST", "users", "/", body=body(), headers={"X-Live": "1"}, stream=True, relay=BOTH_WAYS
        )
        assert (response.status, response.data) == (413, b"too long")
    ended.set()
    assert good.connections == 2
