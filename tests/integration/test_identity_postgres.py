"""auth and users on PostgreSQL: what depends on the database's own locking, on real instances."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
import requests

from tests.integration.identity import PASSWORD, Identity, identity, problem
from tests.support.databases import Backend, on_postgresql

pytestmark = on_postgresql


@pytest.fixture(scope="module")
def world(backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Identity]:
    databases = backend.databases("auth", "users")
    with identity(tmp_path_factory.mktemp("identity"), databases=databases) as running:
        yield running


def test_accounts_really_live_in_postgresql(world: Identity) -> None:
    person = world.person()
    for service, table in (("auth", "accounts"), ("users", "users")):
        with psycopg.connect(world.databases[service]) as connection:
            found = connection.execute(f"SELECT email FROM {table} WHERE id = %s", (person.id,)).fetchone()
        assert found == (person.email,)
    assert not list(world.folder.glob("*.db"))


def test_of_simultaneous_registrations_of_one_address_one_succeeds(world: Identity) -> None:
    def register(email: str, number: int) -> int:
        body = {"email": email, "password": PASSWORD, "firstName": "A", "lastName": "B"}
        return requests.post(
            f"{world.auth[number % 2].url}/api/auth/register", json=body, timeout=15
        ).status_code

    for _ in range(5):
        email = f"{uuid.uuid4().hex}@example.com"
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda n, e=email: register(e, n), range(4)))
        assert sorted(answers) == [201, 409, 409, 409]


def test_refresh_reuse_lockout_and_rotation_hold_across_instances(world: Identity) -> None:
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


def test_change_count_list_and_delete(world: Identity) -> None:
    person, admin = world.person(), world.admin()
    where = f"/api/users/{person.id}"
    world.users[1].call("GET", where, token=person.access)
    assert (
        world.users[0].call("PATCH", where, json={"lastName": "King"}, token=person.access).status_code == 200
    )
    told = world.users[0].call(
        "POST",
        f"/internal/users/{person.id}/post-count",
        json={"count": 2, "version": 1_800_000_000_000_000},
        token=world.service_token("posts"),
    )
    assert told.status_code == 200
    data = world.users[1].call("GET", where, token=person.access).json()["data"]
    assert (data["lastName"], data["postCount"]) == ("King", 2)
    listed = (
        world.users[0].call("GET", "/api/users", params={"limit": 100}, token=admin.access).json()["data"]
    )
    assert person.id in {user["id"] for user in listed}
    assert world.users[0].call("DELETE", where, token=person.access).status_code == 204
    problem(world.users[1].call("GET", where, token=person.access), 404)
    problem(world.auth[1].call("POST", "/api/auth/refresh", json={"refresh_token": person.refresh}), 401)


def test_text_that_postgresql_does_not_take_is_refused_not_an_error(world: Identity) -> None:
    person = world.person()
    bodies = {
        "/api/auth/login": {"email": "a\0@example.com", "password": "x"},
        "/api/auth/token": {"grant_type": "api_key", "api_key": "sk-\0abcdefgh"},
        "/api/auth/refresh": {"refresh_token": "\0"},
        "/api/auth/register": {
            "email": "a@example.com\0",
            "password": PASSWORD,
            "firstName": "A",
            "lastName": "B",
        },
    }
    for path, body in bodies.items():
        problem(world.auth[0].call("POST", path, json=body), 422)
    problem(world.auth[0].call("DELETE", "/api/auth/api-keys/%00", token=person.access), 422)
    problem(world.users[0].call("GET", "/api/users/%00", token=world.admin().access), 404)
    change = {"firstName": "a\0b"}
    problem(world.users[0].call("PATCH", f"/api/users/{person.id}", json=change, token=person.access), 422)
    login = {"email": person.email, "password": "\0"}
    problem(world.auth[0].call("POST", "/api/auth/login", json=login), 401)
