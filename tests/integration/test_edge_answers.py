"""What the edge does to answers: cache, compression, TLS and HTTP/2, protection headers."""

from __future__ import annotations

import gzip
import json
import subprocess
import uuid

import pytest

from tests.support.accounts import Account, ask
from tests.support.eventually import eventually
from tests.support.fleet import Fleet

pytestmark = pytest.mark.needs_stack


@pytest.fixture(scope="module")
def product(stack_fleet: Fleet, admin: Account) -> str:
    """The id of a product that an administrator has just written."""
    body = {
        "sku": f"LAMP-{uuid.uuid4().hex[:8]}",
        "category": "lamps",
        "name": f"Lamp {uuid.uuid4().hex[:6]}",
        "description": "It shines. " * 200,
        "price": 4999,
        "currency": "EUR",
    }
    reply = admin.ask("POST", "/api/products", body)
    assert reply.status == 201, reply
    return json.loads(reply.body)["data"]["id"]


def test_second_read_of_a_product_comes_from_the_edges_cache(fleet: Fleet, product: str) -> None:
    path = f"/api/products/{product}?fresh={uuid.uuid4().hex}"
    first = ask(fleet.edge_port, "GET", path)
    second = ask(fleet.edge_port, "GET", path)
    assert (first.status, first.headers["x-cache"]) == (200, "MISS")
    assert (second.status, second.headers["x-cache"]) == (200, "HIT")
    assert "age" in second.headers
    assert second.body == first.body
    assert second.headers["x-request-id"] != first.headers["x-request-id"]


def test_product_answer_has_the_promised_shape(fleet: Fleet, product: str) -> None:
    data = json.loads(ask(fleet.edge_port, "GET", f"/api/products/{product}").body)["data"]
    assert {"id", "name", "price", "currency"} <= set(data)
    assert (data["id"], data["price"], data["currency"]) == (product, 4999, "EUR")


def test_unchanged_product_is_a_304(fleet: Fleet, product: str) -> None:
    path = f"/api/products/{product}"
    tag = ask(fleet.edge_port, "GET", path).headers["etag"]
    reply = ask(fleet.edge_port, "GET", path, headers={"If-None-Match": tag})
    assert (reply.status, reply.body) == (304, b"")


def test_answer_with_a_token_is_never_taken_from_the_cache(fleet: Fleet, account: Account) -> None:
    path = f"/api/users/{account.id}"
    answers = [account.ask("GET", path) for _ in range(3)]
    assert {a.status for a in answers} == {200}
    assert "HIT" not in {a.headers.get("x-cache") for a in answers}


def test_long_answer_is_compressed_for_a_client_that_asks(fleet: Fleet, product: str) -> None:
    path = f"/api/products/{product}?zip={uuid.uuid4().hex}"
    plain = ask(fleet.edge_port, "GET", path)
    packed = ask(fleet.edge_port, "GET", path, headers={"Accept-Encoding": "gzip"})
    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == "gzip"
    assert gzip.decompress(packed.body) == plain.body
    assert len(packed.body) < len(plain.body)


def curl(*arguments: str) -> str:
    """What curl printed; raises with its error."""
    return subprocess.run(
        ["curl", "-sS", "--noproxy", "*", "--max-time", "10", *arguments],
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_https_speaks_http_2_and_reaches_the_same_services(fleet: Fleet) -> None:
    url = f"https://127.0.0.1:{fleet.edge_https_port}/api/posts"
    told = curl("-k", "-o", "/dev/null", "-w", "%{http_version} %{http_code} %header{x-served-lane}", url)
    assert told == "2 200 direct" or told.startswith("2 200"), told


@pytest.mark.parametrize("version", ["--tlsv1.0", "--tlsv1.1"])
def test_old_tls_is_refused(fleet: Fleet, version: str) -> None:
    url = f"https://127.0.0.1:{fleet.edge_https_port}/api/posts"
    with pytest.raises(subprocess.CalledProcessError):
        curl("-k", version, "--tls-max", version.removeprefix("--tlsv"), url)


@pytest.mark.parametrize("path", ["/api/posts", "/nowhere"])
def test_every_answer_carries_protection_headers(fleet: Fleet, path: str) -> None:
    headers = ask(fleet.edge_port, "GET", path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"].upper() in {"DENY", "SAMEORIGIN"}
    assert headers["referrer-policy"]


def test_product_written_by_nobody_or_by_a_user_is_refused(fleet: Fleet, account: Account) -> None:
    body = {"name": "Mine", "price": 1, "currency": "EUR"}
    assert ask(fleet.edge_port, "POST", "/api/products", json_body=body).status == 401
    assert account.ask("POST", "/api/products", body).status == 403


def test_changed_product_is_seen_once_its_freshness_is_over(
    fleet: Fleet, admin: Account, product: str
) -> None:
    path = f"/api/products/{product}"
    seen = ask(fleet.edge_port, "GET", path)
    tag = seen.headers["etag"]
    change = admin.ask("PATCH", path, {"name": "Renamed"}, **{"If-Match": tag})
    assert change.status == 200, change
    eventually(
        lambda: json.loads(ask(fleet.edge_port, "GET", path).body)["data"]["name"] == "Renamed",
        30,
        every_s=0.5,
    )
