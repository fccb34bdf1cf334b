"""Browser sessions in a Redis that others write to as well."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from cryptography.fernet import Fernet, MultiFernet
from redis import Redis

from services.auth.grants import BrowserSession, Sessions, digest
from tests.support.servers import redis as redis_server


@pytest.fixture(scope="module")
def store() -> Iterator[Redis]:
    with redis_server() as server:
        yield Redis.from_url(server.url)


def sessions(store: Redis, *keys: bytes) -> Sessions:
    # Longer than a run of all tests, at whose begin `AT` is read.
    return Sessions(store, 86_400, MultiFernet([Fernet(key) for key in keys]))


def name(token: str) -> str:
    return f"auth:session:{digest(token)}"


AT = int(time.time())
KEY, NEXT = Fernet.generate_key(), Fernet.generate_key()


def test_session_opens_by_its_token_alone(store: Redis) -> None:
    own = sessions(store, KEY)
    assert own.find(own.open("ada", AT, None)) == BrowserSession("ada", AT)
    assert own.find("x" * 43) is None


@pytest.mark.parametrize("value", [b"admin", b"", Fernet(NEXT).encrypt(b"auth:session:x admin")])
def test_session_that_another_service_wrote_is_none(store: Redis, value: bytes) -> None:
    store.set(name("planted"), value, ex=60)
    assert sessions(store, KEY).find("planted") is None


def test_session_copied_to_another_token_is_none(store: Redis) -> None:
    own = sessions(store, KEY)
    token = own.open("admin", AT, None)
    store.copy(name(token), name("copied"))
    assert own.find("copied") is None
    assert own.find(token) == BrowserSession("admin", AT)


def test_session_outlives_a_change_of_the_key(store: Redis) -> None:
    token = sessions(store, KEY).open("ada", AT, None)
    assert sessions(store, NEXT, KEY).find(token) == BrowserSession("ada", AT)
