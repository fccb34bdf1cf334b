"""auth, users and posts on PostgreSQL: what depends on its own locking, and what becomes of writes while it fails.

What was acknowledged is kept; what cannot be served is refused in time; and afterwards everything is as before, without a
restart of any instance.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
import requests

from services.posts.events import PostPublished
from tests.integration.identity import PASSWORD, Identity, Person, identity, problem
from tests.support.databases import Backend
from tests.support.eventually import eventually, time_scale
from tests.support.happened import deliver
from tests.support.instances import RunningInstance
from tests.support.load import Load, Plan
from tests.support.postgres import (
    PostgresServer,
    connections_taken,
    crashed,
    frozen,
    postgres,
    replica,
    table_locked,
)
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

pytestmark = pytest.mark.long
SERVICES = ("auth", "users", "posts")
# Pools of all instances, and a few for migrations, tests and faults.
CONNECTIONS = 70
# A request that is not caught in a statement waits for a sign of life, and then for a new connection.
FROZEN_WITHIN_S = 5.0


@dataclass
class Rig:
    """Two instances of each service on one server, on databases of their own."""

    server: PostgresServer
    people: Identity
    posts: list[RunningInstance]
    author: Person

    @property
    def instances(self) -> list[RunningInstance]:
        return [*self.people.auth, *self.people.users, *self.posts]

    def database(self, service: str) -> str:
        """The name of its database."""
        return self.people.databases[service].rpartition("/")[2]

    def rows(self, service: str, query: str) -> list[tuple]:
        with contextlib.closing(self.server.connect(self.database(service))) as connection:
            return connection.execute(query).fetchall()


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp("postgres")
    with contextlib.ExitStack() as stack:
        # One that keeps its word: what it has acknowledged is on the disk.
        server = stack.enter_context(postgres(durable=True, max_connections=CONNECTIONS))
        databases = Backend(server).databases(*SERVICES)
        people = stack.enter_context(identity(folder, databases=databases))
        posts = [
            stack.enter_context(people.further("posts", SERVICE_CLIENT_SECRET="secret-of-posts"))
            for _ in range(2)
        ]
        yield Rig(server, people, posts, people.person())
        for each in posts:
            each.kill()


def all_writers(rig: Rig) -> list[Writer]:
    token = rig.author.access
    return [
        *(posting(each.port, token) for each in rig.posts),
        *(changing(each.port, token) for each in rig.people.users),
        *(registering(each.port) for each in rig.people.auth),
    ]


def assert_kept(rig: Rig, writers: list[Writer]) -> None:
    """Each acknowledged write is in its database."""
    kept = {
        "/api/posts": {row[0] for row in rig.rows("posts", "SELECT id FROM posts")},
        "/api/auth/register": {row[0] for row in rig.rows("auth", "SELECT id FROM accounts WHERE active")}
        & {row[0] for row in rig.rows("users", "SELECT id FROM users")},
    }
    for each in writers:
        path = each.load.plan.paths[0]
        if path in kept:
            assert len(each.acknowledged) == each.good() > 0
            assert not set(each.acknowledged) - kept[path], f"{path}: acknowledged and lost"


def version(rig: Rig) -> int:
    """It grows by one with each change of the author's account."""
    return rig.rows("users", f"SELECT version FROM users WHERE id = '{rig.author.id}'")[0][0]


def assert_alive(instances: list[RunningInstance], within_s: float = 1.0) -> None:
    """Live and ready, and in time: Consul would otherwise take them out, and with them what they can still do."""
    for each in instances:
        for path in ("/health/live", "/health/ready"):
            begun = time.monotonic()
            assert each.call("GET", path, client=requests.Session()).status_code == 200
            assert time.monotonic() - begun < within_s * time_scale(), f"{each.service}: {path}"


def assert_problems(rig: Rig) -> None:
    """What a client reads now, from each instance."""
    for each in rig.posts:
        problem(each.call("GET", "/api/posts", client=requests.Session()), 503)
    for each in rig.people.auth:
        body = {"email": rig.author.email, "password": PASSWORD}
        problem(each.call("POST", "/api/auth/login", json=body, client=requests.Session()), 503)


# -- it works


def test_accounts_really_live_in_postgresql(rig: Rig) -> None:
    for service, table in (("auth", "accounts"), ("users", "users")):
        query = f"SELECT email FROM {table} WHERE id = '{rig.author.id}'"
        assert rig.rows(service, query) == [(rig.author.email,)]
    assert not list(rig.people.folder.glob("*.db"))


def test_of_simultaneous_registrations_of_one_address_one_succeeds(rig: Rig) -> None:
    for _ in range(5):
        assert rig.people.register_at_once(f"{uuid.uuid4().hex}@example.com", 4) == [201, 409, 409, 409]


def test_refresh_reuse_lockout_and_rotation_hold_across_instances(rig: Rig) -> None:
    world = rig.people
    admin = world.admin()
    body = {"refresh_token": admin.refresh}
    second = world.auth[0].call("POST", "/api/auth/refresh", json=body).json()["refresh_token"]
    problem(world.auth[1].call("POST", "/api/auth/refresh", json=body), 401)
    problem(world.auth[0].call("POST", "/api/auth/refresh", json={"refresh_token": second}), 401)
    statuses = [
        world.login(admin.email, "wrong password", source="203.0.113.70", on=n % 2).status_code
        for n in range(7)
    ]
    assert statuses[:5] == [401] * 5
    assert 429 in statuses
    assert world.login(admin.email).status_code == 200
    rotated = world.auth[1].call("POST", "/api/auth/keys/rotate", token=admin.access)
    assert rotated.status_code == 201, rotated.text


def test_change_count_list_and_delete(rig: Rig) -> None:
    world = rig.people
    person, admin = world.person(), world.admin()
    where = f"/api/users/{person.id}"
    changed = world.users[0].call("PATCH", where, json={"lastName": "King"}, token=person.access)
    assert changed.status_code == 200
    post = PostPublished(
        postId=uuid.uuid4().hex, authorId=person.id, title="t", publishedAt=datetime.now(UTC)
    )
    deliver(world.state, post)

    def read() -> dict[str, Any]:
        return dict(world.users[1].call("GET", where, token=person.access).json()["data"])

    eventually(lambda: (read()["lastName"], read()["postCount"]) == ("King", 1), 10)
    page = world.users[0].call("GET", "/api/users", params={"limit": 100}, token=admin.access)
    assert person.id in {user["id"] for user in page.json()["data"]}
    assert world.users[0].call("DELETE", where, token=person.access).status_code == 204
    assert world.users[1].call("GET", where, token=person.access).status_code in (401, 404)
    refresh = {"refresh_token": person.refresh}
    eventually(
        lambda: world.auth[1].call("POST", "/api/auth/refresh", json=refresh).status_code == 401, 10, 1.0
    )


def test_text_that_postgresql_does_not_take_is_refused_not_an_error(rig: Rig) -> None:
    world, person = rig.people, rig.author
    names = {"firstName": "A", "lastName": "B"}
    bodies = {
        "/api/auth/login": {"email": "a\0@example.com", "password": "x"},
        "/api/auth/token": {"grant_type": "api_key", "api_key": "sk-\0abcdefgh"},
        "/api/auth/refresh": {"refresh_token": "\0"},
        "/api/auth/register": {"email": "a@example.com\0", "password": PASSWORD, **names},
    }
    for path, body in bodies.items():
        problem(world.auth[0].call("POST", path, json=body), 422)
    problem(world.auth[0].call("DELETE", "/api/auth/api-keys/%00", token=person.access), 422)
    problem(world.users[0].call("GET", "/api/users/%00", token=world.admin().access), 404)
    change = {"firstName": "a\0b"}
    problem(world.users[0].call("PATCH", f"/api/users/{person.id}", json=change, token=person.access), 422)
    login = {"email": person.email, "password": "\0"}
    problem(world.auth[0].call("POST", "/api/auth/login", json=login), 401)


# -- it fails


def test_immediate_restart_loses_no_acknowledged_write_and_all_write_again_within_5_s(rig: Rig) -> None:
    writers, before = all_writers(rig), version(rig)
    with running(writers):
        fault_s = time.monotonic()
        with crashed(rig.server):
            until_all_are_refused(writers)
            assert_problems(rig)
            assert_alive(rig.instances)
        back_s = time.monotonic()
        until_all_are_served(writers)
    assert_bounded(writers, fault_s, back_s)
    assert_kept(rig, writers)
    changes = sum(len(w.acknowledged) for w in writers if w.service == "users")
    assert version(rig) - before >= changes > 0
    # Also the counts, which follow by events.
    eventually(lambda: counted_posts(rig) == rig.rows("posts", "SELECT count(*) FROM posts")[0][0], 30)


def counted_posts(rig: Rig) -> int:
    """How many posts the author has, by the profile."""
    answer = rig.people.users[0].call("GET", "/api/users/me", token=rig.author.access)
    return int(answer.json()["data"]["postCount"])


def test_server_that_stands_still_holds_no_request_for_long(rig: Rig) -> None:
    writers = all_writers(rig)
    with running(writers):
        fault_s = time.monotonic()
        with frozen(rig.server):
            frozen_s = time.monotonic()
            until_all_are_refused(writers)
            assert_problems(rig)
            assert_alive(rig.instances)
        woken_s = time.monotonic()
        until_all_are_served(writers)
    assert_bounded(writers, fault_s, woken_s, CAUGHT_WITHIN_S)
    later = [a for each in writers for a in each.load.report().failures() if a.sent_s > frozen_s]
    assert max(a.took_s for a in later) < FROZEN_WITHIN_S * time_scale()
    assert_kept(rig, writers)


def test_replica_is_read_and_writes_are_503s_until_it_is_promoted(rig: Rig) -> None:
    writers = all_writers(rig)
    reads = [Load(Plan(each.port, ("/api/posts",), connections=2, rate_per_s=20)) for each in rig.posts]
    with running(writers):
        fault_s = time.monotonic()
        with replica(rig.server):
            for each in rig.posts:
                eventually(lambda each=each: each.call("GET", "/api/posts").status_code == 200, 5)
            with reads[0], reads[1]:
                until_all_are_refused(writers)
                assert_alive(rig.instances)
        back_s = time.monotonic()
        until_all_are_served(writers)
    assert_bounded(writers, fault_s, back_s)
    assert_kept(rig, writers)
    for load in reads:
        assert load.report().good()
        assert not load.report().failures(), load.report().summary()


def test_exhausted_connections_are_503_in_time(rig: Rig) -> None:
    writers = all_writers(rig)
    with running(writers):
        fault_s = time.monotonic()
        with connections_taken(rig.server) as sessions_of_others:
            until_all_are_refused(writers)
            assert_problems(rig)
            assert_alive(rig.instances)
            assert sessions_of_others() == 0
        free_s = time.monotonic()
        until_all_are_served(writers)
    assert_bounded(writers, fault_s, free_s)
    assert_kept(rig, writers)


def bearer(person: Person) -> dict[str, str]:
    return {"Authorization": f"Bearer {person.access}"}


def test_lock_on_a_table_costs_only_requests_that_need_it(rig: Rig) -> None:
    """More requests want it than an instance has threads. All of them get a 503 in time, and the others do not notice."""
    writers = [posting(each.port, rig.author.access, connections=16, rate_per_s=30) for each in rig.posts]
    with running(writers):
        fault_s = time.monotonic()
        with table_locked(rig.server, rig.database("posts"), "post_tags"):
            assert_alive_until(rig.posts, lambda: all(each.refused() >= 40 for each in writers))
        free_s = time.monotonic()
        until_all_are_served(writers)
    assert_bounded(writers, fault_s, free_s)
    assert_kept(rig, writers)


def test_lock_on_a_table_costs_only_requests_that_read_it(rig: Rig) -> None:
    """Many ask for the same at once, more than an instance has threads."""
    reader = rig.people.person()
    readers = [
        Load(Plan(each.port, ("/api/users/me",), headers=bearer(reader), connections=16, rate_per_s=60))
        for each in rig.people.users
    ]
    with readers[0], readers[1]:
        eventually(lambda: all(len(load.report().good()) >= 40 for load in readers), 20)
        fault_s = time.monotonic()
        with table_locked(rig.server, rig.database("users"), "users"):
            assert_alive_until(
                rig.people.users, lambda: all(len(load.report().failures()) >= 40 for load in readers)
            )
        free_s = time.monotonic()
        eventually(lambda: all(len(load.report().since(free_s).good()) >= 40 for load in readers), 20)
    for each, load in zip(rig.people.users, readers, strict=True):
        assert_bounded([Writer(each.service, load)], fault_s, free_s)


def assert_alive_until(instances: list[RunningInstance], enough: Callable[[], bool]) -> None:
    """Not by `eventually`, to which an instance that is not alive would be one that is not alive yet."""
    until = time.monotonic() + 30 * time_scale()
    while not enough():
        assert time.monotonic() < until, "not enough within 30 s"
        assert_alive(instances)
        time.sleep(0.1)
