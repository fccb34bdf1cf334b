"""Streamed answers: piece by piece, cut short, left, and too slow."""

from __future__ import annotations

import contextlib
import time

import pytest

from discovery import BreakerSettings, ResponseLost, ResponseTimeout
from tests.support.scripted import Handler, Upstream, upstream
from tests.unit.discovery.calling import client


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
    assert calls._upstreams["users"].balancer.outstanding(instance) == 1
    reader.close()
    assert calls._upstreams["users"].balancer.outstanding(instance) == 0
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
