"""What callers learn of their limits from real gateways that share a Redis."""

from __future__ import annotations

import json
import time

import pytest

from tests.integration.test_gateway_limits import subject
from tests.support.gateway_rig import Rig, metric
from tests.support.scripted import Handler, ok

pytestmark = pytest.mark.shares("gateways")

# A subject's requests in an hour, as the session's gateways are started with.
LIMIT = 60


def bearer(rig: Rig, name: str, **claims: object) -> dict[str, str]:
    return {"Authorization": f"Bearer {rig.signer.token(name, **claims)}"}


def cacheable(handler: Handler) -> None:
    handler.answer(200, b'{"pears": 3}', Content_Type="application/json", Cache_Control="public, max-age=60")


def test_answers_tell_the_limit_and_the_refusal_says_when_to_come_back(rig: Rig) -> None:
    name = subject()
    sent = bearer(rig, name)
    with rig.service(ok) as pears:
        answers = [rig.ask("GET", f"{pears.path}/1", service=pears, headers=sent) for _ in range(LIMIT)]
        assert {each.status for each in answers} == {200}
        assert answers[0].headers["ratelimit-policy"] == f'"rate-hour";q={LIMIT};w=3600'
        left = [int(each.headers["ratelimit"].split(";")[1].removeprefix("r=")) for each in answers]
        assert left == list(range(LIMIT - 1, -1, -1))
        refused = rig.ask("POST", f"{pears.path}/1", service=pears, headers=sent, body=b"{}")
        assert refused.status == 429
        assert len(pears.requests) == LIMIT
    problem = json.loads(refused.body)
    assert refused.headers["content-type"] == "application/problem+json"
    assert (problem["status"], problem["layer"]) == (429, "gateway")
    assert refused.headers["ratelimit"] == f'"rate-hour";r=0;t={refused.headers["retry-after"]}'
    assert 0 < int(refused.headers["retry-after"]) <= 3600
    assert metric(rig, "gateway_limited_total", {"policy": "rate-hour"}) >= 1


def test_two_gateways_share_what_a_subject_has_used(rig: Rig) -> None:
    sent = bearer(rig, subject())
    with rig.service(ok) as pears:
        for _ in range((LIMIT - 4) // 2):
            for gateway_number in (0, 1):
                rig.ask("GET", pears.path, service=pears, headers=sent, gateway=gateway_number)
        time.sleep(0.3)
        statuses = [
            rig.ask("GET", pears.path, service=pears, headers=sent, gateway=number % 2).status
            for number in range(20)
        ]
        # Four were left to both; each may not yet have heard of the other's last.
        assert 4 <= statuses.count(200) <= 8
        assert statuses.count(429) == 20 - statuses.count(200)


def test_tokens_of_api_keys_have_their_own_limit(rig: Rig) -> None:
    name = subject()
    with rig.service(ok) as pears:
        by_key = bearer(rig, name, api_key="key-1")
        statuses = [rig.ask("GET", pears.path, service=pears, headers=by_key).status for _ in range(5)]
        assert statuses == [200, 200, 200, 429, 429]
        assert rig.ask("GET", pears.path, service=pears, headers=bearer(rig, name)).status == 200


def test_who_proves_nothing_is_not_counted_here(rig: Rig) -> None:
    with rig.service(ok) as pears:
        for sent in ({}, {"Authorization": "Bearer a.b.c"}):
            for _ in range(LIMIT // 2 + 1):
                answer = rig.ask("GET", pears.path, service=pears, headers=sent)
                assert answer.status == 200
                assert "ratelimit" not in answer.headers


def test_stored_answers_carry_the_numbers_of_who_asks(rig: Rig) -> None:
    alice, bob = bearer(rig, subject()), bearer(rig, subject())
    with rig.service(cacheable) as pears:
        for step, sent in enumerate([alice, alice, bob, alice, bob]):
            with rig.open("GET", f"{pears.path}/stored", service=pears, headers=sent) as answer:
                answer.read()
                fields = answer.headers.get_all("RateLimit")
            left = LIMIT - [1, 2, 1, 3, 2][step]
            assert fields is not None
            assert len(fields) == 1
            assert f";r={left};" in fields[0]
        plain = rig.ask("GET", f"{pears.path}/stored", service=pears)
        assert plain.status == 200
        assert "ratelimit" not in plain.headers
