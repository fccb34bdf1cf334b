"""What the tests of posts and products share: Consul, Redis, a signer of tokens, and the environment of an instance."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

from tests.support.servers import ConsulServer, consul, redis
from tests.support.signer import Signer, signer


@dataclass
class World:
    consul: ConsulServer
    signer: Signer
    env: dict[str, str]

    def user(self, name: str) -> str:
        return self.signer.token(name)

    def admin(self) -> str:
        return self.signer.token("root", "user admin")


@contextlib.contextmanager
def world() -> Iterator[World]:
    """Everything that an instance needs around it.

    `TEST_DATABASE_URL` names an empty PostgreSQL database to be used instead of SQLite, by one test file at a time.
    """
    with consul() as agent, redis() as cache, signer() as keys:
        env = {
            "CONSUL_HTTP_ADDR": agent.address,
            "REDIS_CACHE_URL": cache.url,
            "REDIS_STATE_URL": cache.url,
            "AUTH_JWKS_URL": keys.url,
        }
        if database := os.environ.get("TEST_DATABASE_URL"):
            env["DATABASE_URL"] = database
        yield World(agent, keys, env)
