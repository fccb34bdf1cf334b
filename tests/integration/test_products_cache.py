"""HAProxy's own cache takes what products answers: hot reads end at the edge, and nothing wrong is kept there."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.integration.content import World, world
from tests.support.databases import Backend
from tests.support.eventually import eventually
from tests.support.instances import RunningInstance, instance
from tests.support.servers import free_port, haproxy

CONFIG = """
global
    maxconn 100
defaults
    mode http
    timeout connect 2s
    timeout client 10s
    timeout server 10s
cache hot
    total-max-size 4
    max-object-size 65536
    process-vary on
frontend edge
    bind 127.0.0.1:{port}
    filter cache hot
    filter compression
    compression algo gzip
    compression type application/json
    http-request cache-use hot
    http-response cache-store hot
    http-after-response set-header X-Cache HIT if !{{ srv_id -m found }}
    default_backend products
backend products
    server one 127.0.0.1:{instance}
"""


class Edge:
    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.session = requests.Session()
        self.session.trust_env = False

    def get(self, path: str, **headers: str) -> requests.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.session.get(self.url + path, headers={"Accept-Encoding": "identity", **named}, timeout=5)


def hit(answer: requests.Response) -> bool:
    return answer.headers.get("X-Cache") == "HIT"


@pytest.fixture(scope="module")
def around() -> Iterator[World]:
    with world() as made:
        yield made


@pytest.fixture(scope="module")
def shop(
    around: World, backend: Backend, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningInstance]:
    folder: Path = tmp_path_factory.mktemp("products")
    with instance("products", folder, {**around.env, **backend.env("products")}) as one:
        yield one


@pytest.fixture
def edge(shop: RunningInstance) -> Iterator[Edge]:
    port = free_port()
    with haproxy(CONFIG.format(port=port, instance=shop.port), wait_port=port):
        yield Edge(port)


@pytest.fixture
def path(shop: RunningInstance, around: World) -> str:
    new = {
        "sku": f"S-{time.monotonic_ns()}",
        "name": "Chair",
        "description": "d" * 500,
        "category": "garden",
        "price": 1999,
        "currency": "EUR",
    }
    answer = shop.call("POST", "/api/products", json=new, token=around.admin())
    assert answer.status_code == 201, answer.text
    return answer.headers["Location"]


@pytest.mark.parametrize("query", ["", "?limit=1", "?q=chair&sort=price"])
def test_second_read_of_a_list_ends_at_the_edge(edge: Edge, path: str, query: str) -> None:
    first, second = (edge.get("/api/products" + query) for _ in range(2))
    assert (hit(first), hit(second)) == (False, True)
    assert second.json() == first.json()


def test_hot_product_is_served_by_the_edge_until_it_is_five_seconds_old(
    edge: Edge, shop: RunningInstance, around: World, path: str
) -> None:
    first = edge.get(path)
    again = edge.get(path)
    assert (hit(first), hit(again)) == (False, True)
    assert again.json() == first.json()
    known = edge.get(path, If_None_Match=first.headers["ETag"])
    assert (known.status_code, hit(known)) == (304, True)
    assert shop.call("PATCH", path, json={"price": 1}, token=around.admin()).status_code == 200
    # An administrator sees his change at once: what carries a token passes the cache by.
    seen = edge.get(path, Authorization=f"Bearer {around.admin()}")
    assert (hit(seen), seen.json()["data"]["price"]) == (False, 1)
    eventually(lambda: edge.get(path).json()["data"]["price"] == 1, 8, every_s=0.25)


def test_change_can_name_a_tag_that_the_edge_made_weak(edge: Edge, around: World, path: str) -> None:
    squeezed = edge.get(path, Accept_Encoding="gzip")
    assert squeezed.headers["Content-Encoding"] == "gzip"
    tag = squeezed.headers["ETag"]
    assert tag.startswith("W/"), "HAProxy weakens what it compresses"
    answer = requests.patch(
        edge.url + path,
        json={"price": 2},
        headers={"Authorization": f"Bearer {around.admin()}", "If-Match": tag},
        timeout=5,
        proxies={"http": ""},
    )
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    "path", ["/api/products/" + "0" * 32, "/api/products?limit=0", "/api/products?cursor=x"]
)
def test_errors_are_asked_again_each_time(edge: Edge, path: str) -> None:
    for _ in range(2):
        answer = edge.get(path)
        assert answer.status_code >= 400
        assert not hit(answer)
