"""notifications: what has happened that concerns a person, in a list and by mail, push and text message.

Everything here is the caller's own: what is another's is 404. What users are told is decided in `hearing`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from flask import Response
from pydantic import BaseModel, ConfigDict, Field, model_validator

from services.kit import Problem, create_service, current, kit, require_scope
from services.kit.text import described, now_us
from services.kit.web.paging import Page, page_of
from services.kit.web.resources import NOTHING, body_of, conditional, found, read
from services.notifications import store
from services.notifications.answers import (
    DeliveriesAnswer,
    DeliveryAnswer,
    NotificationAnswer,
    NotificationsAnswer,
    PreferencesAnswer,
    PushKeyAnswer,
    SilencedList,
    SubscriptionAnswer,
    Subscriptions,
    Unread,
)
from services.notifications.delivery import courier
from services.notifications.delivery.push import MAX_ENDPOINT, check_endpoint, check_keys
from services.notifications.delivery.ways import open_ways
from services.notifications.domain import Kind, Notification
from services.notifications.hearing import Hearing
from services.notifications.settings import NotificationSettings, sender_of
from services.notifications.tables import Base

READ = "private, no-cache"
NOT_STORED = {"Cache-Control": "no-store"}
PURGE_S = 3600.0

settings = NotificationSettings.from_environment()
app = create_service(
    "notifications",
    paths=["/api/notifications"],
    auth="jwt",
    balance="roundrobin",
    domain="business",
    settings=settings,
    models_metadata=Base.metadata,
    calls=["users"],
    events=True,
)
own = app.extensions["kit"]
ways = open_ways(own, settings)
hearing = Hearing(own, ways.available)
hearing.listen()
domain = sender_of(settings.mail_from).domain


def forget_old() -> None:
    """Delete what is older than 90 days, in short transactions."""
    for _ in range(100):
        with own.db.session() as session:
            if store.forget_old(session, now_us()) < store.PURGE_BATCH:
                return


own.jobs.every(1.0, hearing.mentions.find)
own.jobs.every(PURGE_S, forget_old)


# -- what comes in


class NotificationPath(BaseModel):
    notification_id: str


class OtherPath(BaseModel):
    """A person or a post."""

    other_id: str


class SubscriptionPath(BaseModel):
    subscription_id: str


class DeliveryPath(BaseModel):
    delivery_id: str


class ListQuery(Page):
    """Newest first. `unread=true`: the unread ones alone; `false`: the others."""

    unread: bool | None = None


class DeliveryQuery(Page):
    """Newest first."""

    state: Literal["waiting", "claimed", "handed", "sent", "unsure", "failed"] | None = None


class Switching(BaseModel):
    """Channels to turn on or off; what is left out, or null, stays."""

    model_config = ConfigDict(extra="forbid")

    app: bool | None = None
    email: bool | None = None
    push: bool | None = None
    sms: bool | None = None


class PreferenceChange(BaseModel):
    """Body of PATCH: `{"kinds": {"comment": {"email": false}}}`. `phone` is in the international form; null takes it away."""

    model_config = ConfigDict(extra="forbid")

    kinds: dict[Kind, Switching] = {}
    phone: Annotated[str, Field(pattern=r"^\+[1-9][0-9]{6,14}$")] | None = None


class SubscriptionKeys(BaseModel):
    p256dh: Annotated[str, Field(min_length=80, max_length=100)]
    auth: Annotated[str, Field(min_length=20, max_length=30)]


class NewSubscription(BaseModel):
    """What a browser's `subscription.toJSON()` gives."""

    endpoint: Annotated[str, Field(min_length=1, max_length=MAX_ENDPOINT), described(format="uri")]
    keys: SubscriptionKeys

    @model_validator(mode="after")
    def _usable(self) -> NewSubscription:
        check_endpoint(self.endpoint, settings.push_allow_private)
        check_keys(self.keys.p256dh, self.keys.auth)
        return self


def me() -> str:
    return current().subject or ""


# -- the list


@app.get("/api/notifications", responses=read(NotificationsAnswer))
@require_scope("user", "admin")
def list_notifications(query: ListQuery) -> Response:
    """The caller's notifications, newest first. `unread` counts all that are unread, at the moment of this page."""
    before = query.after(int, owners=(me(),))
    with kit().db.session(read_only=True) as session:
        store.at_one_moment(session)
        rows = store.page(
            session, me(), unread=query.unread, before=before[0] if before else None, limit=query.limit + 1
        )
        unread = store.count_unread(session, me())
    page = page_of(rows, query, lambda row: (row.number,), owners=(me(),))
    return conditional({**page, "unread": unread}, READ)


@app.post("/api/notifications/read", responses={200: Unread})
@require_scope("user", "admin")
def read_all() -> Any:
    """Mark all as read."""
    with kit().db.session() as session:
        store.mark_all(session, me(), now_us())
        return {"unread": store.count_unread(session, me())}, 200, NOT_STORED


@app.post("/api/notifications/<id:notification_id>/read", responses={200: NotificationAnswer})
@require_scope("user", "admin")
def mark_read(path: NotificationPath) -> Any:
    """Mark one as read; what is read already keeps its time."""
    return mark(path.notification_id, now_us())


@app.post("/api/notifications/<id:notification_id>/unread", responses={200: NotificationAnswer})
@require_scope("user", "admin")
def mark_unread(path: NotificationPath) -> Any:
    return mark(path.notification_id, None)


def mark(notification_id: str, read_us: int | None) -> Any:
    with kit().db.session() as session:
        one: Notification = found(store.mark(session, me(), notification_id, read_us), "notification")
        unread = store.count_unread(session, me())
    return {**body_of(one), "unread": unread}, 200, NOT_STORED


# -- what the caller wants


@app.get("/api/notifications/preferences", responses=read(PreferencesAnswer))
@require_scope("user", "admin")
def get_preferences() -> Response:
    """What comes by which channel. `channels` are those that this installation has."""
    return shown_preferences()


def shown_preferences() -> Response:
    with kit().db.session(read_only=True) as session:
        kinds, person = store.preferences(session, me()), store.find_person(session, me())
    phone = person.phone if person is not None else None
    body = {"data": {"kinds": kinds, "phone": phone, "channels": list(ways.available)}}
    return conditional(body, READ)


@app.patch("/api/notifications/preferences", responses={200: PreferencesAnswer})
@require_scope("user", "admin")
def change_preferences(body: PreferenceChange) -> Response:
    changes = {kind: switches.model_dump(exclude_none=True) for kind, switches in body.kinds.items()}
    with kit().db.session() as session:
        store.prefer(session, me(), changes)
        if "phone" in body.model_fields_set:
            store.set_phone(session, me(), body.phone)
    return shown_preferences()


def list_silenced(what: store.What) -> Response:
    with kit().db.session(read_only=True) as session:
        rows = store.silenced(session, me(), what)
    return conditional({"data": [row.to_json() for row in rows]}, READ)


def silence(what: store.What, other_id: str) -> tuple[str, int]:
    try:
        with kit().db.session() as session:
            store.silence(session, me(), what, other_id, now_us())
    except store.TooMany:
        raise Problem(409, detail=f"There are {store.MAX_SILENCED} of these already.") from None
    return "", 204


def hear_again(what: store.What, other_id: str) -> tuple[str, int]:
    with kit().db.session() as session:
        store.hear_again(session, me(), what, other_id)
    return "", 204


@app.get("/api/notifications/blocks", responses=read(SilencedList))
@require_scope("user", "admin")
def list_blocks() -> Response:
    """The people of whose doings the caller hears nothing, at most 500."""
    return list_silenced("user")


@app.put("/api/notifications/blocks/<id:other_id>", responses=NOTHING)
@require_scope("user", "admin")
def block(path: OtherPath) -> tuple[str, int]:
    """Hear nothing more of what this person does. The person learns nothing of it."""
    return silence("user", path.other_id)


@app.delete("/api/notifications/blocks/<id:other_id>", responses=NOTHING)
@require_scope("user", "admin")
def unblock(path: OtherPath) -> tuple[str, int]:
    return hear_again("user", path.other_id)


@app.get("/api/notifications/mutes", responses=read(SilencedList))
@require_scope("user", "admin")
def list_mutes() -> Response:
    """The posts of which the caller hears nothing, at most 500."""
    return list_silenced("post")


@app.put("/api/notifications/mutes/<id:other_id>", responses=NOTHING)
@require_scope("user", "admin")
def mute(path: OtherPath) -> tuple[str, int]:
    """Hear nothing more of what happens at this post."""
    return silence("post", path.other_id)


@app.delete("/api/notifications/mutes/<id:other_id>", responses=NOTHING)
@require_scope("user", "admin")
def unmute(path: OtherPath) -> tuple[str, int]:
    return hear_again("post", path.other_id)


# -- browsers


@app.get("/api/notifications/push-key", responses=read(PushKeyAnswer))
@require_scope("user", "admin")
def get_push_key() -> Response:
    """What a browser subscribes with. 404 where there are no pushes."""
    if ways.vapid is None:
        raise Problem(404, detail="Pushes are off here.")
    return conditional({"data": {"publicKey": ways.vapid.public_key}}, READ)


@app.get("/api/notifications/subscriptions", responses=read(Subscriptions))
@require_scope("user", "admin")
def list_subscriptions() -> Response:
    with kit().db.session(read_only=True) as session:
        rows = store.subscriptions(session, me())
    return conditional({"data": [row.to_json() for row in rows]}, READ)


@app.post("/api/notifications/subscriptions", responses={201: SubscriptionAnswer})
@require_scope("user", "admin")
def subscribe(body: NewSubscription) -> Any:
    """Have pushes sent to a browser, at most 20. Subscribing again with the same endpoint replaces the one before."""
    try:
        with kit().db.session() as session:
            one = store.subscribe(session, me(), body.endpoint, body.keys.p256dh, body.keys.auth, now_us())
    except store.TooMany:
        raise Problem(409, detail=f"There are {store.MAX_SUBSCRIPTIONS} subscriptions already.") from None
    return body_of(found(one, "account")), 201, NOT_STORED


@app.delete("/api/notifications/subscriptions/<id:subscription_id>", responses=NOTHING)
@require_scope("user", "admin")
def unsubscribe(path: SubscriptionPath) -> tuple[str, int]:
    with kit().db.session() as session:
        found(store.unsubscribe(session, path.subscription_id, me()) or None, "subscription")
    return "", 204


# -- for operators


@app.get("/api/notifications/deliveries", responses={200: DeliveriesAnswer})
@require_scope("admin")
def list_deliveries(query: DeliveryQuery) -> Any:
    """Everybody's deliveries, newest first. `unsure`: the other side may have it, and was not asked again."""
    before = query.after(int)
    with kit().db.session(read_only=True) as session:
        rows = courier.page(
            session,
            state=query.state,
            before=before[0] if before else None,
            limit=query.limit + 1,
            domain=domain,
        )
    return page_of(rows, query, lambda row: (row.number,)), 200, NOT_STORED


@app.post("/api/notifications/deliveries/<id:delivery_id>/retry", responses={200: DeliveryAnswer})
@require_scope("admin")
def retry_delivery(path: DeliveryPath) -> Any:
    """Send one again that is unsure or has failed, under the same Message-ID. 404 for any other."""
    with kit().db.session() as session:
        one = courier.send_again(session, path.delivery_id, now_us(), domain)
    return body_of(found(one, "delivery that is unsure or has failed")), 200, NOT_STORED
