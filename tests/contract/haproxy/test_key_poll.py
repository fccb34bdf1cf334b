"""The edge follows the issuer's keys: first set, rotation, retirement, and an issuer that has gone."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

from haproxy.controller.wanted.jwks import PATH
from haproxy.controller.wanted.revocations import PATH as REVOCATIONS
from tests.contract.haproxy.rig import Edge, Program, edge, fresh
from tests.support.eventually import eventually
from tests.support.tokens import Issuer

AUTH = {"edge-path": "/api/auth", "edge-auth": "public"}
FIRST, SECOND = (rsa.generate_private_key(65537, 2048) for _ in range(2))


@pytest.fixture(scope="module")
def shared() -> Iterator[Edge]:
    with edge(EDGE_KEYS_S="0.2") as made:
        made.instance("closed", "closed-1", {"edge-path": "/api/closed", "edge-auth": "jwt"})
        made.instance("auth", "auth-1", AUTH)
        yield made


@pytest.fixture
def running(shared: Edge) -> Edge:
    """Tokens of the key `k1` pass, and none is revoked."""
    shared.restore()
    auth = shared.programs[1]
    auth.service, auth.ready = "auth", True
    auth.documents.clear()
    publish(auth, k1=FIRST)
    shared.register("auth", "auth-1", auth.port, AUTH)
    eventually(lambda: status(shared, "k1", FIRST) == 200, 10)
    return shared


@pytest.fixture
def auth(running: Edge) -> Program:
    return running.programs[1]


def publish(auth: Program, **keys: rsa.RSAPrivateKey) -> None:
    documents = [
        {**RSAAlgorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid} for kid, key in keys.items()
    ]
    auth.documents[PATH] = json.dumps({"keys": documents}).encode()


def status(running: Edge, kid: str, key: rsa.RSAPrivateKey) -> int:
    """What a token signed with this key gets at a route that needs one."""
    token = Issuer(kid, key, Path()).good(sub="u1")
    connection = http.client.HTTPConnection("127.0.0.1", running.settings.edge_http_port, timeout=5)
    try:
        connection.request("GET", "/api/closed", headers={"Authorization": f"Bearer {token}"})
        return connection.getresponse().status
    finally:
        connection.close()


def test_keys_are_followed_through_their_whole_life(running: Edge, auth: Program) -> None:
    assert status(running, "k2", SECOND) == 401
    assert status(running, "k1", SECOND) == 401

    publish(auth, k1=FIRST, k2=SECOND)
    eventually(lambda: status(running, "k2", SECOND) == 200, 10)
    assert status(running, "k1", FIRST) == 200

    publish(auth, k2=SECOND)
    eventually(lambda: status(running, "k1", FIRST) == 401, 10)
    assert status(running, "k2", SECOND) == 200
    eventually(lambda: [p.name for p in running.settings.keys_dir.iterdir()] == ["k2.pem"], 5)

    # A key under a name that is in use already replaces it.
    publish(auth, k2=FIRST)
    eventually(lambda: status(running, "k2", FIRST) == 200, 10)
    assert status(running, "k2", SECOND) == 401

    # A deleted file is needed by the next reload only, which makes it again.
    (running.settings.keys_dir / "k2.pem").unlink()
    more = fresh("more")
    running.instance(more, f"{more}-1")
    running.serves(f"/api/{more}", {f"{more}-1"})
    assert status(running, "k2", FIRST) == 200


def test_bad_set_and_an_absent_issuer_leave_the_keys_at_hand(running: Edge, auth: Program) -> None:
    failures = 'breakwater_controller_errors_total{what="keys"}'
    for document in (
        b"{}",
        json.dumps({"keys": [{"kty": "RSA", "kid": "k1", "e": "AQAB", "n": "A" * 345}]}).encode(),
        b'{"keys": []}',
        b'{"keys": [{"kty": "oct", "kid": "../../x"}]}',
        b"x" * 70_000,
    ):
        before = running.metric(failures)
        auth.documents[PATH] = document
        eventually(lambda before=before: running.metric(failures) > before, 5)
    # Another program on the port of an instance of auth is not asked for keys.
    publish(auth, evil=SECOND)
    auth.service = "other"
    before = running.metric(failures)
    eventually(lambda: running.metric(failures) > before + 1, 5)
    assert status(running, "evil", SECOND) == 401
    running.deregister("auth-1")
    running.controller.kill()
    running.start_controller()
    assert status(running, "k1", FIRST) == 200


def test_tokens_of_a_revoked_subject_end_and_newer_ones_do_not(running: Edge, auth: Program) -> None:

    def revoke(before: float, subject: str = "u1", until: float = 60) -> None:
        entry = {"subject": subject, "before": int(before), "until": int(time.time() + until)}
        other = {**entry, "subject": "somebody"}
        auth.documents[REVOCATIONS] = json.dumps({"revocations": [entry, other]}).encode()

    revoke(time.time() + 100)
    eventually(lambda: status(running, "k1", FIRST) == 401, 5)
    # Neither a reload, nor a start of both without auth, brings it back.
    more = fresh("more")
    running.instance(more, f"{more}-1")
    running.serves(f"/api/{more}", {f"{more}-1"})
    assert status(running, "k1", FIRST) == 401
    auth.ready = False
    running.controller.kill()
    running.haproxy.kill()
    running.start_haproxy()
    assert status(running, "k1", FIRST) == 401
    running.start_controller()
    assert status(running, "k1", FIRST) == 401
    auth.ready = True
    revoke(time.time() - 100)
    eventually(lambda: status(running, "k1", FIRST) == 200, 5)
    revoke(time.time() + 100, "u2")
    eventually(lambda: "u2" in running.settings.revoked_file.read_text(), 5)
    assert status(running, "k1", FIRST) == 200
    # What has expired anyway is not kept.
    revoke(time.time() + 100, until=-1)
    eventually(lambda: not running.settings.revoked_file.read_text(), 5)
