"""users over gRPC: accounts for other services, and for their owners. See `proto/users.proto`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from services.kit import Problem, ServiceApp, current, kit, require_scope
from services.kit.grpc.server import serve_grpc
from services.kit.text import ID_PATTERN
from services.kit.web.resources import found
from services.users import store
from services.users.domain import User, may_read
from services.users.proto import users_pb2 as messages
from services.users.proto import users_pb2_grpc as generated

MOST_IDS = 200
# Read at a time for a list: no transaction is open while a client takes its time.
PAGE = 100
_ID = re.compile(ID_PATTERN)


class Users(generated.UsersServicer):
    @require_scope("user", "admin", "service")
    def GetUser(self, request: messages.GetUserRequest, context: Any) -> messages.User:  # noqa: N802 - the proto's spelling
        caller = current()
        if not may_read(request.id, caller.subject, caller.scopes):
            raise Problem(403, detail="You may read yourself only.")
        with kit().db.session(read_only=True) as session:
            users = store.find_all(session, ids([request.id]))
        return message(found(users.get(request.id), "user"))

    @require_scope("admin", "service")
    def BatchGetUsers(  # noqa: N802
        self, request: messages.BatchGetUsersRequest, context: Any
    ) -> messages.BatchGetUsersResponse:
        if len(request.ids) > MOST_IDS:
            raise Problem(400, detail=f"At most {MOST_IDS} ids at once.")
        with kit().db.session(read_only=True) as session:
            users = store.find_all(session, ids(request.ids))
        known = (users[id_] for id_ in dict.fromkeys(request.ids) if id_ in users)
        return messages.BatchGetUsersResponse(users=map(message, known))

    @require_scope("admin", "service")
    def ListUsers(self, request: messages.ListUsersRequest, context: Any) -> Iterator[messages.User]:  # noqa: N802
        left: int | None = request.limit or None
        after: tuple[int, str] | None = None
        while left is None or left > 0:
            wanted = PAGE if left is None else min(PAGE, left)
            with kit().db.session(read_only=True) as session:
                users = store.page(session, after, wanted)
            yield from map(message, users)
            if len(users) < wanted:
                return
            after = (users[-1].created_us, users[-1].id)
            left = None if left is None else left - len(users)


def ids(given: Iterable[str]) -> set[str]:
    """Those that can be an account's: PostgreSQL refuses to be asked for some texts."""
    return {each for each in given if _ID.fullmatch(each)}


def message(user: User) -> messages.User:
    """The account as it leaves by gRPC."""
    made = messages.User(
        id=user.id,
        email=user.email,
        username=user.username,
        first_name=user.first_name,
        last_name=user.last_name,
        post_count=user.post_count,
    )
    made.created_at.FromMicroseconds(user.created_us)
    made.updated_at.FromMicroseconds(user.updated_us)
    return made


def serve(app: ServiceApp) -> ServiceApp:
    """Have its instances answer gRPC as well."""
    service = messages.DESCRIPTOR.services_by_name["Users"]
    serve_grpc(app, service, generated.add_UsersServicer_to_server, Users())
    return app
