"""Limits on a second edge beside the stack's own: 429 for those who ask too much, and for nobody else."""

from __future__ import annotations

import json

import pytest

from tests.support.accounts import Account, ask
from tests.support.eventually import eventually
from tests.support.fleet import Fleet
from tests.support.wire import Reply

pytestmark = pytest.mark.needs_stack


def until_limited(port: int, path: str, headers: dict[str, str], most: int) -> tuple[int, Reply]:
    """How many requests passed before the first 429, and that answer."""
    for passed in range(most):
        reply = ask(port, "GET", path, headers=headers)
        if reply.status == 429:
            return passed, reply
    raise AssertionError(f"{most} requests passed")


def assert_says_when_to_come_back(reply: Reply) -> None:
    assert int(reply.headers["retry-after"]) >= 1
    body = json.loads(reply.body)
    assert (body["status"], body["layer"]) == (429, "edge")


def test_source_over_its_limit_gets_429_with_retry_after(fleet: Fleet) -> None:
    with fleet.second_edge(EDGE_RATE_SOURCE="40", EDGE_RATE_SUBJECT="0") as port:
        passed, reply = until_limited(port, "/api/posts", {}, 60)
        assert 20 <= passed <= 41
        assert_says_when_to_come_back(reply)
        assert ask(fleet.edge_port, "GET", "/api/posts").status == 200, "the other edge limits by itself"


def test_subject_over_its_limit_gets_429_and_others_do_not(
    fleet: Fleet, account: Account, other_account: Account
) -> None:
    with fleet.second_edge(EDGE_RATE_SOURCE="0", EDGE_RATE_SUBJECT="20") as port:
        path = f"/api/users/{account.id}"
        # The new edge fetches the issuer's keys before it lets a token pass.
        eventually(lambda: ask(port, "GET", path, headers=other_account.headers()).status != 401, 20)
        passed, reply = until_limited(port, path, account.headers(), 40)
        assert 10 <= passed <= 21
        assert_says_when_to_come_back(reply)
        mine = ask(port, "GET", f"/api/users/{other_account.id}", headers=other_account.headers())
        assert mine.status == 200
