"""The authors of a page, which posts asks users for by gRPC: auth, users and posts as they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.identity import Identity, Person
from tests.support.eventually import eventually
from tests.support.instances import RunningInstance

pytestmark = pytest.mark.shares("identity")


@pytest.fixture(scope="module")
def posts(world: Identity) -> Iterator[RunningInstance]:
    with world.further("posts", SERVICE_CLIENT_SECRET="secret-of-posts") as one:
        yield one
        one.kill()


@pytest.fixture(scope="module")
def people(world: Identity, posts: RunningInstance) -> list[Person]:
    """Two, who have written three posts."""
    two = [world.person(), world.person()]
    for person in (*two, two[0]):
        body = {"title": "t", "content": "c"}
        assert posts.call("POST", "/api/posts", json=body, token=person.access).status_code == 201
    return two


def page(posts: RunningInstance, **params: Any) -> dict[str, Any]:
    answer = posts.call("GET", "/api/posts", params={"limit": 50, **params})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def asked(posts: RunningInstance) -> float:
    """How often posts has asked users by gRPC."""
    lines = posts.get("/metrics").text.splitlines()
    counted = [line for line in lines if "service_upstream_calls_total" in line and "users-grpc" in line]
    return sum(float(line.rsplit(" ", 1)[1]) for line in counted)


def test_a_page_names_its_authors_by_one_question(
    world: Identity, posts: RunningInstance, people: list[Person]
) -> None:
    def named() -> dict[str, Any]:
        authors: dict[str, Any] = page(posts, include="authors")["authors"]
        return authors

    wanted = {person.id: {"username": person.email.partition("@")[0]} for person in people}
    # At first posts may not have heard of users yet.
    eventually(lambda: named() == wanted, 15)
    before = asked(posts)
    assert named() == wanted
    assert asked(posts) == before + 1
    assert "authors" not in page(posts)
    assert asked(posts) == before + 1
    assert posts.call("GET", "/api/posts?include=likes").status_code == 422


def test_without_users_a_page_comes_without_names(
    world: Identity, posts: RunningInstance, people: list[Person]
) -> None:
    with world.away(world.users):
        body = page(posts, include="authors")
        assert body["authors"] is None
        assert len(body["data"]) == 3
    eventually(lambda: page(posts, include="authors")["authors"], 30)
    assert "authors not named" in posts.events(), "and every line of its log is JSON"
