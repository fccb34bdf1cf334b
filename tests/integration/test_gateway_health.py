"""The fleet's health at a real gateway: what is down, and that asking costs the fleet nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.integration.composing import (
    RELEASE,
    REMEMBER_S,
    Stage,
    body,
    drip_head,
    hang,
    ready,
)
from tests.support.eventually import eventually, time_scale
from tests.support.scripted import Handler

pytestmark = pytest.mark.shares("stage")


@pytest.fixture
def sound(stage: Stage) -> Iterator[Stage]:
    eventually(lambda: stage.get("/api/health", token=False).status == 200, 10)
    yield stage
    stage.reset()


def test_health_names_every_service_and_no_address(sound: Stage) -> None:
    answer = sound.get("/api/health", token=False)
    said = body(answer)
    assert (answer.status, said["status"]) == (200, "healthy")
    assert {"auth", "users", "products", "posts"} <= set(said["services"])
    assert said["services"]["users"] == {"status": "healthy", "instances": 1, "live": 1}
    assert answer.headers["cache-control"] == "no-store"
    text = answer.body.decode()
    assert "127.0.0.1" not in text
    assert str(sound.services["users"].upstreams[0].port) not in text


@pytest.mark.parametrize(
    "sick",
    [
        lambda handler: handler.answer(503, b"{}", X_Service="posts"),
        lambda handler: handler.answer(200, b"{}", X_Service="somebody-else"),
        lambda handler: handler.answer(200, b"{}"),
        hang,
        drip_head,
    ],
    ids=["not ready", "another service", "nobody", "hangs", "drips"],
)
def test_a_service_whose_instances_are_not_ready_is_down(
    sound: Stage, sick: Callable[[Handler], None]
) -> None:
    """Consul still believes in it."""
    RELEASE.clear()
    sound.services["posts"].upstreams[0].behave = sick
    try:
        answer = eventually(lambda: (a := sound.get("/api/health", token=False)).status == 503 and a, 6)
        began = time.monotonic()
        eventually(lambda: sound.get("/api/health", token=False), 1)
        assert time.monotonic() - began < 1.5 * time_scale()
    finally:
        RELEASE.set()
    said = body(answer)
    assert said["status"] == "degraded"
    assert said["services"]["posts"] == {"status": "down", "instances": 1, "live": 0}
    assert said["services"]["users"]["status"] == "healthy"
    sound.reset()
    eventually(lambda: sound.get("/api/health", token=False).status == 200, 6)


def test_a_service_out_of_consul_is_down_and_one_that_was_never_expected_is_not_missed(sound: Stage) -> None:
    sound.rig.mark("users-0", "critical")
    try:
        answer = eventually(lambda: (a := sound.get("/api/health", token=False)).status == 503 and a, 6)
        assert body(answer)["services"]["users"] == {"status": "down", "instances": 1, "live": 0}
    finally:
        sound.rig.mark("users-0", "passing")
    eventually(lambda: sound.get("/api/health", token=False).status == 200, 6)
    with sound.rig.service(lambda handler: ready("guests", handler), name="guests"):
        eventually(lambda: "guests" in body(sound.get("/api/health", token=False))["services"], 6)
    answer = eventually(
        lambda: (a := sound.get("/api/health", token=False)) and "guests" not in body(a)["services"] and a, 6
    )
    assert answer.status == 200


def test_health_cannot_be_used_to_hammer_the_fleet(sound: Stage) -> None:
    upstream = sound.services["users"].upstreams[0]
    before, began = len(upstream.requests), time.monotonic()
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: sound.get("/api/health", token=False).status, range(200)))
    looks = len(upstream.requests) - before
    assert set(answers) == {200}
    assert looks <= (time.monotonic() - began) / REMEMBER_S + 2
