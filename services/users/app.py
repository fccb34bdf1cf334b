"""users over HTTP: accounts and profiles, each for its owner, all for administrators.

Asking about somebody else is 403 whether he exists or not. An account is read through the cache of Redis: a change
takes it out after its commit, so that the next read, on any instance, sees the change.
"""

from __future__ import annotations

import time
from typing import Annotated, Any

from flask import Response, current_app, request
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from sqlalchemy.exc import IntegrityError

from services.kit import Problem, create_service, current, kit, require_scope, snapshot
from services.kit.names import check_name
from services.kit.web.etag import names_tag
from services.kit.web.paging import BadCursor, Page, decode_cursor, encode_cursor, page_json, scope_of
from services.kit.web.schemas import NOTHING, read
from services.users import store
from services.users.answers import AppliedAnswer, UserAnswer, UsersAnswer
from services.users.domain import (
    MAX_EMAIL_CHARS,
    User,
    check_username,
    is_user_id,
    may_change,
    may_read,
)
from services.users.models import Base
from services.users.removals import Removals

# Not any text: `/me` takes less than an account does.
USER = "<string(length=32):user_id>"
CACHED_S = 60.0
# How old the answer may be that a gateway gives while no instance is left.
LAST_GOOD_S = 3600.0
INT64_MAX = 2**63 - 1
LIST = scope_of("users")

app = create_service(
    "users",
    paths=["/api/users"],
    auth="jwt",
    balance="leastconn",
    domain="identity",
    models_metadata=Base.metadata,
)
removals = Removals(app.extensions["kit"])
app.extensions["kit"].on_start(removals.start)

Name = Annotated[str, Field(max_length=400), AfterValidator(check_name)]


class UserPath(BaseModel):
    user_id: str


class Change(BaseModel):
    """What may change. The e-mail address is what its owner logs in with, and stays."""

    model_config = ConfigDict(extra="forbid")

    firstName: Name | None = None  # noqa: N815 - the wire's spelling
    lastName: Name | None = None  # noqa: N815
    username: Annotated[str, Field(max_length=100), AfterValidator(check_username)] | None = None


class NewAccount(BaseModel):
    """What auth sends: it has checked the address."""

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    email: Annotated[str, Field(min_length=3, max_length=MAX_EMAIL_CHARS)]
    firstName: Name  # noqa: N815
    lastName: Name  # noqa: N815


class PostCount(BaseModel):
    """`version` grows with every change of the count; a message that comes late has a smaller one."""

    count: Annotated[int, Field(ge=0, le=INT64_MAX)]
    version: Annotated[int, Field(ge=1, le=INT64_MAX)]


def now_us() -> int:
    return int(time.time() * 1_000_000)


def missing() -> Problem:
    return Problem(404, detail="There is no such user.")


def load(user_id: str) -> User:
    """The account, from the cache or the database. Raises Problem 404."""

    def from_database() -> dict[str, Any] | None:
        with kit().db.session(read_only=True) as session:
            user = store.find(session, user_id)
        return user.to_dict() if user is not None else None

    if not is_user_id(user_id):
        raise missing()
    found = kit().cache.get_or_load(user_id, CACHED_S, from_database)
    if found is None:
        raise missing()
    return User(**found)


def answer(user: User) -> Response:
    """The account with its entity tag, or 304 for who has it already."""
    if request.method in ("GET", "HEAD") and names_tag(request.headers.get("If-None-Match"), user.etag):
        response = Response(status=304)
    else:
        response = current_app.json.response({"data": user.public()})
    response.headers["ETag"] = user.etag
    response.headers["Cache-Control"] = "private, no-cache"
    return response


def expected_version(user_id: str) -> int | None:
    """The version that a change must find, when the client sent If-Match. Raises Problem 404, 412."""
    wanted = request.headers.get("If-Match")
    if wanted is None:
        return None
    with kit().db.session(read_only=True) as session:
        user = store.find(session, user_id)
    if user is None:
        raise missing()
    if not names_tag(wanted, user.etag):
        raise changed_meanwhile()
    return user.version


def changed_meanwhile() -> Problem:
    return Problem(412, detail="This has changed since you read it: read it again.")


def own_id() -> str:
    subject = current().subject or ""
    if not is_user_id(subject):
        raise Problem(404, detail="The caller is not a user.")
    return subject


def may_change_or_refuse(user_id: str) -> None:
    caller = current()
    if not may_change(user_id, caller.subject, caller.scopes):
        raise Problem(403, detail="You may change yourself only.")


@app.get("/api/users/me", responses=read(UserAnswer))
@require_scope("user", "admin")
@snapshot(stale_s=LAST_GOOD_S, scope="subject")
def get_me() -> Response:
    """The caller himself."""
    return answer(load(own_id()))


@app.get(f"/api/users/{USER}", responses=read(UserAnswer))
@require_scope("user", "admin", "service")
@snapshot(stale_s=LAST_GOOD_S, scope="subject")
def get_user(path: UserPath) -> Response:
    """One user: yourself, or, for administrators and services, anybody."""
    caller = current()
    if not may_read(path.user_id, caller.subject, caller.scopes):
        raise Problem(403, detail="You may read yourself only.")
    return answer(load(path.user_id))


@app.get("/api/users", responses={200: UsersAnswer})
@require_scope("admin")
def list_users(query: Page) -> Any:
    """All users, oldest first."""
    after = None
    if query.cursor is not None:
        try:
            created_us, user_id = decode_cursor(query.cursor, LIST, (int, str))
        except BadCursor as error:
            raise Problem(400, "Bad cursor", str(error)) from None
        after = (int(created_us), str(user_id))
    with kit().db.session(read_only=True) as session:
        users = store.page(session, after, query.limit + 1)
    shown = users[: query.limit]
    following = None
    if len(users) > query.limit:
        following = encode_cursor(LIST, (shown[-1].created_us, shown[-1].id))
    body = page_json([user.public() for user in shown], following, query.limit)
    return body, 200, {"Cache-Control": "private, no-store"}


@app.patch("/api/users/me", responses={200: UserAnswer})
@require_scope("user", "admin")
def change_me(body: Change) -> Response:
    return change(own_id(), body)


@app.patch(f"/api/users/{USER}", responses={200: UserAnswer})
@require_scope("user", "admin")
def change_user(path: UserPath, body: Change) -> Response:
    """Change names or username. With `If-Match`, only the state that was read."""
    may_change_or_refuse(path.user_id)
    return change(path.user_id, body)


def change(user_id: str, body: Change) -> Response:
    if not is_user_id(user_id):
        raise missing()
    columns = {"first_name": body.firstName, "last_name": body.lastName, "username": body.username}
    values = {column: value for column, value in columns.items() if value is not None}
    if not values:
        raise Problem(422, "Invalid request", "Nothing to change was given.")
    expected = expected_version(user_id)
    try:
        with kit().db.session() as session:
            user = store.change(session, user_id, values, now_us(), expected)
    except (store.Taken, IntegrityError):
        raise Problem(409, detail="Somebody else has this username.") from None
    if user is None:
        raise missing() if expected is None else changed_meanwhile()
    kit().cache.invalidate(user_id)
    return answer(user)


@app.delete(f"/api/users/{USER}", responses=NOTHING)
@require_scope("user", "admin")
def delete_user(path: UserPath) -> tuple[str, int]:
    """Delete an account with its profile; its credentials go with it, in a moment at the latest."""
    may_change_or_refuse(path.user_id)
    if not is_user_id(path.user_id):
        raise missing()
    expected = expected_version(path.user_id)
    with kit().db.session() as session:
        gone = store.remove(session, path.user_id, time.time(), expected)
    if not gone:
        raise missing() if expected is None else changed_meanwhile()
    kit().cache.invalidate(path.user_id)
    kit().snapshots.forget_subject(path.user_id)
    removals.at_once(path.user_id)
    return "", 204


@app.post("/internal/users/accounts", responses={200: UserAnswer, 201: UserAnswer})
@require_scope("service")
def create_account(body: NewAccount) -> Any:
    """Open an account, once per id: 201 the first time, then 200. 409 when another account has the address."""
    if current().subject != "service:auth":
        raise Problem(403, detail="Only auth opens accounts.")
    new = store.NewUser(body.id, body.email, body.firstName, body.lastName)
    try:
        with kit().db.session() as session:
            user, created = store.create(session, new, now_us())
    except store.Taken as error:
        raise Problem(409, detail=f"Another account has this {error.field}.") from None
    if not created:
        kit().cache.invalidate(user.id)
    return {"data": user.public()}, 201 if created else 200


@app.post("/internal/users/<user_id>/post-count", responses={200: AppliedAnswer})
@require_scope("service")
def set_post_count(path: UserPath, body: PostCount) -> dict[str, Any]:
    """Set how many posts a user has. `applied` is false for a message that came after a later one."""
    if current().subject != "service:posts":
        # The highest version wins for ever: another service's word could not be taken back.
        raise Problem(403, detail="Only posts counts posts.")
    if not is_user_id(path.user_id):
        raise missing()
    with kit().db.session() as session:
        applied = store.set_post_count(session, path.user_id, body.count, body.version, now_us())
    if applied is None:
        raise missing()
    if applied:
        kit().cache.invalidate(path.user_id)
    return {"data": {"applied": applied}}
