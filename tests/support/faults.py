"""What the resilience tests share: the load they run under, guests in a service, and the proof that a fault cost nothing."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

from tests.support.accounts import Account
from tests.support.actor import Actor
from tests.support.eventually import eventually, time_scale
from tests.support.fleet import Fleet, Member
from tests.support.load import Load, Plan, Report

# Out of rotation after the first failed request.
OUT_OF_ROTATION_S = 0.1
_POLL_S = 0.003


def steady_gets(fleet: Fleet, account: Account, *, rate_per_s: float = 50) -> Load:
    """GETs of the account's own record: checked by token at the edge and in the instance, and no cache can answer them."""
    plan = Plan(
        fleet.edge_port,
        (f"/api/users/{account.id}",),
        headers=account.headers(),
        connections=8,
        rate_per_s=rate_per_s,
    )
    return Load(plan)


def steady_posts(fleet: Fleet, account: Account, *, rate_per_s: float = 25) -> Load:
    """New posts, which must not be sent twice."""
    plan = Plan(
        fleet.edge_port,
        ("/api/posts",),
        method="POST",
        headers=account.headers() | {"Content-Type": "application/json"},
        body=json.dumps({"title": "A load", "content": "of many posts", "tags": ["load"]}).encode(),
        connections=4,
        rate_per_s=rate_per_s,
        ok=frozenset({201}),
    )
    return Load(plan)


def serving(fleet: Fleet, account: Account, service: str, path: str) -> Member:
    """The instance that answers this client: with balance `source` always the same one."""
    name = account.ask("GET", path).headers["x-served-by"]
    return next(member for member in fleet.instances(service) if member.id == name)


def until_served_by(load: Load, member: Member) -> None:
    """Returns once the load has had an answer of this instance that was asked for after the call."""
    since_s = time.monotonic()
    eventually(lambda: load.report().since(since_s).served()[member.id] > 0, 10)


def assert_nothing_lost(
    fleet: Fleet, report: Report, *, killed: Member | None = None, fault_s: float = 0.0
) -> None:
    """No GET failed. An answer torn by the SIGKILL of `killed` is no failure, once it is shown to be that:

    it began, it came from the killed instance, within a second of the kill, and the edge logged that the
    server broke off while its data was under way.
    """
    assert report.answers, "the load sent nothing"
    assert not report.failures(), report.summary()
    if killed is None:
        assert not report.cuts(), report.summary()
        return
    for cut in report.cuts():
        assert cut.status == 200, f"torn before its head was whole: {cut}"
        assert cut.served_by == killed.id, f"torn by another instance than {killed.id}: {cut}"
        assert 0 <= cut.ended_s - fault_s < 1.0 * time_scale(), f"torn at another time than the kill: {cut}"
        lines = eventually(lambda id_=cut.request_id: edge_log_of(fleet, id_), 5)
        assert lines[0]["ended"].startswith("SD"), lines


def edge_log_of(fleet: Fleet, request_id: str) -> list[dict[str, Any]]:
    """The edge's log lines of one request."""
    return [line for line in fleet.edge_log() if line.get("request_id") == request_id]


class Rotation:
    """Watches one server at the edge: when its first error was counted, and when it was taken out, in monotonic seconds."""

    def __init__(self, fleet: Fleet, member: Member) -> None:
        self._fleet = fleet
        self._member = member
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.first_error_s: float | None = None
        self.out_s: float | None = None

    def _watch(self) -> None:
        before: int | None = None
        while not self._stop.wait(_POLL_S):
            now = time.monotonic()
            found = [s for s in self._fleet.edge_servers(self._member.service) if s.name == self._member.id]
            errors = found[0].errors if found else 0
            before = errors if before is None else before
            if errors > before and self.first_error_s is None:
                self.first_error_s = now
            if (not found or not found[0].up) and self.out_s is None:
                self.out_s = now
                return

    def __enter__(self) -> Rotation:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(5)

    def assert_left_in_time(self) -> None:
        """It left, and at most 100 ms after the first error (which a poll may have seen together with the leaving)."""
        assert self.out_s is not None, f"{self._member.id} was never taken out of rotation"
        took_s = 0.0 if self.first_error_s is None else self.out_s - self.first_error_s
        assert took_s <= OUT_OF_ROTATION_S * time_scale(), (
            f"out of rotation {took_s:.3f} s after the first error"
        )


def passing(fleet: Fleet, service: str) -> set[str]:
    """The ids of the service's instances that pass in Consul."""
    return {
        entry["Service"]["ID"] for entry in fleet.consul("GET", f"/v1/health/service/{service}?passing=1")
    }


def route_of(fleet: Fleet, service: str) -> dict[str, str]:
    """The metadata with which the service's own instances are registered."""
    return dict(fleet.consul("GET", f"/v1/catalog/service/{service}")[0]["ServiceMeta"])


def register(fleet: Fleet, one: Actor, meta: dict[str, str], *, token: str | None = None) -> None:
    """Register an actor with a check that passes until the test says otherwise."""
    body = {
        "ID": one.instance_id,
        "Name": one.service,
        "Address": one.host,
        "Port": one.port,
        "Meta": meta,
        "Check": {
            "CheckID": f"service:{one.instance_id}",
            "Name": "alive",
            "TTL": "3600s",
            "Status": "passing",
        },
    }
    fleet.consul("PUT", "/v1/agent/service/register", body, token=token)


def deregister(fleet: Fleet, instance_id: str) -> None:
    """Take a registration out; none there is well as well."""
    with contextlib.suppress(OSError):
        fleet.consul("PUT", f"/v1/agent/service/deregister/{instance_id}")


@contextlib.contextmanager
def guest(fleet: Fleet, one: Actor, meta: dict[str, str] | None = None) -> Iterator[Actor]:
    """The actor registered beside the service's own instances, with the same route, and out again in the end."""
    register(fleet, one, route_of(fleet, one.service) if meta is None else meta)
    try:
        yield one
    finally:
        deregister(fleet, one.instance_id)
        try:
            # It hangs up at once, as a process that ends does: what it is still asked would be torn.
            eventually(lambda: all(s.name != one.instance_id for s in fleet.edge_servers(one.service)), 10)
        finally:
            one.close()


def edge_holds(fleet: Fleet, service: str, instance_id: str, *, up: bool) -> bool:
    """Whether the edge knows the instance, and has it up (or not)."""
    return any(s.name == instance_id and s.up == up for s in fleet.edge_servers(service))
