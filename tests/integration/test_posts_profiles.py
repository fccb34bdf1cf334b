"""posts, users and auth together, all real: the profile of an author shows how many posts he has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.identity import Identity, Person, identity
from tests.support.databases import Backend
from tests.support.eventually import eventually
from tests.support.instances import RunningInstance


@pytest.fixture(scope="module")
def people(backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Identity]:
    folder: Path = tmp_path_factory.mktemp("people")
    with identity(folder, instances=1, databases=backend.databases("auth", "users", "posts")) as made:
        yield made


@pytest.fixture(scope="module")
def blog(people: Identity) -> Iterator[RunningInstance]:
    with people.further("posts", SERVICE_CLIENT_SECRET="secret-of-posts") as posts:
        # The first post finds auth, users and a token for the way; from then on each count is delivered at once.
        warm = people.person()
        publish(posts, warm)
        eventually(lambda: post_count(people, warm) == 1, 20)
        yield posts


def publish(posts: RunningInstance, person: Person) -> str:
    body = {"title": "t", "content": "c", "tags": ["x"]}
    answer = posts.call("POST", "/api/posts", json=body, token=person.access)
    assert answer.status_code == 201, answer.text
    assert answer.json()["data"]["authorId"] == person.id
    location: str = answer.headers["Location"]
    return location


def post_count(people: Identity, person: Person) -> int:
    answer = people.users[0].call("GET", f"/api/users/{person.id}", token=person.access)
    assert answer.status_code == 200, answer.text
    count: int = answer.json()["data"]["postCount"]
    return count


def test_profile_read_right_after_a_post_shows_it(people: Identity, blog: RunningInstance) -> None:
    person = people.person()
    assert post_count(people, person) == 0
    first = publish(blog, person)
    assert post_count(people, person) == 1
    publish(blog, person)
    assert post_count(people, person) == 2
    assert blog.call("DELETE", first, token=person.access).status_code == 204
    assert post_count(people, person) == 1


def test_count_follows_when_users_come_back(people: Identity, blog: RunningInstance) -> None:
    person = people.person()
    people.users[0].kill()
    try:
        publish(blog, person)
    finally:
        people.users[0].start()
    eventually(lambda: post_count(people, person) == 1, 40)


def test_only_posts_may_set_a_count(people: Identity) -> None:
    person = people.person()
    path = f"/internal/users/{person.id}/post-count"
    body = {"count": 10**6, "version": 2**62}
    other = people.service_token("users")
    for token, status in ((None, 401), (person.access, 403), (people.admin().access, 403), (other, 403)):
        assert people.users[0].call("POST", path, json=body, token=token).status_code == status
    assert post_count(people, person) == 0
