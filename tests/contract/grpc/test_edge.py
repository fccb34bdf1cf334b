"""A client of gRPC outside, through the edge's HTTPS port: TLS and HTTP/2 there, HTTP/2 in clear text behind it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives import serialization

from haproxy.controller.config.model import EdgeState, VerifyKey
from services.kit.grpc.server import HEALTH_METHOD
from services.users.proto.users_pb2 import GetUserRequest, ListUsersRequest
from services.users.proto.users_pb2_grpc import UsersStub
from tests.contract.grpc.rig import Users, bearer, refused, users
from tests.contract.grpc.test_server import LONG_S
from tests.support.edge import Edge, backend, edge
from tests.support.eventually import eventually
from tests.support.signer import Signer, signer

SERVICE = "users-grpc"
ACCOUNTS = 30


@dataclass
class Outside:
    users: Users
    edge: Edge
    stub: UsersStub

    def get(self, user_id: str, metadata: Any) -> Any:
        return self.stub.GetUser.with_call(GetUserRequest(id=user_id), metadata=metadata, timeout=LONG_S)


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outside]:
    folder = tmp_path_factory.mktemp("edge")
    with signer() as keys, users(folder, keys, ACCOUNTS, GRPC_EDGE="true") as one:
        route = backend(
            SERVICE,
            one.port,
            paths=("/breakwater.users.v1.Users",),
            auth="jwt",
            protocol="h2c",
            check=HEALTH_METHOD,
            check_identity=False,
        )
        with edge(EdgeState((route,), (verify_key(keys, folder),))) as running:
            eventually(lambda: running.stat(f"svc_{SERVICE}", f"{SERVICE}-1")["check_status"] == "L7OK", 5)
            trust = grpc.ssl_channel_credentials(running.settings.certificate.read_bytes())
            at = f"localhost:{running.settings.edge_https_port}"
            with grpc.secure_channel(at, trust) as channel:
                yield Outside(one, running, UsersStub(channel))


def verify_key(keys: Signer, folder: Any) -> VerifyKey:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    pem = keys.issuer.key.public_key().public_bytes(serialization.Encoding.PEM, form)
    (folder / "key.pem").write_bytes(pem)
    return VerifyKey(keys.issuer.kid, str(folder / "key.pem"))


def test_one_answer(outside: Outside) -> None:
    id_ = outside.users.ids[0]
    user, call = outside.get(id_, outside.users.user(id_) + (("x-request-id", "e" * 20),))
    assert user.id == id_
    sent = dict(call.initial_metadata())
    assert (sent["x-served-by"], sent["x-served-lane"]) == (f"{SERVICE}-1", "direct")
    assert ("x-request-id", "e" * 20) in [tuple(pair) for pair in call.trailing_metadata()]


def test_a_stream_of_answers(outside: Outside) -> None:
    call = outside.stub.ListUsers(ListUsersRequest(), metadata=outside.users.service(), timeout=LONG_S)
    assert [user.id for user in call] == outside.users.ids


def test_errors_pass_as_they_are(outside: Outside) -> None:
    error = refused(lambda: outside.get("0" * 32, outside.users.service()))
    assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "There is no such user.")


def test_the_edge_refuses_what_has_no_good_token(outside: Outside) -> None:
    expired = bearer(outside.users.keys.token("u", exp=int(time.time()) - 60))
    for metadata in (None, bearer("a.b.c"), expired):
        error = refused(lambda m=metadata: outside.get(outside.users.ids[0], m))
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED


def test_other_methods_of_the_port_are_not_outside(outside: Outside) -> None:
    status = outside.edge.get(HEALTH_METHOD, "POST", content_type="application/grpc").status
    assert status == 404


def test_an_instance_that_is_gone_is_out_and_its_calls_are_unavailable(outside: Outside) -> None:
    """Last: it is not started again."""
    outside.users.http.kill()
    eventually(lambda: outside.edge.stat(f"svc_{SERVICE}", f"{SERVICE}-1")["status"] == "DOWN", 5)
    error = refused(lambda: outside.get(outside.users.ids[0], outside.users.service()))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
