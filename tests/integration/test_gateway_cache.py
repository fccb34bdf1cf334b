"""Two real gateways of one group, one Redis: what they keep of a service's answers, as a client sees it.

The cache's finer points are in tests/contract/redis, and which caller may have which answer in tests/security.
"""

from __future__ import annotations

import http.client
import json
import threading
import time

import pytest

from tests.support.eventually import eventually
from tests.support.gateway_rig import Answer, Rig, Service, metric
from tests.support.scripted import Handler

pytestmark = pytest.mark.shares("gateways")

ONE, OTHER = 0, 1


@pytest.fixture(autouse=True, scope="module")
def _redis_is_there(rig: Rig) -> None:
    """Another file may have taken it away."""
    for gateway in (ONE, OTHER):
        eventually(lambda gateway=gateway: metric(rig, "gateway_cache_away", {}, gateway) == 0, 15)


class Page:
    """What the service answers: a number that a test changes."""

    def __init__(self, control: str = "public, max-age=60", takes_s: float = 0.0) -> None:
        self.number = 1
        self.control = control
        self.takes_s = takes_s

    def __call__(self, handler: Handler) -> None:
        time.sleep(self.takes_s)
        if handler.command not in ("GET", "HEAD"):
            handler.answer(200, b"{}")
            return
        tag = f'"{self.number}"'
        if handler.seen.headers.get("if-none-match") == tag:
            handler.send_response(304)
            handler.send_header("ETag", tag)
            handler.send_header("Cache-Control", self.control)
            handler.end_headers()
            return
        who = handler.seen.headers.get("authorization", "nobody")
        body = f"{self.number} for {who}" if "private" in self.control else str(self.number)
        handler.answer(200, body.encode(), ETag=tag, Cache_Control=self.control, X_Own="1", Set_Trace="a")


def get(rig: Rig, pears: Service, gateway: int = ONE, path: str = "/1", **headers: str) -> Answer:
    # The client's, as the edge passes it on to whichever gateway.
    sent = {"Host": "edge.test"} | {name.replace("_", "-"): value for name, value in headers.items()}
    return rig.ask("GET", pears.path + path, service=pears, gateway=gateway, headers=sent)


def bearer(rig: Rig, subject: str, scope: str = "user") -> str:
    return f"Bearer {rig.signer.token(subject, scope)}"


def test_answer_of_one_gateway_is_the_others_and_304_for_a_client_that_has_it(rig: Rig) -> None:
    with rig.service(Page()) as pears:
        first = get(rig, pears)
        assert (first.status, first.body, first.headers["x-cache"]) == (200, b"1", "MISS")
        for gateway in (ONE, OTHER, OTHER):
            again = get(rig, pears, gateway)
            assert (again.status, again.body, again.headers["x-cache"]) == (200, b"1", "HIT")
            assert again.headers["content-length"] == "1"
            assert again.headers["x-own"] == "1"
            assert int(again.headers["age"]) <= 5
            assert "x-stale-age" not in again.headers
        short = get(rig, pears, OTHER, If_None_Match='"1"')
        assert (short.status, short.body, short.headers["etag"]) == (304, b"", '"1"')
        assert len(pears.requests) == 1
    assert metric(rig, "gateway_cache_total", {"outcome": "hit"}, OTHER) >= 3
    assert metric(rig, "gateway_cache_bytes", {}, OTHER) > 0


def test_200_clients_of_two_gateways_on_one_expired_hot_key_cost_two_calls_at_most(rig: Rig) -> None:
    page = Page("public, max-age=1")
    clients = 200
    with rig.service(page) as pears:
        get(rig, pears)
        get(rig, pears, OTHER)
        connections = [
            http.client.HTTPConnection("127.0.0.1", rig.gateways[n % 2].port, timeout=20)
            for n in range(clients)
        ]
        for connection in connections:
            connection.connect()
        time.sleep(1.1)
        page.number, page.takes_s, page.control = 2, 0.5, "public, max-age=60"
        before = len(pears.requests)
        given: list[tuple[int, bytes]] = []
        gate = threading.Barrier(clients)

        def ask(connection: http.client.HTTPConnection) -> None:
            gate.wait(30)
            connection.request("GET", f"{pears.path}/1", headers=rig.headers(pears))
            answer = connection.getresponse()
            given.append((answer.status, answer.read()))

        threads = [threading.Thread(target=ask, args=(each,)) for each in connections]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        for connection in connections:
            connection.close()
        assert set(given) == {(200, b"2")}
        assert len(given) == clients
        assert 1 <= len(pears.requests) - before <= 2


def test_private_answer_is_its_owners_alone_on_every_gateway(rig: Rig) -> None:
    with rig.service(Page("private, max-age=60")) as pears:
        ann, bob = bearer(rig, "ann"), bearer(rig, "bob")
        assert get(rig, pears, Authorization=ann).body == f"1 for {ann}".encode()
        kept = get(rig, pears, OTHER, Authorization=bearer(rig, "ann"))
        assert (kept.headers["x-cache"], kept.body) == ("HIT", f"1 for {ann}".encode())
        for authorization in (bob, bearer(rig, "ann", "user admin"), ann[:-8] + "AAAAAAAA", ""):
            for gateway in (ONE, OTHER):
                other = get(
                    rig, pears, gateway, **({"Authorization": authorization} if authorization else {})
                )
                assert ann.encode() not in other.body


def test_write_and_purge_through_one_gateway_end_it_on_both(rig: Rig) -> None:
    page = Page()
    with rig.service(page) as pears:
        for number, end in enumerate(("write", "purge", "purge below"), start=2):
            for gateway in (ONE, OTHER):
                assert get(rig, pears, gateway).body == str(number - 1).encode()
            page.number = number
            assert get(rig, pears, OTHER).headers["x-cache"] == "HIT"
            answer = ended(rig, pears, end)
            assert answer.status == 200, answer
            assert get(rig, pears).body == str(number).encode()
            eventually(lambda now=number: get(rig, pears, OTHER).body == str(now).encode(), 1)


def ended(rig: Rig, pears: Service, how: str) -> Answer:
    admin = {"Authorization": bearer(rig, "root", "admin")}
    if how == "write":
        return rig.ask("PUT", f"{pears.path}/1", service=pears, body=b"{}")
    below = f"path={pears.path}/1" if how == "purge" else f"path={pears.path}&prefix=true"
    return rig.ask("PURGE", f"/api/gateway/business/cache?service={pears.name}&{below}", headers=admin)


@pytest.mark.parametrize("scope", [None, "user"])
def test_purge_is_for_administrators(rig: Rig, scope: str | None) -> None:
    with rig.service(Page()) as pears:
        get(rig, pears)
        sent = {"Authorization": bearer(rig, "ann", scope)} if scope else {}
        own = f"/api/gateway/business/cache?service={pears.name}&path=/"
        refused = rig.ask("PURGE", own, headers=sent)
        assert refused.status == (403 if scope else 401)
        assert json.loads(refused.body)["status"] == refused.status
        assert ("www-authenticate" in refused.headers) or scope
        assert get(rig, pears).headers["x-cache"] == "HIT"
        assert len(pears.requests) == 1


def test_refresh_goes_on_when_its_client_has_left(rig: Rig) -> None:
    page = Page("public, max-age=1, stale-while-revalidate=30")
    with rig.service(page) as pears:
        get(rig, pears)
        time.sleep(1.1)
        page.number, page.takes_s, page.control = 2, 0.6, "public, max-age=60"
        # The connection is closed as soon as the stale answer is there.
        assert get(rig, pears).headers["x-cache"] == "STALE"
        eventually(lambda: get(rig, pears).body == b"2", 5)
        assert len(pears.requests) == 2
