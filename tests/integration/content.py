"""What the tests of posts and products share: Consul, Redis, a signer of tokens, and the environment of an instance."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.databases import Backend
from tests.support.instances import RunningInstance, instance
from tests.support.servers import ConsulServer, RedisServer, consul, redis
from tests.support.signer import Signer, signer


@dataclass
class World:
    consul: ConsulServer
    signer: Signer
    env: dict[str, str]
    state: RedisServer

    def user(self, name: str) -> str:
        return self.signer.token(name)

    def admin(self) -> str:
        return self.signer.token("root", "user admin")


@contextlib.contextmanager
def world() -> Iterator[World]:
    """Everything that an instance needs around it."""
    with consul() as agent, redis() as cache, signer() as keys:
        env = {
            "CONSUL_HTTP_ADDR": agent.address,
            "REDIS_CACHE_URL": cache.url,
            "REDIS_STATE_URL": cache.url,
            "AUTH_JWKS_URL": keys.url,
        }
        yield World(agent, keys, env, cache)


@contextlib.contextmanager
def pair(service: str, backend: Backend, around: World, folder: Path) -> Iterator[list[RunningInstance]]:
    """Two instances on one empty database."""
    with contextlib.ExitStack() as stack:
        env = {**around.env, **backend.env(service)}
        two = [stack.enter_context(instance(service, folder, env)) for _ in range(2)]
        try:
            yield two
        finally:
            for each in two:
                each.kill()
