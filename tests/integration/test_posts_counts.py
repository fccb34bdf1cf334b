"""The count of an author's posts reaches users: at once, after users were away, and after a kill of posts."""

from __future__ import annotations

import contextlib
import json
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.integration.content import World, pair, world
from tests.support.databases import Backend, on_both
from tests.support.eventually import eventually, time_scale
from tests.support.instances import RunningInstance, instance


@dataclass
class Users:
    """A real HTTP server in the place of users that writes down what it is told. `mode`: ok, fail, hang."""

    mode: str = "ok"
    told: list[tuple[str, int, int]] = field(default_factory=list)

    def counts(self, author: str) -> list[int]:
        return [count for who, count, _ in list(self.told) if who == author]


@contextlib.contextmanager
def users(around: World) -> Iterator[Users]:
    """Registered in Consul as users."""
    state = Users()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            mode = state.mode
            if mode == "hang":
                time.sleep(3 * time_scale())
            if mode == "ok":
                author = self.path.removeprefix("/internal/users/").removesuffix("/post-count")
                state.told.append((author, body["count"], body["version"]))
            self.send_response(200 if mode == "ok" else 500)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    entry = {"Name": "users", "ID": "users-1", "Address": "127.0.0.1", "Port": server.server_port}
    around.consul.call("PUT", "/v1/agent/service/register", entry)
    try:
        yield state
    finally:
        around.consul.call("PUT", "/v1/agent/service/deregister/users-1")
        server.shutdown()
        server.server_close()
        thread.join(5)


@pytest.fixture(scope="module")
def around() -> Iterator[World]:
    with world() as made:
        yield made


@pytest.fixture
def two(around: World, backend: Backend, tmp_path: Path) -> Iterator[list[RunningInstance]]:
    with pair("posts", backend, around, tmp_path) as instances:
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
        assert known.counts(author) == [1, 2, 1], "nothing is told twice"


@on_both
def test_posting_goes_on_without_users_and_the_count_follows_once_when_they_are_back(
    around: World, tmp_path: Path, author: str, backend: Backend
) -> None:
    with pair("posts", backend, around, tmp_path) as two:
        for n in range(4):
            started = time.monotonic()
            publish(two[n % 2], around, author)
            assert time.monotonic() - started < 4 * time_scale()
        with users(around) as known:
            eventually(lambda: known.counts(author) == [4], 30)
            time.sleep(1.5)
            assert known.counts(author) == [4], "two instances told one count once"


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
