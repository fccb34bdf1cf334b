"""An instance of users with accounts in it, for tests that ask it by gRPC; and servers whose behaviour a test scripts."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from discovery import Instance
from services.users.proto.users_pb2_grpc import UsersStub
from tests.support.instances import RunningInstance, instance
from tests.support.servers import free_port
from tests.support.signer import Signer

NEVER = "127.0.0.1:1"


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


@dataclass
class Users:
    """One instance: its HTTP, and what it takes to ask it by gRPC."""

    http: RunningInstance
    port: int
    keys: Signer
    ids: list[str] = field(default_factory=list)

    def service(self) -> tuple[tuple[str, str], ...]:
        return bearer(self.keys.token("service:posts", "service"))

    def user(self, user_id: str) -> tuple[tuple[str, str], ...]:
        return bearer(self.keys.token(user_id))

    def add(self, count: int) -> None:
        token = self.keys.token("service:auth", "service")
        for _ in range(count):
            id_ = uuid.uuid4().hex
            body = {"id": id_, "email": f"{id_}@example.com", "firstName": "Ada", "lastName": "Lovelace"}
            answer = self.http.call("POST", "/internal/users/accounts", json=body, token=token)
            assert answer.status_code == 201, answer.text
            self.ids.append(id_)

    @contextlib.contextmanager
    def stub(self) -> Iterator[UsersStub]:
        with grpc.insecure_channel(f"127.0.0.1:{self.port}") as channel:
            yield UsersStub(channel)


@contextlib.contextmanager
def users(folder: Path, keys: Signer, accounts: int = 0, **env: str) -> Iterator[Users]:
    port = free_port()
    settings = {"CONSUL_HTTP_ADDR": NEVER, "AUTH_JWKS_URL": keys.url, "GRPC_PORT": str(port), **env}
    with instance("users", folder, settings) as one:
        made = Users(one, port, keys)
        made.add(accounts)
        yield made


def refused(call: Callable[[], Any]) -> grpc.RpcError:
    """The error that a call must end in."""
    try:
        answer = call()
    except grpc.RpcError as error:
        return error
    raise AssertionError(f"it was answered: {answer!r}")


class Stub:
    """What generated code would be for a service of three methods that carry plain bytes."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.GetThing = channel.unary_unary("/test.v1.Things/GetThing", bytes, bytes)
        self.AddThing = channel.unary_unary("/test.v1.Things/AddThing", bytes, bytes)
        self.ListThings = channel.unary_stream("/test.v1.Things/ListThings", bytes, bytes)


@dataclass
class Things:
    """A server of it; `behave(request, context)` answers each call, and `seen` is the metadata of all of them."""

    behave: Callable[[bytes, Any], Any]
    port: int = 0
    seen: list[dict[str, str]] = field(default_factory=list)
    name: str = ""

    def instance(self, service: str = "things") -> Instance:
        return Instance(f"{service}-grpc", self.name, "node-1", "127.0.0.1", self.port)

    def _answer(self, request: bytes, context: Any) -> Any:
        self.seen.append(dict(context.invocation_metadata()))
        return self.behave(request, context)

    def _answers(self, request: bytes, context: Any) -> Any:
        yield from self._answer(request, context)

    @contextlib.contextmanager
    def running(self) -> Iterator[grpc.Server]:
        threads = ThreadPoolExecutor(64)
        server = grpc.server(threads, options=[("grpc.so_reuseport", 0)])
        single = grpc.unary_unary_rpc_method_handler(self._answer)
        methods = {
            "GetThing": single,
            "AddThing": single,
            "ListThings": grpc.unary_stream_rpc_method_handler(self._answers),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.v1.Things", methods),))
        self.port = server.add_insecure_port(f"127.0.0.1:{self.port or free_port()}")
        self.name = self.name or f"things-{self.port}"
        server.start()
        try:
            yield server
        finally:
            server.stop(None).wait(10)
            threads.shutdown(wait=False)
