"""posts, users and auth together, all real: the profile of an author shows how many posts there are."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.identity import Identity, Person
from tests.support.eventually import eventually
from tests.support.instances import RunningInstance

pytestmark = pytest.mark.shares("identity")


@pytest.fixture(scope="module")
def blog(world: Identity) -> Iterator[RunningInstance]:
    with world.further("posts", SERVICE_CLIENT_SECRET="secret-of-posts") as posts:
        # The first post finds auth, users and a token for the way; from then on each count is delivered at once.
        warm = world.person()
        publish(posts, warm)
        eventually(lambda: post_count(world, warm) == 1, 20)
        yield posts
        posts.kill()


def publish(posts: RunningInstance, person: Person) -> str:
    body = {"title": "t", "content": "c", "tags": ["x"]}
    answer = posts.call("POST", "/api/posts", json=body, token=person.access)
    assert answer.status_code == 201, answer.text
    assert answer.json()["data"]["authorId"] == person.id
    location: str = answer.headers["Location"]
    return location


def post_count(world: Identity, person: Person) -> int:
    answer = world.users[0].call("GET", f"/api/users/{person.id}", token=person.access)
    assert answer.status_code == 200, answer.text
    count: int = answer.json()["data"]["postCount"]
    return count


def test_profile_read_right_after_a_post_shows_it(world: Identity, blog: RunningInstance) -> None:
    person = world.person()
    assert post_count(world, person) == 0
    first = publish(blog, person)
    assert post_count(world, person) == 1
    publish(blog, person)
    assert post_count(world, person) == 2
    assert blog.call("DELETE", first, token=person.access).status_code == 204
    assert post_count(world, person) == 1


@pytest.mark.long
def test_count_follows_when_users_come_back(world: Identity, blog: RunningInstance) -> None:
    person = world.person()
    with world.away(world.users):
        publish(blog, person)
    eventually(lambda: post_count(world, person) == 1, 40)
