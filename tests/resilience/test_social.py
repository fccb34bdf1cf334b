"""The social system through the edge: what one service does shows in the others, on processes and in containers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.accounts import Account, new_account
from tests.support.eventually import eventually
from tests.support.fleet import Fleet

pytestmark = pytest.mark.needs_stack


def data(account: Account, path: str) -> dict[str, Any]:
    reply = account.ask("GET", path)
    assert reply.status == 200, reply
    return dict(json.loads(reply.body)["data"])


def test_post_creation_updates_user_stats(fleet: Fleet, account: Account) -> None:
    before = data(account, "/api/users/me")["postCount"]
    made = account.ask("POST", "/api/posts", json_body={"title": "t", "content": "c"})
    assert made.status == 201, made
    eventually(lambda: data(account, "/api/users/me")["postCount"] == before + 1, 20)
    assert account.ask("DELETE", made.headers["location"]).status == 204
    eventually(lambda: data(account, "/api/users/me")["postCount"] == before, 20)


def test_posts_of_a_deleted_account_go(fleet: Fleet) -> None:
    person = new_account(fleet.edge_port)
    made = person.ask("POST", "/api/posts", json_body={"title": "t", "content": "c"})
    assert made.status == 201, made
    post = made.headers["location"]
    reader = new_account(fleet.edge_port)
    assert person.ask("DELETE", f"/api/users/{person.id}").status == 204
    eventually(lambda: reader.ask("GET", post).status == 404, 20)
