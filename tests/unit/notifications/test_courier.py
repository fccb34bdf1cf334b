"""The claim on a delivery: one instance has it, and what ends in doubt is not sent again by itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import select

from services.kit.db.session import Database
from services.notifications import store
from services.notifications.delivery.courier import (
    Away,
    ClaimLost,
    Courier,
    InDoubt,
    Later,
    Parcel,
    Refused,
    page,
    send_again,
)
from services.notifications.domain import Channel, by_comment
from services.notifications.tables import DeliveryRow
from tests.support.clock import ManualClock


class Carrier:
    """Does what the test says with each parcel."""

    channel: Channel = "email"

    def __init__(
        self, act: Callable[[Parcel, Callable[[], None]], None] = lambda parcel, hand_over: hand_over()
    ):
        self.act = act
        self.sent: list[str] = []

    def send(self, parcel: Parcel, hand_over: Callable[[], None]) -> None:
        self.sent.append(parcel.notification.body)
        self.act(parcel, hand_over)


def raising(error: Exception, *, handed: bool = False) -> Callable[[Parcel, Callable[[], None]], None]:
    def act(_: Parcel, hand_over: Callable[[], None]) -> None:
        if handed:
            hand_over()
        raise error

    return act


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(chance=1.0)


@pytest.fixture
def due(db: Database, clock: ManualClock) -> Database:
    """Two mails to Ada."""
    with db.session() as session:
        store.add_person(session, "ada", "ada@example.com", "Ada", "L")
        for number in (1, 2):
            new = by_comment("ada", "comment", f"c{number}", "p", "bob", f"text {number}")
            store.notify(session, new, ["email"], int(clock.now * 1e6))
    return db


def courier(db: Database, clock: ManualClock, carrier: Carrier) -> Courier:
    return Courier(db, carrier, lease_s=10, clock=clock)


def states(db: Database) -> list[str]:
    with db.session(read_only=True) as session:
        return list(session.scalars(select(DeliveryRow.state).order_by(DeliveryRow.number)))


def test_each_is_delivered_once(due: Database, clock: ManualClock) -> None:
    carrier = Carrier()
    for _ in range(3):
        courier(due, clock, carrier).deliver()
        clock.sleep(60)
    assert carrier.sent == ["text 1", "text 2"]
    assert states(due) == ["sent", "sent"]


@pytest.mark.parametrize(
    ("error", "handed", "state", "tried"),
    [
        (Later("452"), False, "waiting", 2),
        (Later("452 after all of it"), True, "waiting", 2),
        (Away("no route"), False, "waiting", 1),
        (Refused("550"), False, "failed", 2),
        (InDoubt("closed"), True, "unsure", 2),
        (RuntimeError("a mistake"), False, "waiting", 2),
        (RuntimeError("a mistake"), True, "unsure", 2),
    ],
)
def test_what_comes_of_an_attempt(
    due: Database, clock: ManualClock, error: Exception, handed: bool, state: str, tried: int
) -> None:
    carrier = Carrier(raising(error, handed=handed))
    courier(due, clock, carrier).deliver()
    assert states(due)[0] == state
    assert len(carrier.sent) == tried, "a server that is away is not asked for the others"
    carrier.act = lambda parcel, hand_over: hand_over()
    clock.sleep(10)
    courier(due, clock, carrier).deliver()
    assert states(due)[0] == ("sent" if state == "waiting" else state)


def test_one_that_was_killed_before_the_last_byte_is_sent_by_another(
    due: Database, clock: ManualClock
) -> None:
    killed = Carrier(raising(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        courier(due, clock, killed).deliver()
    other = Carrier()
    courier(due, clock, other).deliver()
    assert other.sent == ["text 2"], "the claim holds for as long as its holder may still be at it"
    clock.sleep(10.1)
    courier(due, clock, other).deliver()
    assert other.sent == ["text 2", "text 1"]
    assert states(due) == ["sent", "sent"]


def test_one_that_was_killed_after_the_last_byte_is_unsure(due: Database, clock: ManualClock) -> None:
    killed = Carrier(raising(KeyboardInterrupt(), handed=True))
    with pytest.raises(KeyboardInterrupt):
        courier(due, clock, killed).deliver()
    clock.sleep(10.1)
    other = Carrier()
    courier(due, clock, other).deliver()
    assert other.sent == ["text 2"]
    assert states(due) == ["unsure", "sent"]


def test_one_that_stood_still_for_too_long_sends_nothing(due: Database, clock: ManualClock) -> None:
    other, late = Carrier(), []

    def stand_still(parcel: Parcel, hand_over: Callable[[], None]) -> None:
        if not late:
            late.append(parcel)
            clock.sleep(10.1)
            courier(due, clock, other).deliver()
            with pytest.raises(ClaimLost):
                hand_over()
            raise ClaimLost

    courier(due, clock, Carrier(stand_still)).deliver()
    assert sorted(other.sent) == ["text 1", "text 2"]
    assert states(due) == ["sent", "sent"]


def test_tries_go_on_for_a_day(due: Database, clock: ManualClock) -> None:
    carrier = Carrier(raising(Later("451")))
    while "waiting" in states(due):
        courier(due, clock, carrier).deliver()
        clock.sleep(900)
    assert states(due) == ["failed", "failed"]
    assert 90 < len(carrier.sent) / 2 < 110


def test_without_an_address_nothing_is_sent(due: Database, clock: ManualClock) -> None:
    with due.session() as session:
        for row in session.scalars(select(DeliveryRow)):
            row.user_id = "somebody else"
    carrier = Carrier()
    courier(due, clock, carrier).deliver()
    assert (carrier.sent, states(due)) == ([], ["failed", "failed"])


def test_an_operator_sees_what_is_unsure_and_may_send_it_again(due: Database, clock: ManualClock) -> None:
    carrier = Carrier(raising(InDoubt("closed"), handed=True))
    courier(due, clock, carrier).deliver()
    with due.session() as session:
        newest, oldest = page(session, state="unsure", before=None, limit=10, domain="example.com")
        assert (oldest.reason, oldest.attempts) == ("closed", 1)
        again = send_again(session, oldest.id, int(clock.now * 1e6), "example.com")
        assert again is not None
        assert (again.message_id, again.state) == (oldest.message_id, "waiting")
        assert send_again(session, oldest.id, 1, "example.com") is None, "it is under way"
    carrier.act = lambda parcel, hand_over: hand_over()
    courier(due, clock, carrier).deliver()
    assert states(due) == ["sent", "unsure"]
    assert newest.state == "unsure"
