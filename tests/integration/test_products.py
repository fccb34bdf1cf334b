"""products: two real instances on one database, of either kind."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.integration.content import World, pair
from tests.support.databases import Backend, on_both
from tests.support.document import Documented
from tests.support.instances import RunningInstance
from tests.support.matrix import one_always

pytestmark = on_both

NEW = {"sku": "A-1", "name": "Chair", "category": "garden", "price": 1999, "currency": "EUR"}
READ = "public, max-age=5, s-maxage=5"


@pytest.fixture(scope="module")
def two(
    around: World, backend: Backend, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[RunningInstance]]:
    with pair("products", backend, around, tmp_path_factory.mktemp("products")) as instances:
        yield instances


@pytest.fixture
def shop(two: list[RunningInstance], around: World) -> RunningInstance:
    """An instance over an empty catalogue."""
    while items := two[0].call("GET", "/api/products", params={"limit": 100}).json()["data"]:
        for item in items:
            two[0].call("DELETE", f"/api/products/{item['id']}", token=around.admin())
    return two[0]


def add(shop: RunningInstance, around: World, **values: Any) -> dict[str, Any]:
    answer = shop.call("POST", "/api/products", json={**NEW, **values}, token=around.admin())
    assert answer.status_code == 201, answer.text
    return answer.json()["data"]


def pages(shop: RunningInstance, **params: Any) -> list[dict[str, Any]]:
    """All items of a list, page by page."""
    items: list[dict[str, Any]] = []
    cursor = None
    for _ in range(100):
        answer = shop.call(
            "GET", "/api/products", params={**params, **({"cursor": cursor} if cursor else {})}
        )
        assert answer.status_code == 200, answer.text
        items += answer.json()["data"]
        cursor = answer.json()["page"]["nextCursor"]
        if cursor is None:
            return items
    raise AssertionError("the list does not end")


def test_created_product_is_read_at_the_other_instance(
    shop: RunningInstance, two: list[RunningInstance], around: World
) -> None:
    answer = shop.call("POST", "/api/products", json=NEW, token=around.admin())
    assert answer.status_code == 201
    data = answer.json()["data"]
    assert {k: data[k] for k in NEW} == NEW
    assert answer.headers["Location"] == f"/api/products/{data['id']}"
    assert answer.headers["Cache-Control"] == "no-store"
    assert two[1].call("GET", answer.headers["Location"]).json() == {"data": data}


@pytest.mark.parametrize("method", ["POST", "PATCH", "DELETE"])
def test_only_administrators_write(shop: RunningInstance, around: World, method: str) -> None:
    path = "/api/products"
    if method != "POST":
        path += "/" + add(shop, around)["id"]
    body = {"price": 1} if method == "PATCH" else NEW
    for token, status in (
        (None, 401),
        (around.user("u"), 403),
        (around.signer.token("service:x", "service"), 403),
    ):
        answer = shop.call(method, path, json=body, token=token)
        assert answer.status_code == status
        assert answer.headers["Content-Type"] == "application/problem+json"


def test_answers_are_as_the_document_says(shop: RunningInstance, around: World) -> None:
    ask, token, one = Documented(shop), around.admin(), "/api/products/{product_id}"
    product = ask("POST", "/api/products", json=NEW, token=token)["data"]["id"]
    ask("GET", "/api/products")
    ask("GET", one, product)
    ask("PATCH", one, product, json={"name": "N"}, token=token)
    ask("DELETE", one, product, token=token)


def test_reads_are_cacheable_and_errors_are_not(shop: RunningInstance, around: World) -> None:
    path = f"/api/products/{add(shop, around)['id']}"
    for good in (path, "/api/products", "/api/products?q=chair"):
        answer = shop.call("GET", good)
        assert answer.headers["Cache-Control"] == READ
        assert not {"Set-Cookie", "Vary", "Expires", "Pragma"} & set(answer.headers)
        assert answer.headers["ETag"].startswith('"')
        assert int(answer.headers["Content-Length"]) == len(answer.content)
    for bad in (
        path[:-1],
        "/api/products/%00",
        "/api/products?limit=0",
        "/api/products?cursor=x",
        "/api/productsX",
    ):
        answer = shop.call("GET", bad)
        assert 400 <= answer.status_code < 500
        assert answer.headers["Cache-Control"] == "no-store"


def test_unchanged_product_is_304_and_changed_is_not(shop: RunningInstance, around: World) -> None:
    path = f"/api/products/{add(shop, around)['id']}"
    tag = shop.call("GET", path).headers["ETag"]
    for sent in (tag, f"W/{tag}", "*", f'"x", {tag}'):
        answer = shop.call("GET", path, headers={"If-None-Match": sent})
        assert (answer.status_code, answer.content) == (304, b"")
        assert (answer.headers["ETag"], answer.headers["Cache-Control"]) == (tag, READ)
    assert shop.call("HEAD", path).headers["ETag"] == tag
    changed = shop.call("PATCH", path, json={"price": 5}, token=around.admin())
    assert changed.status_code == 200
    assert changed.headers["ETag"] != tag
    assert changed.headers["Cache-Control"] == "no-store"
    answer = shop.call("GET", path, headers={"If-None-Match": tag})
    assert (answer.status_code, answer.json()["data"]["price"]) == (200, 5)


def test_of_ten_writers_who_read_the_same_state_one_wins(
    shop: RunningInstance, two: list[RunningInstance], around: World
) -> None:
    path = f"/api/products/{add(shop, around)['id']}"
    tag = shop.call("GET", path).headers["ETag"]
    start = threading.Barrier(10)

    def write(n: int) -> int:
        start.wait(10)
        body, headers = {"price": n}, {"If-Match": tag}
        return two[n % 2].call("PATCH", path, json=body, token=around.admin(), headers=headers).status_code

    with ThreadPoolExecutor(10) as pool:
        statuses = sorted(pool.map(write, range(10)))
    assert statuses == [200] + [412] * 9
    assert shop.call("GET", path).json()["data"]["version"] == 2
    stale = {"If-Match": tag}
    assert shop.call("DELETE", path, token=around.admin(), headers=stale).status_code == 412
    current = {"If-Match": "W/" + shop.call("GET", path).headers["ETag"]}
    assert shop.call("DELETE", path, token=around.admin(), headers=current).status_code == 204
    assert shop.call("GET", path).status_code == 404
    assert shop.call("DELETE", path, token=around.admin()).status_code == 404


def test_one_sku_is_one_product(shop: RunningInstance, two: list[RunningInstance], around: World) -> None:
    def create(n: int) -> int:
        return two[n % 2].call("POST", "/api/products", json=NEW, token=around.admin()).status_code

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(create, range(8))) == [201] + [409] * 7
    other = add(shop, around, sku="A-2")
    answer = shop.call("PATCH", f"/api/products/{other['id']}", json={"sku": "a-1"}, token=around.admin())
    assert (answer.status_code, answer.headers["Cache-Control"]) == (409, "no-store")


def test_filters_are_joined(shop: RunningInstance, around: World) -> None:
    add(shop, around, sku="1", name="Red chair", price=500)
    add(shop, around, sku="2", name="Blue chair", price=900, category="indoor")
    add(shop, around, sku="3", name="Red table", price=900, currency="JPY", description="for four chairs")

    def skus(**params: Any) -> list[str]:
        return sorted(item["sku"] for item in pages(shop, **params))

    assert skus() == ["1", "2", "3"]
    assert skus(category="Garden") == ["1", "3"]
    assert skus(currency="eur", minPrice=501) == ["2"]
    assert skus(currency="EUR", minPrice=500, maxPrice=900) == ["1", "2"]
    assert skus(q="red") == ["1", "3"]
    assert skus(q="RED chair") == ["1"]
    assert skus(q="chairs") == ["3"]
    assert skus(q="red", currency="JPY", category="garden") == ["3"]
    assert skus(q="nothing") == []
    for params in ({"minPrice": 5}, {"currency": "DEM"}, {"sort": "id"}, {"limit": 101}, {"q": "x" * 201}):
        assert shop.call("GET", "/api/products", params=params).status_code == 422


@pytest.mark.parametrize("sort", ["newest", "name", "-name", "price", "-price"])
def test_each_order_is_total_over_small_pages(shop: RunningInstance, around: World, sort: str) -> None:
    for n in range(11):
        add(shop, around, sku=str(n), name=f"n{n % 3}", price=n % 2, currency=("EUR", "USD")[n % 2])
    whole = shop.call("GET", "/api/products", params={"sort": sort, "limit": 100}).json()["data"]
    assert pages(shop, sort=sort, limit=2) == whole
    assert len({item["id"] for item in whole}) == 11
    keys = {
        "newest": lambda i: -int(i["sku"]),
        "name": lambda i: i["name"],
        "-name": lambda i: [-ord(c) for c in i["name"]],
        "price": lambda i: (i["currency"], i["price"]),
        "-price": lambda i: ([-ord(c) for c in i["currency"]], -i["price"]),
    }
    assert whole == sorted(whole, key=keys[sort]), "the order is not the one that was asked for"


def test_inserts_and_deletions_between_pages_repeat_and_hide_nothing(
    shop: RunningInstance, around: World
) -> None:
    made = [add(shop, around, sku=f"o{n}", name=f"m{n}") for n in range(6)]
    for sort in ("newest", "name"):
        first = shop.call("GET", "/api/products", params={"sort": sort, "limit": 3}).json()
        seen = [item["id"] for item in first["data"]]
        add(shop, around, sku=f"new-{sort}", name="a" if sort == "name" else "z")
        cursor = first["page"]["nextCursor"]
        rest = shop.call("GET", "/api/products", params={"sort": sort, "limit": 100, "cursor": cursor}).json()
        later = [item["id"] for item in rest["data"]]
        assert not set(seen) & set(later)
        assert {p["id"] for p in made} <= {*seen, *later}


@pytest.mark.parametrize("value", one_always("%00", "%ff%fe", "%ed%a0%80", "A" * 3000, "1e9"))
def test_hostile_bytes_are_refused_or_answered_but_never_500(shop: RunningInstance, value: str) -> None:
    for name in ("q", "category", "cursor", "limit"):
        assert shop.call("GET", f"/api/products?{name}={value}").status_code in (200, 400, 422), name
