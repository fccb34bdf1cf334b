"""Two services with `events=True`, each with what the broker lets it do in the stack, and no more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import NoPermissionError

from stack.servers.redis_servers import rules
from tests.contract.events.brokers import RabbitBroker, introduce
from tests.contract.kit.running import running
from tests.support import servers
from tests.support.eventually import eventually
from tests.support.instances import RunningInstance
from tests.support.servers import RedisServer

PROGRAM = Path(__file__).with_name("program.py")


pytestmark = pytest.mark.shares("rabbitmq")


@pytest.fixture(scope="module")
def acl_redis() -> Iterator[RedisServer]:
    with servers.redis() as server, Redis.from_url(server.url) as redis:
        for name in ("posts", "stats"):
            redis.execute_command("ACL", "SETUSER", name, "on", ">secret", *rules(name).split())
        yield server


@pytest.fixture(params=["redis", "rabbitmq"])
def settings(request: pytest.FixtureRequest) -> Callable[[str], dict[str, str]]:
    """What a service is given to reach its broker."""
    if request.param == "redis":
        url = request.getfixturevalue("acl_redis").url
        return lambda name: {"REDIS_STATE_URL": url, "REDIS_USERNAME": name, "REDIS_PASSWORD": "secret"}
    broker: RabbitBroker = request.getfixturevalue("rabbit_broker")
    introduce(broker)
    return lambda name: {"EVENTS_URL": broker.url(name)}


def service(settings: Callable[[str], dict[str, str]], folder: Path, name: str):  # type: ignore[no-untyped-def]
    (folder / name).mkdir()
    return running(folder / name, program=PROGRAM, arguments=[name], **settings(name))


def publish(posts: RunningInstance, number: int) -> None:
    body = {"subject": "a", "number": number}
    assert posts.call("POST", "/internal/publish", json=body).status_code == 204


def test_what_one_service_publishes_the_other_hears(
    settings: Callable[[str], dict[str, str]], tmp_path: Path
) -> None:
    with service(settings, tmp_path, "posts") as posts, service(settings, tmp_path, "stats") as stats:

        def count() -> int:
            return int(stats.get("/internal/count").json()["count"])

        for number in range(1, 6):
            publish(posts, number)
        eventually(lambda: count() == 5, 15)
        eventually(lambda: 'service_events_waiting{measure="length"} 0.0' in posts.get("/metrics").text, 10)
        stats.kill()
        publish(posts, 6)
        stats.start()
        eventually(lambda: count() == 6, 15)
        assert stats.call("POST", "/internal/publish", json={"subject": "a", "number": 1}).status_code == 500
        assert "Traceback" not in posts.process.log.read_text()
        stats.process.stop(20)
        assert stats.process.popen is not None
        assert stats.process.popen.returncode == 0


def test_service_may_not_publish_as_another(acl_redis: RedisServer) -> None:
    with Redis.from_url(acl_redis.url, username="stats", password="secret") as redis:
        for words in (
            ["XADD", "events:posts", "*", "e", "x"],
            ["DEL", "events:posts"],
            ["XTRIM", "events:posts", "MAXLEN", "0"],
        ):
            with pytest.raises(NoPermissionError):
                redis.execute_command(*words)
        redis.xadd("events:stats", {"e": "x"})
