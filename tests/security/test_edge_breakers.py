"""`/edge/breakers` changes how all clients are served: no bad token, and no trick with its path, gets past the edge."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from haproxy.controller.config.model import EdgeState
from tests.security.test_tokens import PASSES, REFUSED, Door, Make
from tests.support.edge import backend, edge
from tests.support.recorder import Upstream
from tests.support.tokens import Issuer

PATH = "/edge/breakers/business/users"


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    folder: Path = tmp_path_factory.mktemp("keys")
    one, two, stray = (Issuer.make(kid, folder) for kid in ("key-1", "key-2", "stray"))
    with Upstream("gateway-business") as upstream:
        gateway = backend("gateway-business", upstream.port, paths=("/api/gateway/business",))
        state = EdgeState((gateway,), (one.verify_key, two.verify_key))
        with edge(state) as running:
            yield Door(running, upstream, one, two, stray)


@pytest.mark.parametrize("make", REFUSED.values(), ids=REFUSED.keys())
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_bad_token_reaches_no_gateway(door: Door, make: Make, method: str) -> None:
    assert door.ask(make(door), PATH, method) == 401
    assert door.upstream.requests == []


@pytest.mark.parametrize("make", PASSES.values(), ids=PASSES.keys())
def test_good_token_does(door: Door, make: Make) -> None:
    assert door.ask(make(door), PATH) == 200
    assert door.upstream.requests[0].target == PATH


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("//edge/breakers", 400),
        ("/edge//breakers", 400),
        ("/x/../edge/breakers", 400),
        ("/edge/breakers/../../api", 400),
        ("/edge/breakers;x", 400),
        ("/edge%2fbreakers", 400),
        ("/edge/breakers%00", 400),
        ("/%65dge/breakers", 401),
        ("/edge/%62reakers/", 401),
        ("http://edge.test/edge/breakers", 401),
        ("/api/gateway/business/../../../edge/breakers", 400),
    ],
)
def test_no_spelling_of_the_path_needs_no_token(door: Door, path: str, status: int) -> None:
    assert door.ask(None, path) == status
    assert door.upstream.requests == []
