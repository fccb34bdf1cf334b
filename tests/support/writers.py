"""Writes at a steady rate to what keeps its data in PostgreSQL, and what is asked of their answers when it fails."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from tests.support.eventually import eventually, time_scale
from tests.support.load import Load, Plan

# DB_TIMEOUT_S is 2 s; the rest is room for what is done before and after.
REFUSED_WITHIN_S = 3.0
# auth waits for users for 5 s at most.
REGISTRATION_WITHIN_S = 6.5
# A request that was in the middle of a statement when the server stopped answering waits as long as that may take.
CAUGHT_WITHIN_S = 13.0
PASSWORD = "correct horse battery"
BACK_WITHIN_S = 5.0
CREATED = frozenset({201})


@dataclass
class Writer:
    """One kind of write to one service, at a steady rate; `acknowledged` are the ids that its good answers named."""

    service: str
    load: Load
    within_s: float = REFUSED_WITHIN_S
    acknowledged: list[str] = field(default_factory=list)

    def good(self) -> int:
        return len(self.load.report().good())

    def refused(self) -> int:
        return len(self.load.report().failures())


def posting(port: int, token: str, *, rate_per_s: float = 15, connections: int = 4) -> Writer:
    """New posts."""
    plan = Plan(
        port, ("/api/posts",), method="POST", ok=CREATED, rate_per_s=rate_per_s, connections=connections
    )
    return _writer("posts", plan, {"title": "A load", "tags": ["load"]}, "content", token)


def changing(port: int, token: str) -> Writer:
    """Changes of the caller's own account."""
    plan = Plan(port, ("/api/users/me",), method="PATCH", rate_per_s=15, connections=4)
    return _writer("users", plan, {}, "lastName", token)


def registering(port: int) -> Writer:
    """New accounts: writes to auth and, through it, to users."""
    fields = {"password": PASSWORD, "firstName": "Ada", "lastName": "Lovelace"}
    plan = Plan(port, ("/api/auth/register",), method="POST", ok=CREATED, rate_per_s=4, connections=4)
    writer = _writer("auth", plan, fields, "email", "")
    writer.within_s = REGISTRATION_WITHIN_S
    return writer


def _writer(service: str, plan: Plan, fields: Mapping[str, object], unique: str, token: str) -> Writer:
    """`unique` is the field of the body that differs in each request."""
    acknowledged: list[str] = []

    def body() -> bytes:
        return json.dumps({**fields, unique: f"{uuid.uuid4().hex}@example.com"}).encode()

    def note(_: str, answer: bytes) -> bool:
        content = json.loads(answer)
        acknowledged.append(content.get("user", content.get("data", {}))["id"])
        return True

    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    plan = replace(plan, headers=headers, body=body, timeout_s=30.0, right=note)
    return Writer(service, Load(plan), acknowledged=acknowledged)


@contextlib.contextmanager
def running(writers: list[Writer]) -> Iterator[None]:
    """All of them at work, from the moment at which each has had good answers."""
    with contextlib.ExitStack() as stack:
        for each in writers:
            stack.enter_context(each.load)
        eventually(lambda: all(each.good() >= 8 for each in writers), 20)
        yield


def until_all_are_refused(writers: list[Writer], times: int = 5) -> None:
    before = [each.refused() for each in writers]
    eventually(lambda: all(each.refused() >= b + times for each, b in zip(writers, before, strict=True)), 30)


def until_all_are_served(writers: list[Writer], times: int = 8) -> None:
    before = [each.good() for each in writers]
    eventually(lambda: all(each.good() >= b + times for each, b in zip(writers, before, strict=True)), 30)


def assert_bounded(
    writers: list[Writer], fault_s: float, healthy_s: float, within_s: float = REFUSED_WITHIN_S
) -> None:
    """Every answer is good or a 503 that says when to come again, in time. Before the fault all were good, and soon after it."""
    for each in writers:
        report = each.load.report()
        counts = Counter((a.status, a.error, a.cut) for a in report.answers)
        assert set(counts) == {(next(iter(report.ok)), None, False), (503, None, False)}, report.summary()
        assert not report.since(0, fault_s - each.within_s).failures(), report.summary()
        refused = report.failures()
        assert all(a.retry_after.isdigit() for a in refused)
        assert max(a.took_s for a in refused) < max(within_s, each.within_s) * time_scale(), report.summary()
        assert report.recovered_within(healthy_s) < BACK_WITHIN_S * time_scale(), report.summary()
