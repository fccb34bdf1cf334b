"""PostgreSQL in its container dies or stands still while it is written to through the edge.

These and more faults are in tests/resilience/test_postgres.py, where each instance is looked at by itself; here a container goes,
and its address with it.
"""

from __future__ import annotations

import contextlib
import time

import psycopg
import pytest

from tests.support.accounts import Account
from tests.support.container_fleet import ContainerFleet
from tests.support.eventually import eventually
from tests.support.postgres import crashed, frozen
from tests.support.writers import (
    CAUGHT_WITHIN_S,
    Writer,
    assert_bounded,
    changing,
    posting,
    registering,
    running,
    until_all_are_refused,
    until_all_are_served,
)

pytestmark = pytest.mark.needs_stack


class ContainedPostgres:
    """See `tests.support.postgres.Target`. Each role comes to its own database alone, as the services do."""

    def __init__(self, fleet: ContainerFleet) -> None:
        self._fleet = fleet

    def connect(self, database: str = "postgres") -> psycopg.Connection:
        return psycopg.connect(
            self._url(database, self._fleet.secret(f"postgres/{database}.password")), autocommit=True
        )

    def crash(self) -> None:
        self._fleet.container("postgres").kill()

    def start(self) -> None:
        self._fleet.container("postgres").start()
        eventually(lambda: self.connect().close() is None, 30)

    def freeze(self) -> None:
        self._fleet.container("postgres").pause()

    def thaw(self) -> None:
        self._fleet.container("postgres").unpause()

    def _url(self, name: str, password: str) -> str:
        host = self._fleet.address(self._fleet.container("postgres"), "database")
        return f"postgresql://{name}:{password}@{host or '192.0.2.1'}:5432/{name}?connect_timeout=3"


@pytest.fixture
def server(fleet: ContainerFleet) -> ContainedPostgres:
    return ContainedPostgres(fleet)


def all_writers(fleet: ContainerFleet, author: Account) -> list[Writer]:
    port, token = fleet.edge_port, author.token()
    return [posting(port, token), changing(port, token), registering(port)]


def assert_kept(server: ContainedPostgres, writers: list[Writer]) -> None:
    """Each acknowledged write is in its database."""
    tables = {"posts": "SELECT id FROM posts", "auth": "SELECT id FROM accounts WHERE active"}
    for each in writers:
        if each.service in tables:
            with contextlib.closing(server.connect(each.service)) as connection:
                kept = {row[0] for row in connection.execute(tables[each.service])}
            assert len(each.acknowledged) == each.good() > 0
            assert not set(each.acknowledged) - kept, f"{each.service}: acknowledged and lost"


def assert_untouched(fleet: ContainerFleet, before: dict[str, int]) -> None:
    """No instance was restarted meanwhile, and all are in their places."""
    fleet.wait_healthy(15)
    assert pids(fleet) == before


def pids(fleet: ContainerFleet) -> dict[str, int]:
    return {
        member.id: member.pid for service in ("auth", "users", "posts") for member in fleet.instances(service)
    }


def test_killed_postgres_loses_no_acknowledged_write_and_all_write_again_within_5_s(
    fleet: ContainerFleet, account: Account, server: ContainedPostgres
) -> None:
    writers, before = all_writers(fleet, account), pids(fleet)
    with running(writers):
        fault_s = time.monotonic()
        with crashed(server):
            until_all_are_refused(writers)
        back_s = time.monotonic()
        until_all_are_served(writers)
    assert_bounded(writers, fault_s, back_s)
    assert_kept(server, writers)
    assert_untouched(fleet, before)


def test_paused_postgres_holds_no_request_for_long(
    fleet: ContainerFleet, account: Account, server: ContainedPostgres
) -> None:
    writers, before = all_writers(fleet, account), pids(fleet)
    with running(writers):
        fault_s = time.monotonic()
        with frozen(server):
            until_all_are_refused(writers)
        woken_s = time.monotonic()
        until_all_are_served(writers)
    assert_bounded(writers, fault_s, woken_s, CAUGHT_WITHIN_S)
    assert_kept(server, writers)
    assert_untouched(fleet, before)
