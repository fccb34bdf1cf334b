"""What files of this folder share: each is started once a session, for all files that say so (`pytest.mark.shares`)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from stack.run.api import Stack
from tests.integration.composing import Stage, on_stage
from tests.integration.content import World
from tests.integration.content import world as content_world
from tests.integration.identity import Identity, identity
from tests.support.databases import CHOSEN, Backend
from tests.support.fleet import Fleet
from tests.support.gateway_rig import Rig, gateway_rig
from tests.support.process_fleet import ProcessFleet

MIB = 1024 * 1024


@pytest.fixture(scope="session", params=CHOSEN)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Identity]:
    """auth and users, two instances each. A rotation of keys takes seconds, not hours."""
    on_server = request.param == "postgresql"
    backend = Backend(request.getfixturevalue("postgres_server") if on_server else None)
    databases = backend.databases("auth", "users", "posts")
    env = {"AUTH_KEY_PUBLISH_S": "2", "AUTH_KEY_REFRESH_S": "0.2"}
    with identity(tmp_path_factory.mktemp("identity"), databases=databases, **env) as running:
        yield running


@pytest.fixture(scope="session")
def stack(stack_fleet: Fleet) -> Stack:
    """The session's stack, as the commands of the Makefile have it. For tests that leave it serving."""
    assert isinstance(stack_fleet, ProcessFleet)
    return stack_fleet.stack


@pytest.fixture(scope="session")
def around() -> Iterator[World]:
    """What an instance of posts or products needs around it."""
    with content_world() as made:
        yield made


@pytest.fixture(scope="session")
def rig() -> Iterator[Rig]:
    """Gateways of three groups over one Redis, two of business: see `tests.support.gateway_rig` for their numbers."""
    env = {
        "MAX_BODY_BYTES": str(64 * MIB),
        "BODY_TIMEOUT_S": "1",
        # What a busy machine makes late is no absence of Redis here.
        "REDIS_CACHE_TIMEOUT_S": "1",
        # More than any subject of these tests asks, but for those that ask for too much.
        "GATEWAY_RATE_LIMITS": "60/hour",
        "GATEWAY_QUOTAS": "off",
        "GATEWAY_KEY_RATE_LIMITS": "3/hour",
    }
    with gateway_rig("business", "business", "identity", "ai", with_redis=True, env=env) as made:
        yield made


@pytest.fixture(scope="session")
def whole_stage() -> Iterator[Stage]:
    with on_stage() as made:
        yield made


@pytest.fixture
def stage(whole_stage: Stage) -> Iterator[Stage]:
    whole_stage.reset()
    yield whole_stage
    whole_stage.reset()
