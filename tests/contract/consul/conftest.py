"""One Consul for all tests that leave it running; each uses services of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from discovery import ConsulApi, Registration, View
from tests.support.faulty import FaultyProxy, faulty_proxy
from tests.support.servers import ConsulServer, consul

WAIT_S = 0.5


@pytest.fixture(scope="session")
def server() -> Iterator[ConsulServer]:
    with consul() as started:
        yield started


@pytest.fixture(scope="session")
def api(server: ConsulServer) -> ConsulApi:
    """Consul without a proxy."""
    return ConsulApi(server.address)


@pytest.fixture
def proxy(server: ConsulServer) -> Iterator[FaultyProxy]:
    with faulty_proxy(server.http_port) as started:
        yield started


@pytest.fixture
def view(api: ConsulApi, proxy: FaultyProxy) -> Iterator[View]:
    """Follows Consul through the proxy, with two instances of `stays` in it."""
    for port in (1, 2):
        api.register(Registration("stays", "127.0.0.1", port, f"stays-{port}", check=None))
    followed = View(ConsulApi(proxy.address, read_timeout_s=0.5), wait_s=WAIT_S, grace_s=1.0)
    followed.start()
    assert followed.ready(5)
    assert len(followed.snapshot().instances("stays")) == 2
    yield followed
    followed.stop()
