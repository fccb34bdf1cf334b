"""Composed answers from a real gateway: the routes that are shipped, and parts that do the worst that they can.

How a whole is put together, what of it is kept and what its errors say is in tests/unit/gateway/test_compose*.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration.composing import (
    MIB,
    PAIR,
    RELEASE,
    SHIPPED,
    WORST,
    P,
    Stage,
    U,
    answered_by,
    body,
    cut,
    hang,
    says,
)
from tests.support.eventually import eventually, time_scale
from tests.support.gateway_rig import ROOT, Answer, dead, metric
from tests.support.scripted import Handler

pytestmark = pytest.mark.shares("stage")


# -- the first routes


def test_a_user_and_a_product_are_one_answer(stage: Stage) -> None:
    answer = stage.get(PAIR)
    said = body(answer)
    assert answer.status == 200
    assert list(said) == ["user", "product", "_complete", "_parts"]
    assert (said["user"], said["product"], said["_complete"]) == ({"id": U, "n": 1.5}, {"price": 999}, True)
    assert b'"n":1.50' in answer.body
    assert said["_parts"]["user"] == {"status": "ok", "source": "live", "age": 0, "attempts": 1}
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "private, no-cache"
    (asked,) = stage.seen("users")
    assert asked.path == f"/api/users/{U}"
    assert asked.headers["authorization"] == f"Bearer {stage.token}"
    assert asked.headers["x-request-id"] == answer.headers["x-request-id"]
    assert 0 < int(asked.headers["x-deadline-ms"]) <= 3000


def test_head_is_get_without_a_body(stage: Stage) -> None:
    head = stage.get(PAIR, method="HEAD")
    assert (head.status, head.body) == (200, b"")
    assert int(head.headers["content-length"]) > 100
    assert {seen.method for seen in stage.seen("users")} == {"GET"}


def test_other_methods_are_405_and_reach_nobody(stage: Stage) -> None:
    for method in ("POST", "DELETE", "PUT"):
        answer = stage.get(PAIR, method=method)
        assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")
        assert answer.headers["content-type"] == "application/problem+json"
    assert stage.seen("users") == stage.seen("products") == []


def test_without_a_token_the_service_says_who_may(stage: Stage) -> None:
    """The gateway has no right of its own that a stranger could borrow."""
    answer = stage.get(PAIR, token=False)
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == 'Bearer realm="users"'
    assert body(answer)["part"] == "user"
    assert all("authorization" not in seen.headers for seen in stage.seen("users"))


def test_a_path_that_nobody_holds_is_404(stage: Stage) -> None:
    for path in ("/api/quota/x", "/api/overview/", f"/api/{U}", f"/api/{U}/{P}/x", f"/api/{U}/%20"):
        answer = stage.get(path)
        assert (answer.status, answer.headers["content-type"]) == (404, "application/problem+json"), path


def test_an_overview_needs_a_token(stage: Stage) -> None:
    assert stage.get("/api/overview", token=False).status == 401
    for bad in ("Bearer x.y.z", "Bearer", "Basic YTpi", f"Bearer {stage.token}x"):
        answer = stage.rig.ask("GET", "/api/overview", headers={"Authorization": bad})
        assert answer.status == 401
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["www-authenticate"].startswith("Bearer")
    assert stage.seen("users") == stage.seen("posts") == []


def test_an_overview_says_which_services_there_are_not(stage: Stage) -> None:
    answer = stage.get("/api/overview")
    said = body(answer)
    assert answer.status == 200
    assert (said["profile"]["id"], said["posts"]) == (U, [{"title": "x"}])
    for name in ("orders", "tickets", "notifications"):
        assert said[name] is None
        assert said["_parts"][name]["status"] == "absent"
        assert said["_parts"][name]["reason"]
    assert said["_complete"] is False
    assert answer.headers["x-incomplete"] == "orders, tickets, notifications"
    assert answer.headers["cache-control"] == "no-store"
    assert stage.seen("users")[0].path == "/api/users/me"
    assert stage.seen("posts")[0].path == f"/api/posts?author={U}&limit=10"


def test_composed_paths_are_held_against_who_asks_for_them_later(stage: Stage) -> None:
    """The edge lets the first holder of a prefix keep it, and of nested prefixes the longest wins."""
    (entry,) = stage.rig.consul.call("GET", "/v1/health/service/gateway-business")  # type: ignore[misc]
    held = entry["Service"]["Meta"]["edge-path"].split(",")
    assert {"/api", "/api/overview", "/api/health"} <= set(held)


def test_a_service_that_comes_is_a_part_at_once(stage: Stage) -> None:
    with stage.rig.service(
        lambda handler: handler.answer(200, b'{"data":[1]}'), name="orders", lane="direct"
    ):
        said = body(stage.get("/api/overview"))
    assert (said["orders"], said["_parts"]["orders"]["status"]) == ([1], "ok")


# -- wholes that are kept


def keep(stage: Stage) -> None:
    control = {"Cache_Control": "public, max-age=60"}
    stage.set("users", lambda handler: handler.answer(200, b'{"data":{"id":1}}', **control))
    stage.set("products", lambda handler: handler.answer(200, b'{"data":{"price":999}}', **control))


def test_a_public_whole_is_kept_until_a_part_changes(stage: Stage) -> None:
    keep(stage)
    path = f"/api/{U}/{'1' * 32}"
    first, again = stage.get(path), stage.get(path, token=False)
    assert (first.headers["x-cache"], again.headers["x-cache"]) == ("MISS", "HIT")
    assert len(stage.seen("users")) == len(stage.seen("products")) == 1
    assert body(again)["_parts"]["user"]["source"] == "cache"
    assert again.headers["etag"] == first.headers["etag"]
    stage.set(
        "products",
        lambda handler: handler.answer(200, b'{"data":{"price":5}}', Cache_Control="public, max-age=60"),
    )
    admin = {"Authorization": f"Bearer {stage.rig.signer.token(U, 'admin')}"}
    target = f"/api/gateway/business/cache?service=products&path=/api/products/{'1' * 32}"
    purged = stage.rig.ask("PURGE", target, headers=admin)
    assert purged.status == 200
    changed = eventually(lambda: (a := stage.get(path)).headers["x-cache"] == "MISS" and a, 3)
    assert body(changed)["product"] == {"price": 5}


def test_two_users_get_no_private_whole_of_each_other(stage: Stage) -> None:
    """Whatever has been kept before, and whichever user asks first."""
    stage.set("users", lambda handler: handler.answer(
        200, json.dumps({"data": {"of": handler.seen.headers.get("authorization", "")}}).encode(), Cache_Control="private, max-age=60"
    ))  # fmt: skip
    tokens = [stage.rig.signer.token(subject * 16) for subject in ("a1", "b2")]
    for _ in range(2):
        for token in tokens:
            answer = stage.rig.ask("GET", PAIR, headers={"Authorization": f"Bearer {token}"})
            assert body(answer)["user"] == {"of": f"Bearer {token}"}
            assert answer.headers["cache-control"].startswith("private")


# -- parts that do the worst they can


# The others make no difference that these do not, and are tried when there is time.
USUAL = (
    "drips its head",
    "is 50 MB",
    "unpacks to 50 MB",
    "is cut short",
    "redirects",
    "adds members",
    "babbles",
)


@pytest.fixture
def released(stage: Stage) -> Iterator[Stage]:
    RELEASE.clear()
    yield stage
    RELEASE.set()


@pytest.mark.parametrize(
    "worst", [pytest.param(each, marks=[pytest.mark.long] * (each not in USUAL)) for each in WORST]
)
def test_the_worst_of_parts_costs_its_own_part_and_nothing_else(released: Stage, worst: str) -> None:
    stage = released
    behave, status = WORST[worst]
    stage.get("/api/plates/1")
    before = stage.rig.gateways[0].most_memory()
    stage.set("fruits", behave)
    began = time.monotonic()
    answer = stage.get("/api/plates/1")
    took_s = time.monotonic() - began
    said = body(answer)
    assert len(stage.seen("fruits")) >= 2, "the fault did not happen"
    assert answer.status == 200
    assert (said["fruit"], said["_complete"]) == (None, False)
    assert said["plate"] == {"data": {"price": 999}}
    assert status is None or said["_parts"]["fruit"]["status"] == status
    assert said["_parts"]["fruit"]["reason"]
    assert answer.headers["cache-control"] == "no-store"
    assert took_s < 1.0 + 0.5 * time_scale()
    assert stage.rig.gateways[0].most_memory() - before < 16 * MIB


@pytest.mark.parametrize("worst", ["hangs", "is not JSON", "is cut short"])
def test_the_worst_of_needed_parts_is_an_error_that_names_it(released: Stage, worst: str) -> None:
    stage = released
    behave, status = WORST[worst]
    stage.set("fruits", behave)
    began = time.monotonic()
    answer = stage.get("/api/needs/1")
    assert time.monotonic() - began < 1.0 + 0.5 * time_scale()
    assert stage.seen("fruits"), "the fault did not happen"
    assert answer.status == (504 if status == "timeout" else 502)
    assert body(answer)["part"] == "fruit"
    assert "127.0.0.1" not in answer.body.decode()


def test_a_part_that_hangs_is_counted_against_its_service(released: Stage) -> None:
    """And so opens its breaker in the end: what is cut off from outside would count as nothing."""
    stage = released
    calls = {"upstream": "fruits"}
    timeouts = [{**calls, "outcome": name} for name in ("DeadlineExceeded", "ResponseTimeout")]

    def counted(labels: list[dict[str, str]]) -> float:
        return sum(metric(stage.rig, "service_upstream_calls_total", each) for each in labels)

    stage.set("fruits", hang)
    before, cut_off = counted(timeouts), counted([{**calls, "outcome": "error"}])
    for _ in range(2):
        assert stage.get("/api/needs/1").status == 504
    assert counted(timeouts) == before + 2
    assert counted([{**calls, "outcome": "error"}]) == cut_off


# -- paths


def test_a_value_stays_in_its_place(stage: Stage) -> None:
    for asked, sent in (
        ("a%3Fb", "a%3Fb"),
        ("a%26q=2", "a%26q%3D2"),
        ("caf%C3%A9", "caf%C3%A9"),
        ("..a", "..a"),
    ):
        assert stage.get(f"/api/words/{asked}").status == 200
        assert stage.seen("products")[-1].path == f"/api/products/{sent}/end?q={sent}"


def test_no_value_reaches_another_path(stage: Stage) -> None:
    for asked in (
        "..",
        "%2e%2e",
        "..%2f..%2fadmin",
        "a%2fb",
        "%252e%252e",
        "%00",
        "a%0d%0aX:%20y",
        "%c0%ae",
        "a\\b",
        "",
    ):
        assert stage.get(f"/api/words/{asked}").status in (400, 404), asked
    assert stage.seen("products") == []


# -- instances that fail, and that are slow


def test_a_body_that_is_cut_short_is_fetched_from_another_instance(stage: Stage) -> None:
    with stage.rig.service(cut, says(b'{"kind":"walnut"}'), name="nuts", lane="direct") as nuts:
        answers = [stage.get("/api/hedged") for _ in range(4)]
        assert answered_by(nuts.upstreams[0]) > 0, "the fault did not happen"
    assert [answer.status for answer in answers] == [200] * 4


def test_a_slow_instance_is_hedged_on_another_and_left(stage: Stage) -> None:
    """All from one address, which balancing by source sends to one instance."""
    left = threading.Event()

    def slow(handler: Handler) -> None:
        handler.connection.settimeout(8)
        with contextlib.suppress(OSError):
            # The gateway closes the connection of the attempt that lost.
            if handler.connection.recv(1) == b"":
                left.set()
        handler.hang_up()

    def ask() -> Answer:
        return stage.get("/api/hedged", client="10.77.7.7")

    labels = {"service": "nuts", "winner": "second"}
    with stage.rig.service(says(b"1"), says(b"1"), name="nuts", lane="direct", balance="source") as nuts:
        for _ in range(60):
            assert ask().status == 200
        chosen, other = sorted(nuts.upstreams, key=answered_by, reverse=True)
        before = metric(stage.rig, "gateway_hedges_total", labels)
        counts = answered_by(chosen), answered_by(other)
        assert counts[0] >= 50
        chosen.behave = slow
        began = time.monotonic()
        answer = ask()
        took_s = time.monotonic() - began
        assert answer.status == 200
        assert body(answer)["_parts"]["nut"]["attempts"] == 2
        assert (answered_by(chosen), answered_by(other)) == (counts[0] + 1, counts[1] + 1)
        assert metric(stage.rig, "gateway_hedges_total", labels) == before + 1
        assert left.wait(2 * time_scale()), "the attempt that lost goes on"
    # Without the hedge the attempt would have half of the 20 s.
    assert took_s < 1.0 * time_scale()


def test_one_dead_of_three_costs_no_composed_answer(stage: Stage) -> None:
    """The last with this service: what its retries have cost would be missing from the others' budget for 10 s."""
    nut = says(b'{"kind":"walnut"}')
    with stage.rig.service(nut, dead, nut, name="nuts", lane="direct"), ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda _: stage.get("/api/hedged"), range(50)))
    assert {answer.status for answer in answers} == {200}
    tried = [body(answer)["_parts"]["nut"]["attempts"] for answer in answers]
    assert max(tried) > 1, "no request met the dead one"


# -- declarations


def test_a_wrong_declaration_ends_the_gateway_with_the_place_of_the_mistake(tmp_path: Path) -> None:
    (tmp_path / "business.toml").write_text(SHIPPED.replace("required = true", "requierd = true", 1))
    own = {"PYTHONPATH": str(ROOT), "GATEWAY_COMPOSE_DIR": str(tmp_path), "DATA_DIR": str(tmp_path)}
    argv = [sys.executable, "-m", "gateway"]
    done = subprocess.run(argv, env=os.environ | own, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode != 0
    assert "business.toml: route user-product: parts.user.requierd: Extra inputs" in done.stderr
    assert "Traceback" not in done.stderr
