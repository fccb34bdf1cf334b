"""users as its callers see it: instances on one database, beside real auth and Consul."""

from __future__ import annotations

import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest
import requests

from services.posts.events import PostDeleted, PostPublished
from tests.integration.identity import Identity, Person, problem
from tests.support.eventually import eventually, time_scale
from tests.support.happened import deliver

pytestmark = pytest.mark.shares("identity")


@pytest.fixture(scope="module")
def admin(world: Identity) -> Person:
    return world.admin()


def path(person: Person) -> str:
    return f"/api/users/{person.id}"


def test_a_user_reads_the_own_account_in_the_shape_that_others_rely_on(world: Identity) -> None:
    person = world.person()
    for where in (path(person), "/api/users/me"):
        answer = world.users[0].call("GET", where, token=person.access)
        assert answer.status_code == 200, answer.text
        data = answer.json()["data"]
        assert set(data) == {
            "id", "email", "username", "firstName", "lastName", "postCount", "shown", "createdAt",
            "updatedAt",
        }  # fmt: skip
        assert (data["id"], data["email"], data["postCount"]) == (person.id, person.email, 0)
        assert data["username"] == person.email.partition("@")[0]
        assert "private" in answer.headers["Cache-Control"]


def test_oneself_takes_no_method_of_any_account(world: Identity) -> None:
    named = world.users[0].call("OPTIONS", "/api/users/me").headers["Allow"]
    assert set(named.split(", ")) == {"GET", "HEAD", "OPTIONS", "PATCH"}


def test_a_user_learns_nothing_about_others_not_even_whether_they_exist(world: Identity) -> None:
    person, other = world.person(), world.person()
    for method, body in (("GET", None), ("PATCH", {"firstName": "X"}), ("DELETE", None)):
        existing = problem(world.users[0].call(method, path(other), json=body, token=person.access), 403)
        ghost = f"/api/users/{uuid.uuid4().hex}"
        missing = problem(world.users[0].call(method, ghost, json=body, token=person.access), 403)
        assert existing["detail"] == missing["detail"]
    problem(world.users[0].call("GET", "/api/users", token=person.access), 403)
    assert world.users[0].call("GET", path(other), token=other.access).json()["data"]["firstName"] == "Ada"


def test_without_a_token_or_with_an_edges_word_alone_nothing_is_read(world: Identity, admin: Person) -> None:
    forged = {"X-Auth-Subject": admin.id, "X-Auth-Scope": "admin"}
    for where in (path(admin), "/api/users/me", "/api/users"):
        problem(world.users[0].call("GET", where), 401)
        problem(world.users[0].call("GET", where, headers=forged), 401)
        problem(world.users[0].call("GET", where, token="a.b.c"), 401)


def test_an_administrator_and_a_service_read_all(world: Identity, admin: Person) -> None:
    person = world.person()
    for token in (admin.access, world.service_token("posts")):
        assert world.users[0].call("GET", path(person), token=token).json()["data"]["id"] == person.id
    problem(world.users[0].call("GET", f"/api/users/{uuid.uuid4().hex}", token=admin.access), 404)
    for odd in ("1", "x" * 32, "..%2f..", "a" * 300):
        problem(world.users[0].call("GET", f"/api/users/{odd}", token=admin.access), 404)
    problem(world.users[0].call("PATCH", path(person), json={}, token=world.service_token("posts")), 403)


def test_the_list_has_everyone_once_page_by_page(world: Identity, admin: Person) -> None:
    new = {world.person().id for _ in range(5)}
    seen: list[str] = []
    cursor = None
    for _ in range(200):
        params = {"limit": 3, **({"cursor": cursor} if cursor else {})}
        page = world.users[0].call("GET", "/api/users", params=params, token=admin.access).json()
        seen += [user["id"] for user in page["data"]]
        cursor = page["page"]["nextCursor"]
        if cursor is None:
            break
    assert len(seen) == len(set(seen))
    assert new <= set(seen)
    for bad in ({"limit": 0}, {"limit": 101}, {"limit": "x"}):
        problem(world.users[0].call("GET", "/api/users", params=bad, token=admin.access), 422)
    for cursor in ("rubbish", "eyJhIjoxfQ", "%00", "A" * 1000):
        problem(world.users[0].call("GET", "/api/users", params={"cursor": cursor}, token=admin.access), 400)


def test_a_change_is_seen_by_the_next_read_on_every_instance(world: Identity) -> None:
    person = world.person()
    for turn in range(10):
        for each in world.users:
            each.call("GET", path(person), token=person.access)
        writer, reader = world.users[turn % 2], world.users[(turn + 1) % 2]
        changed = writer.call("PATCH", path(person), json={"firstName": f"N{turn}"}, token=person.access)
        assert changed.json()["data"]["firstName"] == f"N{turn}"
        read = reader.call("GET", path(person), token=person.access)
        assert read.json()["data"]["firstName"] == f"N{turn}", turn


def test_entity_tags_save_a_read_and_guard_a_change(world: Identity) -> None:
    person = world.person()
    tag = world.users[0].call("GET", path(person), token=person.access).headers["ETag"]
    same = world.users[1].call("GET", path(person), token=person.access, headers={"If-None-Match": tag})
    assert (same.status_code, same.content) == (304, b"")
    guard = {"If-Match": tag}
    body = {"firstName": "Augusta"}
    first = world.users[0].call("PATCH", path(person), json=body, token=person.access, headers=guard)
    assert first.status_code == 200
    assert first.headers["ETag"] != tag
    problem(world.users[1].call("PATCH", path(person), json=body, token=person.access, headers=guard), 412)
    problem(world.users[1].call("DELETE", path(person), token=person.access, headers=guard), 412)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"email": "other@example.com"},
        {"postCount": 99},
        {"id": "0" * 32},
        {"firstName": ""},
        {"username": "A b"},
        {"username": "x"},
        {"firstName": ["a"]},
    ],
)
def test_what_may_not_change_is_refused(world: Identity, admin: Person, body: dict[str, object]) -> None:
    problem(world.users[0].call("PATCH", path(admin), json=body, token=admin.access), 422)


def test_a_username_is_taken_once_also_at_the_same_moment(world: Identity) -> None:
    people = [world.person() for _ in range(4)]
    name = f"u{uuid.uuid4().hex[:12]}"

    def take(number: int) -> int:
        return requests.patch(
            f"{world.users[number % 2].url}{path(people[number])}",
            json={"username": name},
            headers={"Authorization": f"Bearer {people[number].access}"},
            timeout=10,
        ).status_code

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(take, range(4))) == [200, 409, 409, 409]


def test_count_of_posts_follows_events_however_often_and_in_whatever_order_they_come(world: Identity) -> None:
    person, other = world.person(), world.person()
    at = datetime.now(UTC)

    def published(post: str, author: str = person.id) -> PostPublished:
        return PostPublished(postId=post, authorId=author, title="t", publishedAt=at)

    def deleted(post: str) -> PostDeleted:
        return PostDeleted(postId=post, authorId=person.id, deletedAt=at)

    def shown(who: Person) -> int:
        return int(world.users[1].call("GET", path(who), token=who.access).json()["data"]["postCount"])

    a, b, c = (uuid.uuid4().hex for _ in range(3))
    deliver(world.state, published(a), published(a), deleted(b), published(c), published(c))
    deliver(
        world.state, published(b), deleted(c), deleted(c), published(c), published(uuid.uuid4().hex, "nobody")
    )
    deliver(world.state, published(uuid.uuid4().hex, other.id))
    eventually(lambda: shown(other) == 1, 10)
    assert shown(person) == 1


def test_others_see_of_a_profile_what_its_owner_shows(world: Identity) -> None:
    person, other = world.person(), world.person()
    where = f"{path(person)}/profile"

    def seen() -> dict[str, Any]:
        answer = world.users[1].call("GET", where, token=other.access)
        assert answer.status_code == 200, answer.text
        return dict(answer.json()["data"])

    name = person.email.partition("@")[0]
    assert seen() == {"id": person.id, "username": name}
    change = {"shown": ["postCount", "firstName", "firstName"]}
    answer = world.users[0].call("PATCH", path(person), json=change, token=person.access)
    assert answer.json()["data"]["shown"] == ["firstName", "postCount"]
    assert seen() == {"id": person.id, "username": name, "firstName": "Ada", "postCount": 0}
    world.users[0].call("PATCH", path(person), json={"shown": []}, token=person.access)
    assert seen() == {"id": person.id, "username": name}
    for wrong in ({"shown": ["email"]}, {"shown": "firstName"}, {"shown": [1]}):
        problem(world.users[0].call("PATCH", path(person), json=wrong, token=person.access), 422)
    problem(world.users[0].call("GET", where), 401)
    problem(world.users[0].call("GET", f"/api/users/{uuid.uuid4().hex}/profile", token=other.access), 404)


def test_accounts_are_opened_by_auth_only(world: Identity, admin: Person) -> None:
    body = {"id": uuid.uuid4().hex, "email": "x@example.com", "firstName": "X", "lastName": "Y"}
    for token in (None, admin.access, world.service_token("posts")):
        answer = world.users[0].call("POST", "/internal/users/accounts", json=body, token=token)
        problem(answer, 401 if token is None else 403)


def test_a_deleted_account_is_gone_everywhere_and_its_address_free_again(world: Identity) -> None:
    person = world.person()
    for each in world.users:
        each.call("GET", path(person), token=person.access)
    assert world.users[0].call("DELETE", path(person), token=person.access).status_code == 204
    assert world.users[1].call("GET", path(person), token=person.access).status_code in (401, 404)
    eventually(
        lambda: world.login(person.email, source="192.0.2.44").status_code == 401, within_s=5, every_s=0.3
    )
    refresh = {"refresh_token": person.refresh}
    problem(world.auth[0].call("POST", "/api/auth/refresh", json=refresh), 401)
    for each, read in (*((one, path(person)) for one in world.users), (world.auth[1], "/api/auth/api-keys")):
        eventually(
            lambda each=each, read=read: each.call("GET", read, token=person.access).status_code == 401,
            within_s=5,
        )
    assert world.register(person.email).status_code == 201


def test_an_administrator_deletes_others(world: Identity, admin: Person) -> None:
    person = world.person()
    assert world.users[0].call("DELETE", path(person), token=admin.access).status_code == 204
    problem(world.users[0].call("GET", path(person), token=admin.access), 404)


@pytest.mark.long
def test_auth_hears_of_a_deletion_once_it_is_back(world: Identity) -> None:
    person = world.person()
    with world.away(world.auth):
        started = time.monotonic()
        assert world.users[0].call("DELETE", path(person), token=person.access).status_code == 204
        assert time.monotonic() - started < 2 * time_scale(), "the caller does not wait for auth"

    def refused() -> bool:
        body = {"refresh_token": person.refresh}
        status = world.auth[0].call("POST", "/api/auth/refresh", json=body)
        person.refresh = status.json().get("refresh_token", person.refresh)
        return status.status_code == 401

    eventually(refused, within_s=15, every_s=0.3)
    assert world.login(person.email, source="192.0.2.45").status_code == 401
