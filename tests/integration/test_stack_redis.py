"""Our Redis files on the real Redis: every service in its own keys, and only the stack rules the server."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import AuthenticationError, NoPermissionError, ResponseError

from services.kit.redis_client import connect
from stack.errors import StackError
from stack.run.programs import find_binary
from stack.servers import redis_servers
from stack.servers.vault import REDIS_OPERATOR, Vault
from stack.settings import StackSettings
from tests.support.eventually import eventually
from tests.support.servers import Process, accepts

OWN = "the password in the vault"
SERVICES = ("auth", "users", "posts", "gateway-identity", "gateway-business")


@dataclass
class Servers:
    """The Redis servers of one stack, without the rest of it."""

    settings: StackSettings
    vault: Vault
    processes: dict[str, Process]

    def start(self, name: str) -> None:
        self.processes[name].start()
        eventually(lambda: accepts(self.port(name)), 10)

    def port(self, name: str) -> int:
        return {
            "redis-cache": self.settings.redis_cache_port,
            "redis-state": self.settings.redis_state_port,
        }[name]

    @contextlib.contextmanager
    def client(
        self, user: str | None, server: str = "redis-cache", password: str | None = OWN
    ) -> Iterator[Redis]:
        """As the kit connects a service."""
        url = f"redis://127.0.0.1:{self.port(server)}/0"
        if password is OWN and user is not None:
            password = self.vault.redis_password(user)
        found = connect(url, password, username=user, timeout_s=2, connections=2)
        assert found is not None
        try:
            yield found
        finally:
            found.close()


@contextlib.contextmanager
def started(var: Path) -> Iterator[Servers]:
    settings = StackSettings.isolated(var)
    vault = Vault(settings.secrets_dir)
    vault.open()
    for service in SERVICES:
        vault.redis_password_file(service)
    one = Servers(settings, vault, {})
    for name in redis_servers.SERVERS:
        config = redis_servers.configure(settings, vault, name)
        one.processes[name] = Process([find_binary("redis-server"), str(config)], var / f"{name}.log")
    try:
        for name in one.processes:
            one.start(name)
        yield one
    finally:
        for process in one.processes.values():
            process.stop()


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with started(tmp_path_factory.mktemp("redis")) as one:
        with one.client(REDIS_OPERATOR) as operator:
            operator.set("auth:session:1", "sealed")
            operator.set("stale:users:1", "good")
            operator.set("stale:posts:1", "good")
            operator.set("gateway:identity:1", "private")
        yield one


@pytest.mark.parametrize("server", redis_servers.SERVERS)
def test_service_works_in_its_own_keys(servers: Servers, server: str) -> None:
    with servers.client("users", server) as redis:
        pipe = redis.pipeline(transaction=True)
        pipe.set("users:a", 1)
        pipe.incr("users:a")
        pipe.expire("users:a", 60)
        pipe.xadd("users:events", {"a": 1})
        assert pipe.execute()[1] == 2
        assert redis.register_script("return redis.call('GET', KEYS[1])")(keys=["users:a"]) == b"2"
        assert redis.publish("users:changes", "a") == 0


@pytest.mark.parametrize(
    "words",
    [
        ("GET", "auth:session:1"),
        ("SET", "auth:session:1", "forged"),
        ("DEL", "auth:session:1"),
        ("DEL", "users:a", "auth:session:1"),
        ("EXISTS", "auth:session:1"),
        ("RENAME", "users:a", "auth:session:2"),
        ("COPY", "auth:session:1", "users:b"),
        ("EVAL", "return redis.call('GET', KEYS[1])", "1", "auth:session:1"),
        ("GET", "usersX"),
        ("SET", "stale:posts:1", "forged"),
        ("GET", "stale:posts:1"),
        ("PUBLISH", "stale:posts:changed", "forged"),
        ("SET", "gateway:identity:1", "forged"),
        ("GET", "gateway:identity:1"),
        ("PUBLISH", "gateway:identity:breakers", "forged"),
        ("PUBLISH", "posts:changes", "forged"),
        ("SUBSCRIBE", "gateway:identity:breakers"),
    ],
)
def test_what_is_anothers_is_refused(servers: Servers, words: tuple[str, ...]) -> None:
    with servers.client("users") as redis, pytest.raises(NoPermissionError):
        redis.execute_command(*words)
    with servers.client(REDIS_OPERATOR) as operator:
        assert operator.get("auth:session:1") == b"sealed"
        assert operator.get("stale:posts:1") == b"good"
        assert operator.get("gateway:identity:1") == b"private"


@pytest.mark.parametrize("user", ["users", "gateway-identity"])
@pytest.mark.parametrize(
    "words",
    [
        "FLUSHALL",
        "FLUSHDB",
        "SWAPDB 0 1",
        "KEYS *",
        "SCAN 0",
        "RANDOMKEY",
        "DBSIZE",
        "CONFIG GET requirepass",
        "CONFIG SET maxmemory 1",
        "CONFIG REWRITE",
        "ACL LIST",
        "ACL WHOAMI",
        "ACL SETUSER users +@all",
        "ACL LOAD",
        "MONITOR",
        "SHUTDOWN NOSAVE",
        "REPLICAOF 127.0.0.1 1",
        "SAVE",
        "BGREWRITEAOF",
        "INFO",
        "SLOWLOG GET",
        "LATENCY RESET",
        "MODULE LIST",
        "MIGRATE 127.0.0.1 1 users:a 0 1",
        "CLIENT LIST",
        "CLIENT KILL TYPE normal",
        "CLIENT PAUSE 1",
        "CLIENT TRACKING ON BCAST",
        "PUBSUB CHANNELS",
        "SCRIPT FLUSH",
        "SCRIPT KILL",
        "FUNCTION FLUSH",
    ],
)
def test_nobody_rules_the_server(servers: Servers, user: str, words: str) -> None:
    with servers.client(user) as redis, pytest.raises(NoPermissionError):
        redis.execute_command(*words.split(" "))


def test_debug_is_nobodys(servers: Servers) -> None:
    with servers.client("users") as redis, pytest.raises(ResponseError):
        redis.execute_command("DEBUG", "SLEEP", "0")


def test_a_script_reaches_no_key_that_its_caller_does_not(servers: Servers) -> None:
    with servers.client("users") as redis, pytest.raises(ResponseError, match="can't access at least one"):
        redis.eval("return redis.call('GET', 'auth:session:1')", 0)


@pytest.mark.parametrize("name", ["KEYS *", "FLUSHALL"])
def test_a_script_rules_no_more_than_its_caller(servers: Servers, name: str) -> None:
    called = ", ".join(f"'{word}'" for word in name.split())
    with servers.client("users") as redis, pytest.raises(ResponseError, match="can't run this command"):
        redis.eval(f"return redis.call({called})", 0)


def test_service_writes_its_own_last_good_answers_and_gateways_read_and_forget_them(servers: Servers) -> None:
    with servers.client("posts") as posts, servers.client("gateway-business") as gateway:
        posts.hset("stale:posts:p:1", "0", "good")
        assert gateway.hget("stale:posts:p:1", "0") == b"good"
        assert posts.eval("return redis.call('DEL', KEYS[1])", 1, "stale:posts:p:1") == 1
        assert gateway.hget("stale:posts:p:1", "0") is None
        posts.hset("stale:posts:p:2", "0", "bad")
        assert gateway.delete("stale:posts:p:2") == 1
        heard = gateway.pubsub(ignore_subscribe_messages=True)
        heard.psubscribe("stale:*")
        assert heard.get_message(timeout=2) is None  # the subscription itself
        eventually(lambda: posts.publish("stale:posts:changed", "/api/posts") == 1, 5)
        assert eventually(heard.get_message, 5)["channel"] == b"stale:posts:changed"
        heard.close()


def test_gateways_of_one_group_share_and_groups_are_apart(servers: Servers) -> None:
    with servers.client("gateway-identity") as one, servers.client("gateway-identity") as other:
        one.set("gateway:identity:answer", "private", ex=60)
        assert other.get("gateway:identity:answer") == b"private"
        heard = other.pubsub(ignore_subscribe_messages=True)
        heard.subscribe("gateway:identity:breakers")
        assert heard.get_message(timeout=2) is None  # the subscription itself
        eventually(lambda: one.publish("gateway:identity:breakers", "open") == 1, 5)
        assert eventually(heard.get_message, 5)["data"] == b"open"
        heard.close()
    with servers.client("gateway-business") as stranger:
        stranger.incr("gateway:shared:limit")
        for action in (
            lambda: stranger.get("gateway:identity:answer"),
            lambda: stranger.set("gateway:identity:answer", "forged"),
            lambda: stranger.publish("gateway:identity:breakers", "forged"),
            lambda: stranger.get("auth:session:1"),
            lambda: stranger.get("users:{7}:v"),
        ):
            with pytest.raises(NoPermissionError):
                action()


@pytest.mark.parametrize("server", redis_servers.SERVERS)
@pytest.mark.parametrize(
    ("user", "password"),
    [(None, None), (None, "x"), ("default", ""), ("users", "x"), ("users", ""), ("nobody", "x")],
)
def test_who_is_nobody_gets_nothing(
    servers: Servers, server: str, user: str | None, password: str | None
) -> None:
    with servers.client(user, server, password) as client, pytest.raises(AuthenticationError):
        client.get("users:a")


def test_passwords_are_in_the_vault_only(servers: Servers) -> None:
    passwords = {name: servers.vault.redis_password(name) for name in (*SERVICES, REDIS_OPERATOR)}
    assert len(set(passwords.values())) == len(passwords)
    for server in redis_servers.SERVERS:
        files = [path for path in (servers.settings.var / server).glob("*") if path.is_file()]
        text = "".join(path.read_text(errors="replace") for path in files)
        assert {path.stat().st_mode & 0o777 for path in files if path.suffix in {".acl", ".conf"}} == {0o600}
        for password in passwords.values():
            assert password not in text
            assert hashlib.sha256(password.encode()).hexdigest() in text


def test_new_service_is_admitted_while_the_others_work_on(tmp_path: Path) -> None:
    with started(tmp_path) as one, one.client("users") as users:
        users.set("users:a", 1)
        before = users.client_id()
        one.vault.redis_password_file("hello")
        for server in redis_servers.SERVERS:
            redis_servers.configure(one.settings, one.vault, server)
        redis_servers.admit(one.settings, one.vault, "hello")
        redis_servers.admit(one.settings, one.vault, "hello")
        with one.client("hello") as hello:
            hello.set("hello:a", 1)
            with pytest.raises(NoPermissionError):
                hello.get("users:a")
        assert users.client_id() == before, "the others were cut off"
        one.processes["redis-cache"].kill()
        redis_servers.admit(one.settings, one.vault, "hello")  # nothing runs: the server will read its file
        one.start("redis-cache")
        with one.client("hello") as hello:
            hello.set("hello:a", 1)


def test_server_of_an_earlier_version_is_told(tmp_path: Path) -> None:
    with started(tmp_path) as one:
        for process in one.processes.values():
            process.stop()
        for name in redis_servers.SERVERS:
            old = tmp_path / f"{name}.conf"
            old.write_text(f'bind 127.0.0.1\nport {one.port(name)}\nrequirepass old\nsave ""\n')
            one.processes[name] = Process([find_binary("redis-server"), str(old)], tmp_path / f"{name}.log")
            one.start(name)
        with pytest.raises(StackError, match="make down, make up"):
            redis_servers.admit(one.settings, one.vault, "users")


@pytest.mark.parametrize("name", ["auth", "gateway-ai"])
def test_rules_name_no_password(name: str) -> None:
    assert not {word[0] for word in redis_servers.rules(name).split()} & set("#>!<")
