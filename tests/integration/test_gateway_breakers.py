"""`/edge/breakers` of real gateways of two groups over one Redis: looked at, and set by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.eventually import eventually
from tests.support.gateway_rig import Answer, Rig, Service, exchange, metric
from tests.support.scripted import Handler, ok

pytestmark = pytest.mark.shares("gateways")

BUSINESS, TWIN, IDENTITY, AI = range(4)


def bad(handler: Handler) -> None:
    handler.answer(503)


def ask(
    rig: Rig, method: str, path: str = "", body: Any = None, *, gateway: int = BUSINESS, scope: str = "admin"
) -> Answer:
    """A request to /edge/breakers of one gateway, with a token of this scope."""
    headers = {
        "Authorization": f"Bearer {rig.signer.token('root', scope)}",
        "X-Request-ID": "0123456789abcdef",
    }
    data = None
    if body is not None:
        headers["Content-Type"] = "application/json"
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return exchange(rig.gateways[gateway].port, method, f"/edge/breakers{path}", headers, data)


def shown(rig: Rig, gateway: int = BUSINESS) -> dict[str, Any]:
    answer = ask(rig, "GET", gateway=gateway)
    assert (answer.status, answer.headers["cache-control"]) == (200, "no-store")
    return json.loads(answer.body)


def breaker_of(rig: Rig, service: Service, gateway: int, asked: int = IDENTITY) -> dict[str, Any]:
    """One process's breaker, as another one shows it."""
    of = rig.gateways[gateway]
    found: dict[str, Any] = shown(rig, asked)["groups"][of.domain]["instances"][of.id]["breakers"][
        service.name
    ]
    return found


def calls(rig: Rig, service: Service, times: int, gateway: int = BUSINESS) -> list[int]:
    return [rig.ask("GET", service.path, service=service, gateway=gateway).status for _ in range(times)]


def ids(rig: Rig, *gateways: int) -> list[str]:
    return sorted(rig.gateways[each].id for each in gateways)


def log_lines(rig: Rig, gateway: int, event: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in rig.gateways[gateway].log_text.splitlines() if event in line]
    return [line for line in lines if line["event"] == event]


# -- who may


def test_only_a_token_of_an_admin_may_look_and_order_whatever_the_edges_headers_say(rig: Rig) -> None:
    claimed = {"X-Auth-Subject": "root", "X-Auth-Scope": "admin"}
    user = claimed | {"Authorization": f"Bearer {rig.signer.token('user-1', 'user service')}"}
    for method, path in (("GET", ""), ("POST", "/business/users"), ("DELETE", "/business/users")):
        path = f"/edge/breakers{path}"
        assert exchange(rig.gateways[0].port, method, path, claimed).status == 401
        answer = exchange(rig.gateways[0].port, method, path, user, b'{"state": "open"}')
        assert (answer.status, answer.headers["content-type"]) == (403, "application/problem+json")


# -- looking


def test_all_groups_and_processes_are_shown_with_state_counts_and_transitions(rig: Rig) -> None:
    with rig.service(bad) as pears:
        assert calls(rig, pears, 25) == [503] * 25
        assert len(pears.requests) < 30, "the breaker did not open"
        eventually(lambda: breaker_of(rig, pears, TWIN)["state"] == "open", 3)
        eventually(lambda: breaker_of(rig, pears, BUSINESS)["refused"] == 5, 3)
        said = shown(rig, IDENTITY)
        assert (said["asked"], said["shared"]) == (rig.gateways[IDENTITY].id, True)
        assert sorted(said["groups"]) == ["ai", "business", "identity"]
        assert sorted(said["groups"]["business"]["instances"]) == ids(rig, BUSINESS, TWIN)
        assert sorted(said["groups"]["ai"]["instances"]) == ids(rig, AI)
        mine, twin = (breaker_of(rig, pears, each) for each in (BUSINESS, TWIN))
        assert (mine["state"], mine["who"], mine["held"]) == ("open", "local", False)
        (trip,) = mine["transitions"]
        assert (trip["before"], trip["state"], trip["who"]) == ("closed", "open", "local")
        assert trip["reason"] == "20 of 20 calls failed, the last: status 503"
        (heard,) = twin["transitions"]
        assert heard["who"] == "shared"
        assert rig.gateways[BUSINESS].id in heard["reason"]
        assert (
            pears.name not in said["groups"]["identity"]["instances"][rig.gateways[IDENTITY].id]["breakers"]
        )
        labels = {"upstream": pears.name, "state": "open"}
        for gateway, cause in ((BUSINESS, "local"), (TWIN, "shared")):
            name = "gateway_breaker_transitions_total"
            assert metric(rig, name, labels | {"cause": cause}, gateway) == 1
            assert metric(rig, "service_upstream_breaker", {"upstream": pears.name}, gateway) == 2
            assert (
                metric(rig, "gateway_breaker_cause", {"upstream": pears.name, "cause": cause}, gateway) == 1
            )
        assert metric(rig, "gateway_breaker_refused_total", {"upstream": pears.name}) == 5


# -- by hand


def test_order_at_any_gateway_reaches_all_of_the_group(rig: Rig) -> None:
    with rig.service(ok) as pears, rig.service(ok) as plums:
        path = f"/business/{pears.name}"
        answer = ask(rig, "POST", path, {"state": "open", "for_s": 60, "reason": "moving"}, gateway=IDENTITY)
        said = json.loads(answer.body)
        assert (answer.status, said["taken_by"], said["missing"]) == (200, ids(rig, BUSINESS, TWIN), [])
        for gateway in (BUSINESS, TWIN):
            assert calls(rig, pears, 3, gateway) == [503] * 3
            assert calls(rig, plums, 3, gateway) == [200] * 3
            found = breaker_of(rig, pears, gateway)
            assert (found["state"], found["who"], found["held"]) == ("open", "hand", True)
            assert found["transitions"][-1]["reason"] == "by root: moving"
        assert pears.requests == []
        assert json.loads(ask(rig, "DELETE", path).body)["taken_by"] == ids(rig, BUSINESS, TWIN)
        for gateway in (BUSINESS, TWIN):
            assert calls(rig, pears, 3, gateway) == [200] * 3


def test_order_is_in_the_logs_with_its_subject_and_its_request(rig: Rig) -> None:
    with rig.service(ok) as pears:
        ask(rig, "POST", f"/business/{pears.name}", {"state": "open", "for_s": 60}, gateway=IDENTITY)
        ordered = [
            x for x in log_lines(rig, IDENTITY, "breaker ordered by hand") if x["upstream"] == pears.name
        ]
        assert [(x["subject"], x["group"], x["state"], x["for_s"]) for x in ordered] == [
            ("root", "business", "open", 60)
        ]
        assert ordered[0]["request_id"] == "0123456789abcdef"
        for gateway in (BUSINESS, TWIN):
            lines = [x for x in log_lines(rig, gateway, "breaker set by hand") if x["upstream"] == pears.name]
            assert [(x["order"], x["reason"], x["ordered_by_request"]) for x in lines] == [
                (ordered[0]["order"], "by root", "0123456789abcdef")
            ]


def test_opened_by_hand_it_ends_by_itself(rig: Rig) -> None:
    with rig.service(ok) as pears:
        ask(rig, "POST", f"/business/{pears.name}", {"state": "open", "for_s": 0.5})
        first = min((BUSINESS, TWIN), key=lambda each: rig.gateways[each].id)
        assert calls(rig, pears, 1, first) == [503]
        eventually(lambda: calls(rig, pears, 2, first) == [200, 200], 3)
        eventually(lambda: calls(rig, pears, 1, BUSINESS + TWIN - first) == [200], 3)


def test_half_open_by_hand_lets_trials_through_and_their_verdict_counts_for_all(rig: Rig) -> None:
    with rig.service(ok) as pears:
        path = f"/business/{pears.name}"
        ask(rig, "POST", path, {"state": "open", "for_s": 60})
        ask(rig, "POST", path, {"state": "half-open"})
        assert breaker_of(rig, pears, TWIN)["state"] == "half-open"
        assert calls(rig, pears, 2) == [200, 200]
        eventually(lambda: breaker_of(rig, pears, TWIN)["state"] == "closed", 3)
        pears.upstreams[0].behave = bad
        ask(rig, "POST", path, {"state": "half-open"})
        assert calls(rig, pears, 1) == [503]
        eventually(lambda: breaker_of(rig, pears, TWIN)["state"] == "open", 3)


WRONG: dict[str, tuple[Any, int]] = {
    "an unknown state": ({"state": "ajar"}, 422),
    "no state": ({"for_s": 3}, 422),
    "a time of none": ({"state": "open", "for_s": 0}, 422),
    "a time below zero": ({"state": "open", "for_s": -1}, 422),
    "a time of more than a day": ({"state": "open", "for_s": 86401}, 422),
    "a time as text": ({"state": "open", "for_s": "60"}, 422),
    "true for a time": ({"state": "open", "for_s": True}, 422),
    "an endless time": (b'{"state": "open", "for_s": Infinity}', 422),
    "no number": (b'{"state": "open", "for_s": NaN}', 422),
    "a time for closed": ({"state": "closed", "for_s": 3}, 422),
    "a member too many": ({"state": "open", "forever": True}, 422),
    "a long reason": ({"state": "open", "reason": "x" * 101}, 422),
    "a list": ([], 422),
    "no JSON": (b"{", 400),
    "nothing": (None, 415),
}
NOWHERE = {
    "/shop/users": 404,
    "/Business/users": 404,
    "/business/nobody-of-this-name": 404,
    "/business/gateway-identity": 404,
    "/business/-odd": 422,
    "/business/x%0ay": 422,
    "/business": 404,
    "/business/users/more": 404,
}


def test_wrong_order_is_refused_and_changes_nothing(rig: Rig) -> None:
    before = {each: log_lines(rig, each, "breaker set by hand") for each in (BUSINESS, TWIN)}
    for what, (body, status) in WRONG.items():
        answer = ask(rig, "POST", "/business/gateway-test", body)
        assert answer.status == status, what
        assert answer.headers["content-type"] == "application/problem+json"
    for path, status in NOWHERE.items():
        assert ask(rig, "POST", path, {"state": "open"}).status == status, path
    assert {each: log_lines(rig, each, "breaker set by hand") for each in (BUSINESS, TWIN)} == before


# -- what is away


def test_killed_process_is_named(rig: Rig) -> None:
    with rig.service(ok) as pears:
        twin, path = rig.gateways[TWIN], f"/business/{pears.name}"
        twin.process.kill()
        try:
            # For longer than the twin may need to be back on a busy machine.
            answer = ask(rig, "POST", path, {"state": "open", "for_s": 600})
            said = json.loads(answer.body)
            assert (answer.status, said["taken_by"]) == (202, ids(rig, BUSINESS))
            assert said["missing"] == ids(rig, TWIN)
            eventually(lambda: shown(rig)["groups"]["business"]["silent"] == ids(rig, TWIN), 8)
        finally:
            twin.start()
        eventually(lambda: breaker_of(rig, pears, TWIN)["held"], 10)
        assert calls(rig, pears, 1, TWIN) == [503]
        eventually(lambda: shown(rig)["groups"]["business"]["silent"] == [], 8)
        ask(rig, "DELETE", path)


def test_without_redis_each_shows_its_own_and_says_so(rig: Rig) -> None:
    assert rig.redis is not None
    with rig.service(ok) as pears:
        path = f"/business/{pears.name}"
        rig.redis.kill()
        try:
            said = shown(rig)
            assert (said["shared"], list(said["groups"]["business"]["instances"])) == (
                False,
                ids(rig, BUSINESS),
            )
            assert "Redis is away" in said["detail"]
            answer = ask(rig, "POST", path, {"state": "open", "for_s": 60})
            said = json.loads(answer.body)
            assert (answer.status, said["taken_by"], said["missing"]) == (
                202,
                ids(rig, BUSINESS),
                ids(rig, TWIN),
            )
            assert said["shared"] is False
            assert (calls(rig, pears, 1), calls(rig, pears, 1, TWIN)) == ([503], [200])
            answer = ask(rig, "POST", path, {"state": "open", "for_s": 60}, gateway=IDENTITY)
            assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        finally:
            rig.redis.start()
        eventually(lambda: shown(rig, IDENTITY)["shared"], 5)
        eventually(lambda: ask(rig, "DELETE", path).status == 200, 8)
        assert calls(rig, pears, 1) == [200]
