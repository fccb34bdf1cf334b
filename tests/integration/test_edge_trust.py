"""Who is let through the whole stack: forged tokens, borrowed names, other people's data, stolen routes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import requests

from tests.support.accounts import Account, ask
from tests.support.actor import actor
from tests.support.eventually import eventually
from tests.support.faults import deregister, guest, register
from tests.support.fleet import Fleet
from tests.support.tokens import Issuer, parts, promoted, unsigned

pytestmark = pytest.mark.needs_stack


def test_user_reads_and_changes_himself(fleet: Fleet, account: Account) -> None:
    reply = account.ask("GET", f"/api/users/{account.id}")
    assert reply.status == 200
    data = json.loads(reply.body)["data"]
    assert (data["id"], data["email"]) == (account.id, account.email)
    assert {"username", "firstName", "lastName", "postCount"} <= set(data)


@pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE"])
def test_user_at_another_users_data_is_refused(
    fleet: Fleet, account: Account, other_account: Account, method: str
) -> None:
    path = f"/api/users/{other_account.id}"
    reply = account.ask(method, path, {"firstName": "Eve"} if method == "PATCH" else None)
    assert reply.status == 403
    assert other_account.email.encode() not in reply.body
    assert json.loads(other_account.ask("GET", path).body)["data"]["firstName"] == "Ada"


def test_administrator_reads_everybody(fleet: Fleet, admin: Account, account: Account) -> None:
    assert admin.ask("GET", f"/api/users/{account.id}").status == 200


@pytest.mark.parametrize(
    "forge",
    [
        lambda good, issuer: None,
        lambda good, issuer: "Bearer",
        lambda good, issuer: "Bearer nonsense",
        lambda good, issuer: "Bearer " + good[:-4] + ("AAAA" if not good.endswith("AAAA") else "BBBB"),
        lambda good, issuer: "Bearer " + issuer.good(),
        lambda good, issuer: "Bearer " + issuer.sign(parts(good)[1], kid=parts(good)[0]["kid"]),
        lambda good, issuer: "Bearer " + unsigned(parts(good)[1], kid=parts(good)[0]["kid"]),
        lambda good, issuer: "Bearer " + promoted(good),
    ],
    ids=[
        "none",
        "empty",
        "nonsense",
        "bad-signature",
        "own-issuer",
        "own-key-known-kid",
        "alg-none",
        "claims-changed",
    ],
)
def test_forged_token_is_a_401(fleet: Fleet, account: Account, tmp_path: Path, forge) -> None:  # type: ignore[no-untyped-def]
    value = forge(account.token(), Issuer.make("stranger", tmp_path))
    headers = {} if value is None else {"Authorization": value}
    reply = ask(fleet.edge_port, "GET", f"/api/users/{account.id}", headers=headers)
    assert reply.status == 401, reply
    assert account.email.encode() not in reply.body


def test_two_authorization_headers_are_refused(fleet: Fleet, account: Account) -> None:
    headers = {"Authorization": f"Bearer {account.token()}", "authorization": "Bearer other"}
    assert ask(fleet.edge_port, "GET", f"/api/users/{account.id}", headers=headers).status in {400, 401}


def test_spoofed_headers_do_not_reach_an_instance(fleet: Fleet, account: Account) -> None:
    spoofed = {
        "X-Auth-Subject": "root",
        "X-Auth-Scope": "admin service",
        "X-Auth-Anything": "yes",
        "X-Edge-Route": "users",
        "X-Edge-Trust": "all",
        "Forwarded": "for=203.0.113.9",
        "X-Forwarded-For": "203.0.113.9",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": "evil.example",
        "X-Forwarded-Prefix": "/evil",
    }
    with actor("witness", "witness-1") as witness, guest(fleet, witness, {"edge-path": "/api/witness"}):
        path = "/api/witness"
        eventually(lambda: account.ask("GET", path).status == 200, 10)
        assert ask(fleet.edge_port, "GET", path, headers=spoofed).status == 401
        assert account.ask("GET", path, **spoofed).status == 200
        headers = witness.seen[-1][2]
    assert headers["x-auth-subject"] == account.id
    assert headers["x-auth-scope"] == "user"
    assert headers["x-edge-route"] == "witness"
    assert headers["x-forwarded-for"] == "127.0.0.1"
    assert headers["x-forwarded-proto"] == "http"
    assert headers["x-forwarded-host"] != "evil.example"
    assert not {"x-auth-anything", "x-edge-trust", "forwarded", "x-forwarded-prefix"} & set(headers)


def test_spoofed_subject_does_not_open_another_users_data(
    fleet: Fleet, account: Account, other_account: Account
) -> None:
    spoofed = {"X-Auth-Subject": other_account.id, "X-Auth-Scope": "admin"}
    assert account.ask("GET", f"/api/users/{other_account.id}", **spoofed).status == 403


def verdict(fleet: Fleet, service: str, token: str | None = None) -> dict[str, object]:
    """What the controller has written about the service; empty while there is nothing."""
    keys = fleet.consul("GET", "/v1/kv/edge/status/?keys", token=token)
    mine = [key for key in keys if key.endswith(f"/{service}")]
    return fleet.consul("GET", f"/v1/kv/{mine[0]}?raw", token=token) if mine else {}


def test_rogue_service_with_a_valid_token_of_its_own_cannot_take_a_path(
    fleet: Fleet, account: Account
) -> None:
    token = fleet.consul_token("rogue")
    with actor("rogue", "rogue-1") as rogue:
        try:
            register(fleet, rogue, {"edge-path": "/api/users", "edge-auth": "public"}, token=token)
            told = eventually(lambda: verdict(fleet, "rogue", token), 10)
            assert "/api/users" in json.dumps(told)
            assert "users" in json.dumps(told)
            assert told["accepted"] is False, told
            assert verdict(fleet, "users")["accepted"] is True
            for _ in range(10):
                assert account.ask("GET", f"/api/users/{account.id}").status == 200
            assert rogue.requests == 0
        finally:
            deregister(fleet, rogue.instance_id)


def test_rogue_token_cannot_register_another_service(fleet: Fleet) -> None:
    token = fleet.consul_token("rogue")
    with actor("users", "users-rogue") as rogue, pytest.raises(requests.HTTPError) as refused:
        register(fleet, rogue, {"edge-path": "/api/users"}, token=token)
    assert refused.value.response.status_code == 403
