"""A Consul that lies, stumbles or hangs: each leaves the last good state, and is recovered from."""

from __future__ import annotations

import itertools
import json
import threading
import time
from dataclasses import replace

import pytest

from discovery import ConsulApi, Registration, View
from discovery.clock import SystemClock
from discovery.errors import ConsulError
from tests.contract.consul.conftest import WAIT_S
from tests.support.eventually import eventually, time_scale
from tests.support.faulty import Fault, FaultyProxy, Passing
from tests.support.matrix import one_always

# Registering what is registered already changes nothing: each test brings a weight of its own.
WEIGHTS = itertools.count(20)


def error_500(answer: Passing) -> Passing:
    return replace(answer, status=500, body=b"No cluster leader", index=None)


def forbidden(answer: Passing) -> Passing:
    return replace(answer, status=403, body=b"Permission denied", index=None)


def no_json(answer: Passing) -> Passing:
    return replace(answer, body=b"<html>")


def other_json(answer: Passing) -> Passing:
    return replace(answer, body=b'"hello"')


def no_index(answer: Passing) -> Passing:
    return replace(answer, index=None)


def empty(answer: Passing) -> Passing:
    """What an election can give: 200, and nothing in it, from every path."""
    if answer.path.startswith("/v1/status/leader"):
        return replace(answer, body=b'""')
    return replace(answer, body=b"{}" if answer.body.startswith(b"{") else b"[]")


def empty_health(answer: Passing) -> Passing:
    return replace(answer, body=b"[]") if "/health/service/" in answer.path else answer


def empty_catalog(answer: Passing) -> Passing:
    """Only the blocking read is empty: a re-read of the leader still shows everything."""
    unconfirmed = "/catalog/services" in answer.path and "consistent" not in answer.path
    return replace(answer, body=b"{}") if unconfirmed else answer


def broken_node(answer: Passing) -> Passing:
    """The first of two instances has a node that is no object."""
    entries = json.loads(answer.body) if "/health/service/stays" in answer.path else []
    if not entries:
        return answer
    entries[0]["Node"] = None
    return replace(answer, body=json.dumps(entries).encode())


def cut_short(answer: Passing) -> Passing:
    return replace(answer, body=answer.body[: len(answer.body) // 2])


def bottomless(answer: Passing) -> Passing:
    """What Python's parser leaves with an error of its own kind."""
    return replace(answer, body=b"[" * 100_000)


def bottomless_health(answer: Passing) -> Passing:
    return bottomless(answer) if "/health/service/" in answer.path else answer


def odd_types(answer: Passing) -> Passing:
    """Lists where texts should be, and texts for numbers."""
    found = json.loads(answer.body)
    if not isinstance(found, list):
        return replace(answer, body=json.dumps([found]).encode())
    for entry in found:
        if isinstance(entry.get("Service"), dict):
            entry["Service"]["CreateIndex"] = "many"
        entry["ServiceName"] = ["stays"]
    return replace(answer, body=json.dumps(found).encode() if found else b'[{"Node": ["a"]}]')


def index_back(answer: Passing) -> Passing:
    return replace(answer, index=1) if answer.index else answer


def hang_up(answer: Passing) -> None:
    return None


FAULTS = one_always(
    empty,
    error_500,
    forbidden,
    no_json,
    other_json,
    no_index,
    empty_health,
    empty_catalog,
    broken_node,
    cut_short,
    bottomless,
    bottomless_health,
    odd_types,
    index_back,
    hang_up,
)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_fault_leaves_the_last_good_state_and_is_recovered_from(
    view: View, proxy: FaultyProxy, api: ConsulApi, fault: Fault
) -> None:
    lost: list[str] = []
    view.on_change(
        lambda changes, _: lost.extend(
            change.service for change in changes if change.service == "stays" and len(change.after) < 2
        )
    )
    with proxy.failing(fault):
        # Something that makes the view read "stays" and the rest again while the fault lasts.
        weight = next(WEIGHTS)
        api.register(Registration("stays", "127.0.0.1", 1, "stays-1", weight=weight, check=None))
        api.register(Registration("noise", "127.0.0.1", 9, "noise-9", check=None))
        api.deregister("noise-9")
        time.sleep(1.2)
        assert len(view.snapshot().instances("stays")) == 2
    api.register(Registration("stays", "127.0.0.1", 3, "stays-3", check=None))
    try:
        eventually(lambda: len(view.snapshot().instances("stays")) == 3, 12)
        eventually(lambda: view.healthy, 12)
        eventually(lambda: view.snapshot().instances("stays")[0].meta["edge-weight"] == str(weight), 5)
        assert not lost
    finally:
        api.deregister("stays-3")


def test_hang_is_noticed_by_age_and_health_and_recovered_from(
    view: View, proxy: FaultyProxy, api: ConsulApi
) -> None:
    with proxy.hanging():
        eventually(lambda: not view.healthy, 6)
        eventually(lambda: view.age_s() > 2 * WAIT_S, 6)
        assert len(view.snapshot().instances("stays")) == 2
        assert proxy.stumbles
    eventually(lambda: view.healthy and view.age_s() < 2 * WAIT_S, 12)


def test_reads_go_down_one_connection_that_is_kept(view: View, proxy: FaultyProxy, api: ConsulApi) -> None:
    before = proxy.connections
    for _ in range(5):
        weight = str(next(WEIGHTS))
        api.register(Registration("stays", "127.0.0.1", 1, "stays-1", weight=int(weight), check=None))
        eventually(lambda: view.snapshot().instances("stays")[0].meta["edge-weight"] == weight, 5)  # noqa: B023
    assert proxy.connections <= before + 1, "one more for a question that is not a read"


def test_listener_that_raises_ends_neither_the_view_nor_the_others(view: View, api: ConsulApi) -> None:
    heard: list[int] = []

    def bad(*_: object) -> None:
        raise RuntimeError("a bug")

    view.on_change(bad)
    view.on_change(lambda changes, snapshot: heard.append(snapshot.version))
    for count in (1, 2):
        api.register(Registration("stays", "127.0.0.1", 1, "stays-1", weight=next(WEIGHTS), check=None))
        eventually(lambda: len(heard) >= count, 5)  # noqa: B023
    assert view.healthy


def test_broken_answer_for_one_service_delays_no_other(
    view: View, proxy: FaultyProxy, api: ConsulApi
) -> None:
    with proxy.failing(broken_node):
        api.register(Registration("stays", "127.0.0.1", 1, "stays-1", weight=200, check=None))
        time.sleep(0.5)
        began = time.monotonic()
        api.register(Registration("other", "127.0.0.1", 8, "other-8", check=None))
        eventually(lambda: view.snapshot().instances("other"), 2)
        assert time.monotonic() - began < 0.5 * time_scale()
    eventually(lambda: view.snapshot().instances("stays")[0].meta["edge-weight"] == "200", 10)
    api.deregister("other-8")


def test_first_answer_after_an_outage_ends_the_pauses_of_all_others(
    proxy: FaultyProxy, api: ConsulApi
) -> None:
    """Else the time for which missing instances are kept runs down while one watch still sits out its pause."""

    class Unlucky(SystemClock):
        """One watch draws the longest of pauses each time: the sixth ask is 6.2 s after the first."""

        def random(self) -> float:
            return 1.0 if threading.current_thread().name == "watch-critical" else 0.1

    def outage(answer: Passing) -> Passing:
        asked.append(answer.path)
        return error_500(answer)

    asked: list[str] = []
    api.register(Registration("there", "127.0.0.1", 1, "there-1", check=None))
    view = View(ConsulApi(proxy.address, read_timeout_s=2), clock=Unlucky(), wait_s=WAIT_S)
    view.start()
    try:
        assert view.ready(5 * time_scale())
        with proxy.failing(outage):
            eventually(lambda: sum("/state/critical" in path for path in asked) == 5, 10)
        began = time.monotonic()
        eventually(lambda: view.healthy, 10)
        assert time.monotonic() - began < 1.5 * time_scale()
    finally:
        view.stop()


def test_consul_that_stumbles_over_every_other_question_is_not_asked_in_a_hurry(
    proxy: FaultyProxy, api: ConsulApi
) -> None:
    """Each good answer would end the pause after each bad one: hundreds of questions a second."""

    def only_anew(answer: Passing) -> Passing:
        asked.append(answer.path)
        return answer if "index=" not in answer.path or "index=0" in answer.path else error_500(answer)

    asked: list[str] = []
    api.register(Registration("there", "127.0.0.1", 1, "there-1", check=None))
    view = View(ConsulApi(proxy.address, read_timeout_s=2), wait_s=0.001)
    view.start()
    try:
        assert view.ready(5 * time_scale())
        with proxy.failing(only_anew):
            time.sleep(3)
        assert 3 < len(asked) < 900, len(asked)
    finally:
        view.stop()


def test_nothing_is_read_after_an_outage_before_consul_is_certain(view: View, proxy: FaultyProxy) -> None:
    """As the test before, with a past that lasts until it has been asked for."""

    def past(answer: Passing) -> Passing:
        if "consistent" in answer.path:
            refused.append(answer.path)
            return error_500(answer)
        if not answer.path.startswith("/v1/health/service/"):
            return answer
        return replace(answer, body=answer.body.replace(b'"Port":1,', b'"Port":9,'), index=10**9)

    refused: list[str] = []
    seen: set[int] = set()
    view.on_change(lambda _, snapshot: seen.update(one.port for one in snapshot.instances("stays")))
    with proxy.failing(lambda _: None):
        eventually(lambda: not view.healthy, 5)
        time.sleep(1.2)
    with proxy.failing(past):
        eventually(lambda: len(refused) >= 2, 10)
        time.sleep(1.0)
    eventually(lambda: view.healthy and view.age_s() < 2 * WAIT_S, 12)
    assert 9 not in seen
    assert [one.port for one in view.snapshot().instances("stays")] == [1, 2]


def test_keys_are_not_read_from_a_consul_that_is_not_certain(api: ConsulApi, proxy: FaultyProxy) -> None:
    """The owner of a path must not be learnt from its past."""
    api.kv_put("certain", b"a")
    asking = ConsulApi(proxy.address)
    assert asking.kv_entry("certain")[2] == b"a"
    with proxy.failing(lambda answer: error_500(answer) if "consistent" in answer.path else answer):
        with pytest.raises(ConsulError):
            asking.kv_entry("certain")
        with pytest.raises(ConsulError):
            asking.kv_entry("certain", 1, 0.1)
