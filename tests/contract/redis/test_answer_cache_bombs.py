"""What a service that has been taken over can do with the names in Redis that are its own: no more than lose its own answers."""

from __future__ import annotations

from redis import Redis

from services.kit.stale import stored_form
from services.kit.stale.writer import Keep, StaleQueue
from tests.support.cache_rig import CLOCK, PATH, Instance, Origin, incoming
from tests.support.eventually import eventually

Pair = tuple[Instance, Instance]
BOMB = b"x" * 4 * 1024 * 1024


def sent_by(redis: Redis) -> int:
    """Bytes that Redis has sent to all its clients."""
    return int(redis.info("stats")["total_net_output_bytes"])


def test_last_good_answer_of_any_size_is_not_fetched(pair: Pair, redis: Redis) -> None:
    one, _ = pair
    name = stored_form.stale_name("pears", PATH, "", None)
    assert name is not None
    head = {"status": 200, "headers": [], "at": CLOCK.time(), "stale_s": 60, "scopes": []}
    redis.hset(name.key, name.slot, stored_form.seal(name.whole, head, BOMB))
    before = sent_by(redis)
    assert one.cache.last_good(incoming()) is None
    assert sent_by(redis) - before < 64 * 1024
    for mischief in ("set", "gone"):
        redis.delete(name.key)
        if mischief == "set":
            redis.set(name.key, b"x")
        assert one.cache.last_good(incoming()) is None
    queue = StaleQueue(redis)
    queue.put(Keep(name, head, b"y" * 256 * 1024, 60))
    eventually(queue.idle, 5)
    good = one.cache.last_good(incoming())
    assert good is not None
    assert good.body == b"y" * 256 * 1024


def test_words_of_any_size_are_forgotten(pair: Pair, redis: Redis, origin: Origin) -> None:
    one, other = pair
    key = stored_form.versions_key("pears")
    for field in ("e", stored_form.bucket(PATH, prefix=False)):
        redis.hset(key, field, BOMB)
        before = sent_by(redis)
        assert one.state(query=f"q={field}") == "MISS"
        assert sent_by(redis) - before < 64 * 1024
        assert redis.hstrlen(key, field) < 100
        assert other.state(query=f"q={field}") == "HIT"
