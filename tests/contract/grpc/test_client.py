"""What `kit().grpc` does with instances that fail: real servers, real channels."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from discovery import (
    BreakerOpen,
    BreakerSettings,
    CallError,
    ClientSettings,
    NoInstance,
    ResponseLost,
    StaticView,
)
from services.kit.grpc.client import GrpcClient
from services.kit.grpc.codes import REQUEST_ID
from services.kit.telemetry.metrics import Metrics
from services.kit.web.context import Caller, set_current
from tests.contract.grpc.rig import Stub, Things, refused
from tests.support.eventually import eventually, time_scale

Behave = Callable[[bytes, Any], Any]
DEADLINE_S = 10 * time_scale()


def well(request: bytes, context: Any) -> bytes:
    return b"well"


def ends(code: grpc.StatusCode) -> Behave:
    """An error as an instance of the kit gives it."""

    def behave(request: bytes, context: Any) -> bytes:
        context.set_trailing_metadata(((REQUEST_ID, "f" * 20),))
        context.abort(code, "no")
        raise AssertionError

    return behave


class Fleet:
    """Instances of things, and a client of theirs."""

    def __init__(self, things: list[Things], servers: list[grpc.Server], settings: ClientSettings) -> None:
        self.things = things
        self.servers = servers
        self.view = StaticView([each.instance() for each in things])
        self.metrics = Metrics("test")
        self.client = GrpcClient(lambda: self.view, self.metrics, lambda _: "a.b.c", settings=settings)
        self.stub: Any = self.client.stub("things", Stub)

    def attempts(self, outcome: str) -> float:
        text = self.metrics.render().decode()
        label = f'service_upstream_attempts_total{{outcome="{outcome}",upstream="things-grpc"}} '
        return sum(float(line[len(label) :]) for line in text.splitlines() if line.startswith(label))

    def until_attempted(self, outcome: str, call: Callable[[], Any]) -> None:
        """Which instance is asked first is left to chance."""
        for _ in range(20):
            call()
            if self.attempts(outcome):
                return
        raise AssertionError("the fault never happened")


@contextlib.contextmanager
def fleet(*behave: Behave, **settings: Any) -> Iterator[Fleet]:
    with contextlib.ExitStack() as stack:
        things = [Things(each) for each in behave]
        servers = [stack.enter_context(each.running()) for each in things]
        yield Fleet(things, servers, ClientSettings(**{"deadline_s": DEADLINE_S} | settings))


def test_call_carries_ids_token_and_what_is_left_of_the_deadline() -> None:
    left: list[float] = []

    def behave(request: bytes, context: Any) -> bytes:
        left.append(context.time_remaining())
        return request

    with fleet(behave) as one:
        trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        set_current(Caller("d" * 20, trace, time.monotonic() + 4))
        try:
            assert one.stub.GetThing(b"x") == b"x"
            assert one.stub.AddThing(b"y", metadata=(("Authorization", "Bearer own"),), timeout=2) == b"y"
        finally:
            set_current(None)
        first, second = one.things[0].seen
        assert (first["x-request-id"], first["traceparent"]) == ("d" * 20, trace)
        assert (first["authorization"], second["authorization"]) == ("Bearer a.b.c", "Bearer own")
        # A call that may run twice leaves half of the time to another attempt. On its way gRPC rounds a deadline up.
        assert 0 < left[0] <= 2.1
        assert 0 < left[1] <= 2.1


def test_refused_instance_costs_no_call_whatever_the_method_and_is_left_out_then() -> None:
    with fleet(well, well, well) as three:
        three.servers[0].stop(None).wait(10)
        for _ in range(12):
            assert three.stub.AddThing(b"") == b"well"
        assert three.attempts("ConnectFailed") == 1, "it was ejected at once"


def test_unavailable_is_asked_elsewhere_if_the_call_may_run_twice() -> None:
    with fleet(ends(grpc.StatusCode.UNAVAILABLE), well) as two:
        two.until_attempted("ResponseLost", lambda: two.stub.GetThing(b""))
        twice: Any = two.client.stub("things", Stub, repeatable=("AddThing",))
        assert [twice.AddThing(b"") for _ in range(4)] == [b"well"] * 4
    with fleet(ends(grpc.StatusCode.UNAVAILABLE)) as one:
        with pytest.raises(ResponseLost) as lost:
            one.stub.AddThing(b"")
        assert lost.value.attempts == 1


@pytest.mark.parametrize("code", [grpc.StatusCode.NOT_FOUND, grpc.StatusCode.PERMISSION_DENIED])
def test_an_answer_that_is_no_success_comes_as_it_is_and_says_nothing_about_the_instance(
    code: grpc.StatusCode,
) -> None:
    with fleet(ends(code), breaker=BreakerSettings(min_calls=2)) as one:
        for _ in range(5):
            error = refused(lambda: one.stub.GetThing(b""))
            assert (error.code(), error.details()) == (code, "no")
        assert len(one.things[0].seen) == 5


def test_failures_open_the_breaker() -> None:
    with fleet(ends(grpc.StatusCode.INTERNAL), breaker=BreakerSettings(min_calls=3)) as one:
        for _ in range(3):
            assert refused(lambda: one.stub.GetThing(b"")).code() is grpc.StatusCode.INTERNAL
        with pytest.raises(BreakerOpen):
            one.stub.GetThing(b"")
        assert len(one.things[0].seen) == 3


@contextlib.contextmanager
def hanging() -> Iterator[Behave]:
    """Answers once the context ends."""
    free = threading.Event()

    def hang(request: bytes, context: Any) -> bytes:
        free.wait(60)
        return b"late"

    try:
        yield hang
    finally:
        free.set()


def test_hung_instance_leaves_time_for_another_and_none_is_waited_for_longer_than_the_deadline() -> None:
    with fleet(well, well, attempt_timeout_s=0.5) as two, hanging() as hang:
        two.things[0].behave = hang
        two.until_attempted("ResponseTimeout", lambda: two.stub.GetThing(b""))
        two.things[1].behave = hang
        began = time.monotonic()
        with pytest.raises(CallError):
            two.stub.GetThing(b"", timeout=1.0)
        assert time.monotonic() - began < 1.0 + 1.0 * time_scale()


def three_then(last: Behave) -> Behave:
    def behave(request: bytes, context: Any) -> Iterator[bytes]:
        yield from (b"1", b"2", b"3")
        last(request, context)

    return behave


def test_stream_that_ends_early_is_seen_and_one_that_has_not_begun_goes_elsewhere() -> None:
    with fleet(three_then(ends(grpc.StatusCode.UNAVAILABLE))) as one:
        stream = one.stub.ListThings(b"")
        assert [next(stream) for _ in range(3)] == [b"1", b"2", b"3"]
        with pytest.raises(ResponseLost):
            next(stream)
        assert list(stream) == []
    with fleet(ends(grpc.StatusCode.UNAVAILABLE), three_then(well)) as two:

        def listed() -> None:
            assert list(two.stub.ListThings(b"")) == [b"1", b"2", b"3"]

        two.until_attempted("ResponseLost", listed)


def test_stream_that_is_left_ends_at_the_instance() -> None:
    gone = threading.Event()

    def endless(request: bytes, context: Any) -> Iterator[bytes]:
        context.add_callback(gone.set)
        while context.is_active():
            yield b"x"
            time.sleep(0.01)

    with fleet(endless) as one:
        with one.stub.ListThings(b"") as stream:
            assert next(stream) == b"x"
        assert gone.wait(5 * time_scale())
        gone.clear()
        assert next(one.stub.ListThings(b"")) == b"x"  # and one that nobody holds
        assert gone.wait(5 * time_scale())


def test_channels_are_one_an_instance_and_go_with_it() -> None:
    with fleet(well, well) as two:
        for _ in range(6):
            two.stub.GetThing(b"")
        assert len(two.client.lines.places()) == 2
        two.view.replace([two.things[1].instance()])
        two.stub.GetThing(b"")
        assert [port for _, _, port in two.client.lines.places()] == [two.things[1].port]
        two.view.replace([])
        with pytest.raises(NoInstance):
            two.stub.GetThing(b"")
        assert two.client.lines.places() == []


def test_instance_that_comes_back_at_its_port_is_called_again_at_once() -> None:
    """gRPC itself would wait for a second, and longer each time, before it connects again."""
    with fleet(well) as one:
        assert one.stub.GetThing(b"") == b"well"
        one.servers[0].stop(None).wait(10)
        with pytest.raises(CallError):
            one.stub.AddThing(b"")
        with one.things[0].running():
            eventually(lambda: one.stub.AddThing(b"") == b"well", 1)


def test_streams_of_requests_are_refused_clearly() -> None:
    class Talking:
        def __init__(self, channel: grpc.Channel) -> None:
            self.Talk = channel.stream_stream("/test.v1.Things/Talk", bytes, bytes)

    with fleet(well) as one, pytest.raises(NotImplementedError, match="Talk"):
        one.client.stub("things", Talking).Talk(iter([b""]))
