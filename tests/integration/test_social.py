"""The social system through the edge: what one service does shows in the others."""

from __future__ import annotations

import json
from typing import Any

import pytest

from stack.mails import shown
from stack.run.api import Stack
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


def test_user_registration_triggers_notifications(fleet: Fleet, stack: Stack) -> None:
    person = new_account(fleet.edge_port)

    def kinds() -> list[str]:
        reply = person.ask("GET", "/api/notifications?unread=true")
        assert reply.status == 200, reply
        return [each["kind"] for each in json.loads(reply.body)["data"]]

    def mails() -> list[str]:
        return [mail for mail in shown(stack.settings.var / "mail", 1000) if person.email in mail]

    eventually(lambda: kinds() == ["welcome"], 20)
    eventually(lambda: len(mails()) == 1, 20)
    assert "Ada" in mails()[0]
