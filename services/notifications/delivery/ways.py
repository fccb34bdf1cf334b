"""Which ways to people this installation has: those whose settings are there."""

from __future__ import annotations

from dataclasses import dataclass
from email.headerregistry import Address

import structlog

from services.kit import Kit
from services.kit.settings import secret
from services.notifications import store
from services.notifications.delivery.courier import Carrier, Courier, outcomes_in
from services.notifications.delivery.mail import Mail
from services.notifications.delivery.push import Push, Vapid
from services.notifications.delivery.sms import FileSink, Sms
from services.notifications.domain import CHANNELS, Channel, Subscription
from services.notifications.settings import NotificationSettings, sender_of

log = structlog.get_logger(__name__)

TURN_S = 1.0


@dataclass(frozen=True, slots=True)
class Ways:
    """`available` in the sequence in which they are shown. `vapid` is None without pushes."""

    available: tuple[Channel, ...]
    vapid: Vapid | None


def open_ways(kit: Kit, settings: NotificationSettings) -> Ways:
    """Have a job deliver by each of them. Raises ValueError for a `VAPID_KEY` that is none."""
    sender = sender_of(settings.mail_from)
    vapid = _vapid(settings, sender)
    carriers: list[Carrier] = []
    if settings.smtp_url:
        carriers.append(Mail(settings))
    if vapid is not None:
        carriers.append(_push(kit, settings, vapid))
    if settings.sms_file is not None:
        # The place for a sender that sends: see `sms.Sender`.
        carriers.append(Sms(FileSink(settings.sms_file)))
    outcomes = outcomes_in(kit.metrics.registry)
    for carrier in carriers:
        courier = Courier(kit.db, carrier, lease_s=settings.delivery_lease_s, outcomes=outcomes)
        kit.jobs.every(TURN_S, courier.deliver)
    have = {"app", *(carrier.channel for carrier in carriers)}
    if len(have) < len(CHANNELS):
        log.info("channels without a setting are off", off=[one for one in CHANNELS if one not in have])
    return Ways(tuple(one for one in CHANNELS if one in have), vapid)


def _vapid(settings: NotificationSettings, sender: Address) -> Vapid | None:
    key = secret(settings.vapid_key)
    return Vapid(key, sender.addr_spec) if key else None


def _push(kit: Kit, settings: NotificationSettings, vapid: Vapid) -> Push:
    def unsubscribe(subscription: Subscription) -> None:
        with kit.db.session() as session:
            store.unsubscribe(session, subscription.id)

    return Push(
        vapid,
        unsubscribe,
        timeout_s=settings.push_timeout_s,
        lease_s=settings.delivery_lease_s,
        allow_private=settings.push_allow_private,
    )
