"""One stack for the whole session, healthy at the start of every test that uses it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.accounts import Account, new_account
from tests.support.fleet import Fleet


# Before xdist's own, which writes the groups that it finds into the tests' names and looks no more.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several workers (`make test` runs three) a file stays together, and so does all that uses the one stack."""
    for item in items:
        together = "stack" if item.get_closest_marker("needs_stack") else item.path.name
        item.add_marker(pytest.mark.xdist_group(together))


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """pytest's own is too deep for Unix sockets, whose paths end at 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="bw-", ignore_cleanup_errors=True) as name:
        yield Path(name)


@pytest.fixture(scope="session")
def stack_fleet() -> Iterator[Fleet]:
    """The session's stack. Tests take `fleet`, which sees to its health."""
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
