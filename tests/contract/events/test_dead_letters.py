"""Events that a service gave up: listed, shown and replayed, on the stack's own Redis with its rules for each user."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import NoPermissionError
from rich.console import Console

from services.kit.events.consumer import Consumer
from services.kit.events.event import wrap
from services.kit.events.redis_streams import RedisStreams
from services.kit.events.transport import Dead, Delivery
from services.kit.redis_client import Away
from services.kit.text import now_us
from stack.dead_letters import CELL_CHARS, Letter, find, hand_over, print_list, print_whole, run
from stack.errors import BadRequest, StackError
from stack.run.api import Stack
from stack.run.programs import find_binary
from stack.servers import redis_servers
from stack.servers.vault import REDIS_OPERATOR
from stack.settings import StackSettings
from tests.contract.events.rig import (
    PostPublished,
    Producer,
    Stats,
    UserDeleted,
    database,
    file,
    producer,
    relaying,
)
from tests.support.eventually import eventually, time_scale
from tests.support.servers import Process, accepts

SERVICES = ("posts", "stats", "audit")


@dataclass
class Broker:
    """The Redis for state of a stack that does not run otherwise."""

    stack: Stack
    process: Process

    def start(self) -> None:
        self.process.start()
        eventually(lambda: accepts(self.stack.settings.redis_state_port), 10)

    def client(self, user: str) -> Redis:
        port, password = self.stack.settings.redis_state_port, self.stack.vault.redis_password(user)
        return Redis(port=port, username=user, password=password, socket_timeout=3, socket_connect_timeout=3)

    def streams(self, user: str) -> RedisStreams:
        return RedisStreams(self.client(user), f"{user}-1")


@pytest.fixture(scope="module")
def kept_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    var = tmp_path_factory.mktemp("stack")
    stack = Stack(StackSettings.isolated(var))
    for name in SERVICES:
        stack.vault.redis_password_file(name)
    config = redis_servers.configure(stack.settings, stack.vault, "redis-state")
    process = Process([find_binary("redis-server"), str(config)], var / "redis.log")
    one = Broker(stack, process)
    try:
        one.start()
        yield one
    finally:
        process.stop()


@pytest.fixture
def redis(kept_broker: Broker) -> Iterator[Broker]:
    with kept_broker.client(REDIS_OPERATOR) as operator:
        operator.flushall()
    return kept_broker


@pytest.fixture
def posts(redis: Broker, tmp_path: Path) -> Iterator[Producer]:
    db, tables, _ = database(file(tmp_path, "posts"))
    yield producer(db, tables, redis.streams("posts"))
    db.dispose()


@contextmanager
def service(
    broker: Broker, folder: Path, name: str = "stats", transport: RedisStreams | None = None
) -> Iterator[Stats]:
    db, tables, effects = database(file(folder, name))
    used = transport or broker.streams(name)
    yield Stats(db, effects, Consumer(db, tables, name, used, retry_first_s=0.02), used)
    db.dispose()


@pytest.fixture
def counter(redis: Broker, tmp_path: Path) -> Iterator[Stats]:
    with service(redis, tmp_path) as one:
        yield one


@pytest.fixture
def tool(redis: Broker) -> RedisStreams:
    """As the command connects."""
    return redis.streams(REDIS_OPERATOR)


def give_up(broker: Broker, posts: Producer, folder: Path) -> None:
    """Have an instance of stats, which ends after that, give up event 1 of subject `a`."""
    with service(broker, folder) as first, relaying(posts), first.running():
        first.refuses["a", 1] = 1000
        posts.publish("a", 1)
        eventually(lambda: len(first.transport.dead("stats", 10)) == 1, 15)


def bury(counter: Stats, number: int = 1) -> Dead:
    """A dead letter of subject `a`, as though it had been given up."""
    body = wrap(PostPublished(postId="a", number=number), now_us()).to_json()
    counter.transport.bury("stats", body.encode(), "ValueError: refused")
    return counter.transport.dead("stats", 10)[-1]


def replayed(tool: RedisStreams, letters: Sequence[Letter], within_s: float = 10) -> list[Letter]:
    return hand_over(tool, letters, within_s * time_scale())


def said(broker: Broker, service: str = "", handle: str = "", replay: bool = False) -> str:
    out = io.StringIO()
    run(Console(file=out, width=160, soft_wrap=True), broker.stack, service, handle, replay)
    return out.getvalue()


def test_list_says_when_what_and_why_and_one_is_shown_whole(redis: Broker, counter: Stats) -> None:
    assert said(redis).strip() == "no dead letters"
    letter = bury(counter)
    (line,) = (line for line in said(redis).splitlines() if letter.handle in line)
    for part in ("stats", letter.at[:19], "post.published.v1", " a ", "ValueError: refused"):
        assert part in line
    whole = said(redis, handle=letter.handle)
    assert json.loads(whole[whole.index("{") :])["data"] == {"postId": "a", "number": 1}
    assert "reason: ValueError: refused" in whole
    assert said(redis, service="posts").strip() == "no dead letters"


@pytest.mark.parametrize(("name", "handle"), [("nobody", ""), ("", "1-1"), ("stats", "\x1b[2J")])
def test_what_is_unknown_is_named(redis: Broker, name: str, handle: str) -> None:
    with pytest.raises(BadRequest, match="there is no") as found:
        said(redis, name, handle)
    assert "\x1b" not in str(found.value)


def test_broker_that_is_away_is_named(redis: Broker) -> None:
    redis.process.kill()
    try:
        with pytest.raises(StackError, match="does not answer"):
            said(redis)
    finally:
        redis.start()


def test_replay_after_the_cause_is_mended_has_the_effect_once(
    redis: Broker, posts: Producer, counter: Stats, tmp_path: Path
) -> None:
    give_up(redis, posts, tmp_path)
    bury(counter, 2)
    with counter.running():
        assert "took 2 back" in said(redis, replay=True)
        eventually(lambda: counter.count() == 2, 10)
    assert counter.seen() == [("a", 1), ("a", 2)]
    assert said(redis).strip() == "no dead letters"


def test_replay_while_the_cause_is_there_ends_among_the_dead_again(
    redis: Broker, posts: Producer, counter: Stats, tool: RedisStreams, tmp_path: Path
) -> None:
    give_up(redis, posts, tmp_path)
    counter.refuses["a", 1] = 1000
    (before,) = find(tool, SERVICES)
    with counter.running():
        assert replayed(tool, [before]) == []
        (after,) = eventually(lambda: find(tool, SERVICES), 15)
    assert after.dead.handle != before.dead.handle
    assert (after.dead.reason, after.dead.body) == ("ValueError: refused", before.dead.body)
    assert counter.tried.count(("a", 1)) == 5
    assert counter.seen() == []


def test_what_is_replayed_twice_has_one_effect(posts: Producer, counter: Stats, tool: RedisStreams) -> None:
    bury(counter)
    letters = find(tool, SERVICES)
    # A command that was killed, and the one after it.
    for letter in letters:
        tool.replay("stats", letter.dead)
    with counter.running():
        assert replayed(tool, letters) == []
        eventually(lambda: counter.seen() == [("a", 1)], 10)
        for letter in letters:
            tool.replay("stats", letter.dead)
        posts.publish("b", 1)
        with relaying(posts):
            eventually(lambda: ("b", 1) in counter.seen(), 10)
    assert counter.seen() == [("a", 1), ("b", 1)]


def test_event_that_died_twice_has_one_effect(counter: Stats, tool: RedisStreams) -> None:
    """An instance killed between the letter and its commit leaves two of one event."""
    letter = bury(counter)
    counter.transport.bury("stats", letter.body, letter.reason)
    with counter.running():
        assert replayed(tool, find(tool, SERVICES)) == []
        eventually(counter.count, 10)
    assert counter.seen() == [("a", 1)]


class Dying(RedisStreams):
    """Of an instance that dies when it comes to `at`, as from there on nothing of it reaches the broker."""

    at = ""
    died = False

    def _live(self, step: str) -> None:
        self.died = self.died or step == self.at
        if self.died:
            raise Away("killed")

    def forget_dead(self, service: str, handles: Sequence[str]) -> None:
        if handles:
            self._live("forget_dead")
        super().forget_dead(service, handles)

    def acknowledge(self, service: str, deliveries: Sequence[Delivery]) -> None:
        self._live("acknowledge")
        super().acknowledge(service, deliveries)

    def receive(
        self, service: str, wanted: Mapping[str, Sequence[str]], limit: int, wait_s: float
    ) -> list[Delivery]:
        self._live("")
        return super().receive(service, wanted, limit, wait_s)


@pytest.mark.parametrize("step", ["forget_dead", "acknowledge"])
def test_instance_that_dies_on_the_way_loses_and_doubles_nothing(
    redis: Broker, posts: Producer, counter: Stats, tool: RedisStreams, tmp_path: Path, step: str
) -> None:
    bury(counter)
    letters = find(tool, SERVICES)
    dying = Dying(redis.client("stats"), "stats-2")
    dying.at = step
    with service(redis, tmp_path, transport=dying) as second, second.running():
        tool.replay("stats", letters[0].dead)
        eventually(lambda: dying.died, 10)
    kept = {"forget_dead": 1, "acknowledge": 0}[step]
    assert len(find(tool, SERVICES)) == kept
    with service(redis, tmp_path, transport=redis.streams("stats")) as third, third.running():
        eventually(lambda: not find(tool, SERVICES), 15)
        with relaying(posts):
            posts.publish("b", 1)
            eventually(lambda: ("b", 1) in third.seen(), 15)
        assert third.seen() == [("a", 1), ("b", 1)]


def test_service_that_does_not_run_leaves_its_letters_where_they_are(
    counter: Stats, tool: RedisStreams
) -> None:
    bury(counter)
    letters = find(tool, SERVICES)
    assert replayed(tool, letters, within_s=0.3) == letters
    assert find(tool, SERVICES) == letters
    with counter.running():
        eventually(lambda: counter.seen() == [("a", 1)] and not find(tool, SERVICES), 10)


def test_other_services_hear_nothing_of_a_replay(
    redis: Broker, posts: Producer, counter: Stats, tool: RedisStreams, tmp_path: Path
) -> None:
    with service(redis, tmp_path, "audit") as audit, audit.running():
        give_up(redis, posts, tmp_path)
        eventually(lambda: audit.seen() == [("a", 1)], 10)
        with counter.running():
            assert replayed(tool, find(tool, SERVICES)) == []
            eventually(counter.count, 10)
        assert audit.tried == [("a", 1)]
    with redis.client("audit") as other, pytest.raises(NoPermissionError):
        other.xadd("stats:events:dead:replayed", {"e": "x", "replays": "1-1"})


def test_producer_can_not_pass_an_event_off_as_a_replay(redis: Broker, counter: Stats) -> None:
    counter.transport.bury("stats", b"kept", "why")
    (letter,) = counter.transport.dead("stats", 10)
    body = wrap(PostPublished(postId="a", number=1), now_us()).to_json()
    with redis.client("posts") as other:
        other.xadd("events:posts", {"e": body, "replays": letter.handle})
    with counter.running():
        eventually(counter.count, 10)
    assert counter.transport.dead("stats", 10) == [letter]


def test_what_no_function_takes_any_more_stays_dead(
    redis: Broker, counter: Stats, tool: RedisStreams
) -> None:
    gone = wrap(UserDeleted(userId="u"), now_us()).to_json()
    counter.transport.bury("stats", gone.encode(), "RuntimeError: no")
    letters = find(tool, SERVICES)
    with counter.running():
        assert replayed(tool, letters, within_s=2) == letters
    assert find(tool, SERVICES) == letters


def event(**changes: object) -> bytes:
    made = json.loads(wrap(PostPublished(postId="a", number=1), now_us()).to_json())
    return json.dumps(made | changes).encode()


BODIES = [
    b"",
    b"\x1b]0;owned\x07\x1b[2J not JSON \x00\x9b31m",
    b"\xff\xfe\xed\xa0\x80",
    b'{"a": "\xe2\x80\xae\xc2\x9b31m"}',
    b"[" * 100_000,
    b"x" * 1_500_000,
    event(subject="\x1b[31m\u202e[red]"),
    event(type="\x9b31m", data={"a": {"\x1b]0;x\x07": ["\x9b2J"]}}),
    event(data={"a": 1}).replace(b"1}", b"9" * 5000 + b"}"),
]


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
def test_hostile_body_is_kept_from_the_terminal_and_from_the_service(
    redis: Broker, counter: Stats, tool: RedisStreams, body: bytes
) -> None:
    counter.transport.bury("stats", body, "why \x1b[2J\r\n[bold]" + "y" * 500)
    letters = find(tool, SERVICES)
    out = io.StringIO()
    console = Console(file=out, width=160, soft_wrap=True, highlight=False)
    print_list(console, letters)
    longest = max(map(len, out.getvalue().splitlines()))
    print_whole(console, letters[0])
    shown = out.getvalue()
    assert [c for c in shown if not c.isprintable() and c != "\n"] == []
    assert "why \\x1b[2J" in shown
    assert longest < 6 * CELL_CHARS
    assert len(shown) < 2_500_000
    if letters[0].envelope is None:
        assert "cannot be replayed" in said(redis, replay=True)
        assert find(tool, SERVICES) == letters
