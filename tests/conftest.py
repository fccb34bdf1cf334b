"""What tests share: one stack a session, healthy at the start of every test that uses it; an empty Redis; databases."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from xdist.scheduler import LoadScopeScheduling

from stack import launch
from tests.support import servers
from tests.support.accounts import Account, new_account
from tests.support.actor import GUEST_HOST
from tests.support.databases import CHOSEN, Backend
from tests.support.fleet import Fleet
from tests.support.postgres import PostgresServer, postgres

CONTAINERS = os.environ.get("FLEET") == "containers"
"""Set by `make test-compose`: the stack is Docker's, and tests of containers are there."""
collect_ignore = [] if CONTAINERS else ["containers"]


class _Together(LoadScopeScheduling):
    """A file stays on one worker, and so do all files that share what a session starts once: see `_scope`.

    xdist's own groups (`--dist loadgroup`) write themselves into a test's name, where pytest 9.2 no longer reads it.
    """

    def _split_scope(self, nodeid: str) -> str:
        return _scope(nodeid.partition("::")[0])


# The longest first: what is begun last should not be what the others wait for.
LONGEST_FIRST = ("stack", "shared", "resilience", "contract", "integration", "security", "unit")


@cache
def _scope(path: str) -> str:
    """What a file shares with others, by its marker (`needs_stack`, `shares("gateways")`); else the file itself."""
    found = re.search(r"""mark\.(?:needs_(\w+)|shares\("(\w+)"\))""", Path(path).read_text())
    return (found[1] or found[2]) if found else path


def _place(item: pytest.Item) -> int:
    scope = _scope(str(item.path))
    if scope != str(item.path):
        return LONGEST_FIRST.index("stack" if scope == "stack" else "shared")
    folder = item.path.relative_to(Path(__file__).parent).parts[0]
    return LONGEST_FIRST.index(folder) if folder in LONGEST_FIRST else len(LONGEST_FIRST)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_place)


def pytest_configure() -> None:
    try:
        launch.check_backends(os.environ)
    except launch.UsageError as error:
        raise pytest.UsageError(str(error)) from None


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return _Together(config, log)


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """pytest's own is too deep for Unix sockets, whose paths end at 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="bw-", ignore_cleanup_errors=True) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def redis_server() -> Iterator[servers.RedisServer]:
    """The Redis of a file."""
    with servers.redis() as started:
        yield started


@pytest.fixture
def redis(redis_server: servers.RedisServer) -> Iterator[Redis]:
    """A client of the file's Redis, which is empty."""
    with Redis.from_url(redis_server.url) as client:
        client.flushall()
        yield client


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One for all that this worker runs; each test takes databases of its own from it."""
    with postgres() as running:
        yield running


@pytest.fixture(scope="module", params=CHOSEN)
def backend(request: pytest.FixtureRequest) -> Backend:
    """Where a file's instances keep their data: in SQLite, and with `BACKENDS=full` once more in PostgreSQL."""
    on_server = request.param == "postgresql"
    return Backend(request.getfixturevalue("postgres_server") if on_server else None)


@pytest.fixture(scope="session")
def stack_fleet() -> Iterator[Fleet]:
    """The session's stack. Tests take `fleet`, which sees to its health."""
    if CONTAINERS:
        yield from _containers()
        return
    from tests.support.process_fleet import ProcessFleet

    # Directly under the temporary folder, for Unix socket paths end at 107 bytes; readable by the user that it runs as.
    with tempfile.TemporaryDirectory(prefix="bw-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        fleet = ProcessFleet(
            Path(name) / "var",
            # The load of the tests comes from one address and one subject: limits have tests of their own.
            env={"EDGE_RATE_SOURCE": "1000000", "EDGE_RATE_SUBJECT": "1000000"},
            # A login that costs what it should would be most of the machine's work.
            service_env={"auth": {"AUTH_ARGON2_MEMORY_KIB": "1024", "AUTH_ARGON2_TIME": "1"}},
        )
        try:
            fleet.up()
            yield fleet
        finally:
            fleet.down()


def _containers() -> Iterator[Fleet]:
    from tests.support.container_fleet import ContainerFleet

    # Beside other projects on the same engine, and other networks of this machine.
    number = os.getpid()
    limits = {"EDGE_RATE_SOURCE": "1000000", "EDGE_RATE_SUBJECT": "1000000"}
    cheap = {"AUTH_ARGON2_MEMORY_KIB": "1024", "AUTH_ARGON2_TIME": "1"}
    fleet = ContainerFleet(f"breakwater-test-{number}", f"172.30.{number % 250 + 1}.0/24", **limits, **cheap)
    os.environ[GUEST_HOST] = fleet.host
    try:
        fleet.up()
        yield fleet
    finally:
        fleet.down()


@pytest.fixture
def fleet(stack_fleet: Fleet) -> Iterator[Fleet]:
    """The session's stack, healthy before the test and brought back to health after it."""
    stack_fleet.repair()
    yield stack_fleet
    stack_fleet.repair()


@pytest.fixture(scope="session")
def account(stack_fleet: Fleet) -> Account:
    """A user made through the edge."""
    return new_account(stack_fleet.edge_port)


@pytest.fixture(scope="session")
def other_account(stack_fleet: Fleet) -> Account:
    return new_account(stack_fleet.edge_port)


@pytest.fixture(scope="session")
def admin(stack_fleet: Fleet) -> Account:
    """A user made through the edge and given the scope `admin` by the operator's command."""
    account = new_account(stack_fleet.edge_port)
    stack_fleet.grant_admin(account.email)
    return account
