"""The count of an author's posts reaches users: at once, after users were away, and after a kill of posts."""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.integration.content import World, pair
from tests.support.databases import Backend, on_both
from tests.support.eventually import eventually, time_scale
from tests.support.instances import RunningInstance, instance
from tests.support.scripted import Handler, upstream


@dataclass
class Users:
    """A real HTTP server in the place of users that writes down the counts that it gets. `mode`: ok, fail, hang."""

    mode: str = "ok"
    told: list[tuple[str, int, int]] = field(default_factory=list)

    def counts(self, author: str) -> list[int]:
        return [count for who, count, _ in list(self.told) if who == author]


@contextlib.contextmanager
def users(around: World) -> Iterator[Users]:
    """Registered in Consul as users."""
    state = Users()

    def behave(handler: Handler) -> None:
        mode = state.mode
        if mode == "hang":
            time.sleep(3 * time_scale())
        if mode == "ok":
            body = json.loads(handler.seen.body)
            author = handler.path.removeprefix("/internal/users/").removesuffix("/post-count")
            state.told.append((author, body["count"], body["version"]))
        handler.answer(200 if mode == "ok" else 500, Content_Type="application/json")

    with upstream(behave) as server:
        entry = {"Name": "users", "ID": "users-1", "Address": "127.0.0.1", "Port": server.port}
        around.consul.call("PUT", "/v1/agent/service/register", entry)
        try:
            yield state
        finally:
            around.consul.call("PUT", "/v1/agent/service/deregister/users-1")


@pytest.fixture(scope="module")
def two(
    around: World, backend: Backend, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[RunningInstance]]:
    with pair("posts", backend, around, tmp_path_factory.mktemp("posts")) as instances:
        yield instances


@pytest.fixture
def author() -> str:
    return uuid.uuid4().hex


def publish(blog: RunningInstance, around: World, author: str) -> str:
    body = {"title": "t", "content": "c"}
    answer = blog.call("POST", "/api/posts", json=body, token=around.user(author))
    assert answer.status_code == 201, answer.text
    return answer.headers["Location"]


def test_users_know_the_count_before_the_answer_is_read(
    two: list[RunningInstance], around: World, author: str
) -> None:
    with users(around) as known:
        # The first call of an instance finds its view of Consul; from then on each is delivered at once.
        for blog in two:
            publish(blog, around, "warm" + author)
        eventually(lambda: 2 in known.counts("warm" + author), 10)
        first = publish(two[0], around, author)
        assert known.counts(author) == [1]
        publish(two[1], around, author)
        assert known.counts(author) == [1, 2]
        two[1].call("DELETE", first, token=around.admin())
        assert known.counts(author) == [1, 2, 1]
        versions = [version for who, _, version in known.told if who == author]
        assert versions == sorted(set(versions))
        time.sleep(1.0)
        assert known.counts(author) == [1, 2, 1], "nothing is reported twice"


@on_both
def test_posting_goes_on_without_users_and_the_count_follows_once_when_they_are_back(
    two: list[RunningInstance], around: World, author: str
) -> None:
    for n in range(4):
        started = time.monotonic()
        publish(two[n % 2], around, author)
        assert time.monotonic() - started < 4 * time_scale()
    with users(around) as known:
        eventually(lambda: known.counts(author) == [4], 30)
        time.sleep(1.5)
        assert known.counts(author) == [4], "two instances report one count once"


@pytest.mark.parametrize("mode", ["fail", "hang"])
def test_failing_users_hold_no_post_up(
    two: list[RunningInstance], around: World, author: str, mode: str
) -> None:
    with users(around) as known:
        publish(two[0], around, "warm" + author)
        eventually(lambda: known.counts("warm" + author), 10)
        known.mode = mode
        started = time.monotonic()
        publish(two[0], around, author)
        assert time.monotonic() - started < 2 * time_scale()
        assert known.counts(author) == []
        known.mode = "ok"
        eventually(lambda: 1 in known.counts(author), 40)


def test_a_count_owed_by_a_killed_instance_is_delivered_by_its_successor(
    around: World, tmp_path: Path, author: str, backend: Backend
) -> None:
    env = {**around.env, **backend.env("posts")}
    with instance("posts", tmp_path, env) as blog:
        publish(blog, around, author)
        blog.kill()
    with users(around) as known, instance("posts", tmp_path, env):
        eventually(lambda: known.counts(author) == [1], 30)
