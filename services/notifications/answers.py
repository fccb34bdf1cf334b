"""What notifications answers, for its OpenAPI document."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel

from services.kit.web.resources import Many, One
from services.notifications.domain import Channel, Kind


class NotificationShown(BaseModel):
    id: str
    kind: Kind
    title: str
    body: str
    actorId: str | None
    postId: str | None
    readAt: datetime | None
    createdAt: datetime


class NotificationsAnswer(Many[NotificationShown]):
    """`unread` is how many of all notifications are unread, whatever this page shows."""

    unread: int


class NotificationAnswer(One[NotificationShown]):
    unread: int


class Unread(BaseModel):
    unread: int


class Switches(BaseModel):
    """Channels of one kind."""

    app: bool
    email: bool
    push: bool
    sms: bool


class KindSwitches(BaseModel):
    welcome: Switches
    comment: Switches
    reply: Switches
    mention: Switches


class PreferencesShown(BaseModel):
    """`channels` are those that this installation has."""

    kinds: KindSwitches
    phone: str | None
    channels: list[Channel]


class SilencedShown(BaseModel):
    id: str
    createdAt: datetime


class SilencedList(BaseModel):
    data: list[SilencedShown]


class SubscriptionShown(BaseModel):
    id: str
    endpoint: str
    createdAt: datetime


class Subscriptions(BaseModel):
    data: list[SubscriptionShown]


class PushKey(BaseModel):
    """What a browser's `subscribe` takes as `applicationServerKey`."""

    publicKey: str


class DeliveryShown(BaseModel):
    """`unsure`: the server may have it, for its answer was lost. `messageId` is what its log calls the mail."""

    id: str
    userId: str
    channel: Channel
    state: str
    attempts: int
    reason: str | None
    messageId: str | None
    createdAt: datetime


DeliveriesAnswer, DeliveryAnswer = Many[DeliveryShown], One[DeliveryShown]
PreferencesAnswer, SubscriptionAnswer, PushKeyAnswer = (
    One[PreferencesShown],
    One[SubscriptionShown],
    One[PushKey],
)
