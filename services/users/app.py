"""users over HTTP: accounts and profiles, each for its owner, all for administrators.

Asking about another account is 403 whether it exists or not.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from flask import Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from services.kit import (
    Kit,
    Problem,
    create_service,
    current,
    kit,
    require_scope,
    require_service,
    stale_if_error,
)
from services.kit.events.consumer import REMEMBERED_S
from services.kit.text import ID_PATTERN, Name, described, now_us, one_line
from services.kit.web.paging import Page, page_of
from services.kit.web.resources import (
    NOTHING,
    ChangeBody,
    body_of,
    conditional,
    found,
    found_unchanged,
    read,
)
from services.posts.events import PostDeleted, PostPublished
from services.users import store
from services.users.answers import NamedAnswer, ProfileAnswer, UserAnswer, UsersAnswer
from services.users.domain import (
    MAX_EMAIL_CHARS,
    SHOWABLE,
    USERNAME,
    Profile,
    Showable,
    User,
    check_username,
    may_change,
    may_read,
)
from services.users.events import UserDeleted

# The account is its owner's alone, and fetched each time.
READ = "private, no-cache"
COLUMNS = {"firstName": "first_name", "lastName": "last_name", "username": "username", "shown": "shown"}

app = create_service(
    "users",
    paths=["/api/users"],
    auth="jwt",
    balance="leastconn",
    domain="identity",
    models_metadata=store.Base.metadata,
    calls=[],
    events=True,
)
own: Kit = app.extensions["kit"]


@own.events.consumes(PostPublished)
def count_post(event: PostPublished, session: Session) -> None:
    store.post_published(session, event.postId, event.authorId, now_us())


@own.events.consumes(PostDeleted)
def uncount_post(event: PostDeleted, session: Session) -> None:
    store.post_deleted(session, event.postId, event.authorId, now_us())


def forget_deleted_posts() -> None:
    with own.db.session() as session:
        store.forget_deleted_posts(session, now_us() - int(REMEMBERED_S * 1e6))


own.jobs.every(300.0, forget_deleted_posts)


Username = Annotated[
    str, Field(max_length=100), AfterValidator(check_username), described(pattern=f"^{USERNAME.pattern}$")
]


class UserPath(BaseModel):
    user_id: str


class Change(ChangeBody):
    """What may change. The e-mail address is what its owner logs in with, and stays."""

    model_config = ConfigDict(extra="forbid")

    firstName: Name | None = None  # noqa: N815 - the wire's spelling
    lastName: Name | None = None  # noqa: N815
    username: Username | None = None
    shown: list[Showable] | None = None


class NewAccount(BaseModel):
    """What auth sends: it has checked the address."""

    id: Annotated[str, Field(pattern=f"^{ID_PATTERN}$")]
    email: Annotated[str, Field(min_length=3, max_length=MAX_EMAIL_CHARS)]
    firstName: Name  # noqa: N815
    lastName: Name  # noqa: N815


class Usernames(BaseModel):
    usernames: Annotated[
        list[Annotated[str, Field(max_length=100), AfterValidator(one_line)]],
        Field(min_length=1, max_length=50),
    ]


def load(user_id: str) -> User:
    """The account. Raises Problem 404."""
    with kit().db.session(read_only=True) as session:
        return found(store.find(session, user_id), "user")


def own_id() -> str:
    return current().subject or ""


def may_change_or_refuse(user_id: str) -> None:
    caller = current()
    if not may_change(user_id, caller.subject, caller.scopes):
        raise Problem(403, detail="You may change yourself only.")


@app.get("/api/users/me", responses=read(UserAnswer))
@require_scope("user", "admin")
@stale_if_error(scope="subject")
def get_me() -> Response:
    """The caller's own account."""
    return conditional(body_of(load(own_id())), READ)


@app.get("/api/users/<id:user_id>", responses=read(UserAnswer))
@require_scope("user", "admin", "service")
@stale_if_error(scope="subject")
def get_user(path: UserPath) -> Response:
    """One user: yourself, or, for administrators and services, any."""
    caller = current()
    if not may_read(path.user_id, caller.subject, caller.scopes):
        raise Problem(403, detail="You may read yourself only.")
    return conditional(body_of(load(path.user_id)), READ)


@app.get("/api/users/<id:user_id>/profile", responses=read(ProfileAnswer))
@require_scope("user", "admin", "service")
def get_profile(path: UserPath) -> Response:
    """What a user shows to others: the user name, and what its owner has chosen (`shown`)."""
    return conditional(body_of(Profile(load(path.user_id))), READ)


@app.get("/api/users", responses={200: UsersAnswer})
@require_scope("admin")
def list_users(query: Page) -> Any:
    """All users, oldest first."""
    with kit().db.session(read_only=True) as session:
        users = store.page(session, query.after(int, str), query.limit + 1)
    body = page_of(users, query, lambda user: (user.created_us, user.id))
    return body, 200, {"Cache-Control": "private, no-store"}


@app.patch("/api/users/me", responses={200: UserAnswer})
@require_scope("user", "admin")
def change_me(body: Change) -> Response:
    return change(own_id(), body)


@app.patch("/api/users/<id:user_id>", responses={200: UserAnswer})
@require_scope("user", "admin")
def change_user(path: UserPath, body: Change) -> Response:
    """Change names or username. With `If-Match`, only the state that was read."""
    may_change_or_refuse(path.user_id)
    return change(path.user_id, body)


def change(user_id: str, body: Change) -> Response:
    values = {COLUMNS[name]: value for name, value in body.values().items()}
    if "shown" in values:
        values["shown"] = ",".join(name for name in SHOWABLE if name in values["shown"])
    try:
        with kit().db.session() as session:
            found_unchanged(store.hold(session, user_id), "user")
            user = store.change(session, user_id, values, now_us())
    except (store.Taken, IntegrityError):
        raise Problem(409, detail="Another account has this username.") from None
    return conditional(body_of(user), READ)


@app.delete("/api/users/<id:user_id>", responses=NOTHING)
@require_scope("user", "admin")
def delete_user(path: UserPath) -> tuple[str, int]:
    """Delete an account with its profile. Its credentials, posts and comments follow, in a moment."""
    may_change_or_refuse(path.user_id)
    with kit().db.session() as session:
        found_unchanged(store.hold(session, path.user_id), "user")
        store.remove(session, path.user_id)
        own.events.publish(UserDeleted(userId=path.user_id, deletedAt=datetime.now(UTC)))
    kit().stale.forget_subject(path.user_id)
    return "", 204


@app.post("/internal/users/accounts", responses={200: UserAnswer, 201: UserAnswer})
@require_service("auth")
def create_account(body: NewAccount) -> Any:
    """Open an account, once per id: 201 the first time, then 200. 409 when another account has the address."""
    new = store.NewUser(body.id, body.email, body.firstName, body.lastName)
    try:
        with kit().db.session() as session:
            user, created = store.create(session, new, now_us())
    except store.Taken as error:
        raise Problem(409, detail=f"Another account has this {error.field}.") from None
    return body_of(user), 201 if created else 200


@app.post("/internal/users/by-username", responses={200: NamedAnswer})
@require_service("notifications")
def find_by_username(body: Usernames) -> dict[str, Any]:
    """The ids behind usernames. Those that nobody has are left out."""
    with kit().db.session(read_only=True) as session:
        return {"data": store.find_by_username(session, body.usernames)}
