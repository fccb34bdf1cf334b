"""A new connection carries no request before the other side has said of which service it is."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

import discovery
from discovery.consul.static import StaticView
from discovery.errors import ConnectFailed, ResponseTimeout
from tests.support.scripted import Handler, Upstream, ok, upstream


@pytest.fixture(name="users")
def users_fixture() -> Iterator[Upstream]:
    with upstream() as server:
        server.service = "users"
        yield server


def client(*servers: Upstream) -> discovery.ServiceClient:
    return discovery.ServiceClient(
        StaticView([each.instance(identity_path="/health/ready") for each in servers])
    )


def test_one_that_says_so_is_asked_once_for_many_requests(users: Upstream) -> None:
    asked = []

    def health(handler: Handler) -> None:
        asked.append(handler.seen.path)
        handler.answer(X_Service="users")

    users.service, users.behave = "", lambda h: health(h) if h.seen.path == "/health/ready" else ok(h)
    calls = client(users)
    for _ in range(20):
        assert calls.request("GET", "users", "/x").status == 200
    assert asked == ["/health/ready"]
    assert users.connections == 1


def test_body_that_comes_in_pieces_follows_at_once(users: Upstream) -> None:
    pieces = iter([b"x" * 1000] * 3)
    assert client(users).request("POST", "users", "/x", body=pieces, deadline_s=2.0).status == 200
    assert users.requests[-1].body == b"x" * 3000


@pytest.mark.parametrize("said", ["other", "Users", "users, users", ""])
def test_one_of_another_service_gets_no_request(users: Upstream, said: str) -> None:
    users.service = said
    if not said:
        users.behave = lambda handler: handler.answer()
    with pytest.raises(ConnectFailed):
        client(users).request("POST", "users", "/x", body=b"secret")
    assert [seen.path for seen in users.requests if seen.path != "/health/ready"] == []


def test_what_has_taken_over_a_port_gets_no_request() -> None:
    def leaves(handler: Handler) -> None:
        handler.close_connection = True
        handler.answer()

    with upstream(leaves) as first:
        first.service = "users"
        calls = client(first)
        assert calls.request("GET", "users", "/x").status == 200
    time.sleep(1.1)
    with upstream(port=first.port) as other:
        other.service = "others"
        with pytest.raises(ConnectFailed):
            calls.request("GET", "users", "/x")
        assert other.requests == []


def test_another_instance_answers_in_its_place(users: Upstream) -> None:
    with upstream() as stranger:
        stranger.service = "others"
        calls = client(stranger, users)
        assert {calls.request("POST", "users", "/x").status for _ in range(4)} == {200}
        assert stranger.requests == []


def test_connections_of_one_service_are_not_lent_to_another(users: Upstream) -> None:
    mine = users.instance(identity_path="/health/ready")
    squatter = users.instance("others", identity_path="/health/ready")
    calls = discovery.ServiceClient(StaticView([mine, squatter]))
    assert calls.request("GET", "users", "/x").status == 200
    with pytest.raises(ConnectFailed):
        calls.request("GET", "others", "/x")
    assert len(users.requests) == 1


def test_one_that_hangs_counts_as_one_that_hangs(users: Upstream) -> None:
    done = threading.Event()
    users.service, users.behave = "", lambda handler: done.wait(10) and None
    try:
        with pytest.raises((ResponseTimeout, discovery.DeadlineExceeded)):
            client(users).request("POST", "users", "/x", deadline_s=0.6)
    finally:
        done.set()


def test_one_that_closes_after_its_health_is_connected_to_again(users: Upstream) -> None:
    def closes(handler: Handler) -> None:
        handler.close_connection = True
        handler.answer(Connection="close", X_Service="users")

    users.service, users.behave = "", closes
    assert client(users).request("GET", "users", "/x").status == 200
    assert [seen.path for seen in users.requests] == ["/health/ready", "/x"]
