"""The social system on a machine: what one service does shows in the others, and in the mail that is sent."""

from __future__ import annotations

import json

import pytest

from stack.mails import shown
from stack.run.api import Stack
from tests.support.accounts import new_account
from tests.support.eventually import eventually
from tests.support.fleet import Fleet

pytestmark = pytest.mark.needs_stack


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
