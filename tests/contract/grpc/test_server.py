"""users by gRPC, as another service and a user meet it: a real instance, real tokens."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from services.users.proto.users_pb2 import BatchGetUsersRequest, GetUserRequest, ListUsersRequest
from services.users.proto.users_pb2_grpc import UsersStub
from tests.contract.grpc.rig import Users, bearer, refused, users
from tests.support.eventually import eventually, time_scale
from tests.support.signer import signer

ACCOUNTS = 105  # more than are read at a time for a list
LONG_S = 20 * time_scale()
NOBODY = "0" * 32


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Users]:
    with signer() as keys, users(tmp_path_factory.mktemp("users"), keys, ACCOUNTS) as running:
        yield running


@pytest.fixture(scope="module")
def stub(one: Users) -> Iterator[UsersStub]:
    with one.stub() as made:
        yield made


def get(stub: UsersStub, user_id: str, metadata: Any, **more: Any) -> Any:
    return stub.GetUser(GetUserRequest(id=user_id), metadata=metadata, timeout=LONG_S, **more)


def test_a_service_reads_anyone_and_a_user_oneself(one: Users, stub: UsersStub) -> None:
    wanted = one.ids[0]
    by_http = one.http.call("GET", f"/api/users/{wanted}", token=one.keys.token(wanted)).json()["data"]
    for metadata in (one.service(), one.user(wanted)):
        user = get(stub, wanted, metadata)
        assert (user.id, user.email, user.username, user.post_count) == tuple(
            by_http[key] for key in ("id", "email", "username", "postCount")
        )
        assert user.created_at.ToJsonString()[:19] == by_http["createdAt"][:19]


@pytest.mark.parametrize("wanted", ["another", "nobody"])
def test_a_user_asking_for_another_learns_nothing(one: Users, stub: UsersStub, wanted: str) -> None:
    id_ = one.ids[1] if wanted == "another" else NOBODY
    error = refused(lambda: get(stub, id_, one.user(one.ids[0])))
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    assert error.details() == "You may read yourself only."


def test_every_method_needs_a_token_that_holds(one: Users, stub: UsersStub) -> None:
    calls = [
        lambda metadata: get(stub, one.ids[0], metadata),
        lambda metadata: stub.BatchGetUsers(BatchGetUsersRequest(), metadata=metadata, timeout=LONG_S),
        lambda metadata: list(stub.ListUsers(ListUsersRequest(), metadata=metadata, timeout=LONG_S)),
    ]
    forged = (("x-auth-subject", one.ids[0]), ("x-auth-scope", "admin"))
    expired = bearer(one.keys.token(one.ids[0], exp=int(time.time()) - 1))
    for call in calls:
        for metadata in (None, forged):
            assert refused(lambda c=call, m=metadata: c(m)).code() is grpc.StatusCode.PERMISSION_DENIED
        for metadata in (bearer("a.b.c"), expired, one.service() * 2):
            assert refused(lambda c=call, m=metadata: c(m)).code() is grpc.StatusCode.UNAUTHENTICATED
    for call in calls[1:]:
        error = refused(lambda c=call: c(one.user(one.ids[0])))
        assert error.code() is grpc.StatusCode.PERMISSION_DENIED


def test_a_batch_has_those_that_there_are_once_each_in_the_sequence_asked_for(
    one: Users, stub: UsersStub
) -> None:
    ids = [one.ids[3], NOBODY, one.ids[1], one.ids[3], "\0'; DROP TABLE users"]
    answer = stub.BatchGetUsers(BatchGetUsersRequest(ids=ids), metadata=one.service(), timeout=LONG_S)
    assert [user.id for user in answer.users] == [one.ids[3], one.ids[1]]
    many = BatchGetUsersRequest(ids=[NOBODY] * 201)
    error = refused(lambda: stub.BatchGetUsers(many, metadata=one.service(), timeout=LONG_S))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_list_streams_everyone_once_oldest_first(one: Users, stub: UsersStub) -> None:
    def listed(limit: int) -> list[str]:
        request = ListUsersRequest(limit=limit)
        return [user.id for user in stub.ListUsers(request, metadata=one.service(), timeout=LONG_S)]

    assert listed(0) == one.ids
    assert listed(103) == one.ids[:103]


def test_unknown_ids_are_not_found_whatever_they_look_like(one: Users, stub: UsersStub) -> None:
    for odd in (NOBODY, "", "x" * 5000, "\0", "é"):
        error = refused(lambda id_=odd: get(stub, id_, one.service()))
        assert error.code() is grpc.StatusCode.NOT_FOUND


def test_ids_of_request_and_trace_are_kept_and_the_call_is_counted(one: Users, stub: UsersStub) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    ids = (("x-request-id", "c" * 20), ("traceparent", f"00-{trace}-b7ad6b7169203331-01"))
    error = refused(lambda: get(stub, NOBODY, one.service() + ids))
    assert ("x-request-id", "c" * 20) in [tuple(pair) for pair in error.trailing_metadata()]
    (line,) = eventually(lambda: [x for x in one.http.lines() if x.get("request_id") == "c" * 20], 5)
    assert (line["trace_id"], line["status"], line["subject"]) == (trace, 404, "service:posts")
    text = one.http.get("/metrics").text
    labels = 'method="GRPC",route="/breakwater.users.v1.Users/GetUser",service="users"'
    assert f'service_requests_total{{{labels},status="404"}}' in text
    assert f"service_request_duration_seconds_count{{{labels}}}" in text
    assert 'service_requests_in_progress{service="users"} 1.0' in text, "the request for metrics itself"


def test_refused_calls_leave_nothing_open(one: Users, stub: UsersStub) -> None:
    """A connection has a hundred calls at once: what errors kept open, until it was collected, used them up."""
    for _ in range(120):
        assert refused(lambda: get(stub, NOBODY, one.service())).code() is grpc.StatusCode.NOT_FOUND


def test_a_message_above_the_limit_is_refused(one: Users, stub: UsersStub) -> None:
    error = refused(lambda: get(stub, "a" * (1024 * 1024 + 1), one.service()))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_errors_of_the_service_say_nothing_of_its_inside(one: Users, stub: UsersStub) -> None:
    file = next(one.http.process.log.parent.rglob("users.db"), None) or next(
        one.http.process.log.parent.rglob("*.db")
    )
    with sqlite3.connect(file) as database:
        database.execute("ALTER TABLE users RENAME TO away")
    try:
        error = refused(lambda: get(stub, one.ids[0], one.service()))
    finally:
        with sqlite3.connect(file) as database:
            database.execute("ALTER TABLE away RENAME TO users")
    assert (error.code(), error.details()) == (grpc.StatusCode.INTERNAL, "Internal Server Error")
    assert "no such table" in one.http.process.log.read_text()


def test_health_knows_the_service_and_this_instance_by_name_and_needs_no_token(one: Users) -> None:
    serving = health_pb2.HealthCheckResponse.SERVING
    instance = f"users-127.0.0.1-{one.http.port}-grpc"
    with grpc.insecure_channel(f"127.0.0.1:{one.port}") as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        for name in ("", "breakwater.users.v1.Users", instance):
            assert check(health_pb2.HealthCheckRequest(service=name), timeout=LONG_S).status == serving
        other = health_pb2.HealthCheckRequest(service="users-127.0.0.1-1-grpc")
        assert refused(lambda: check(other, timeout=LONG_S)).code() is grpc.StatusCode.NOT_FOUND


def reflected(one: Users) -> list[Any]:
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    with grpc.insecure_channel(f"127.0.0.1:{one.port}") as channel:
        info = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
        return list(info(iter([request]), timeout=LONG_S))


def test_reflection_is_off_unless_it_is_asked_for(one: Users) -> None:
    assert refused(lambda: reflected(one)).code() is grpc.StatusCode.UNIMPLEMENTED
