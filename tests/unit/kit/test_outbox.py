"""What is owed to another service, on real databases."""

from __future__ import annotations

import pytest

from discovery.errors import CallError
from services.kit.db.outbox import FIRST_S, Outbox, Owed, retry_s
from services.kit.db.session import Database
from tests.support.clock import ManualClock
from tests.support.databases import shared
from tests.unit.kit.owing import Base, OutboxRow

tables, db = shared(Base.metadata)


class Receiver:
    """The other service: answers `status`, or nothing."""

    def __init__(self) -> None:
        self.status: int | None = 204
        self.seen: list[tuple[str, object]] = []

    def __call__(self, owed: Owed, deadline_s: float) -> int:
        self.seen.append((owed.key, owed.payload.get("n")))
        if self.status is None:
            raise CallError("users", "away")
        return self.status


class Stage:
    def __init__(self, db: Database, refusals: int | None = None) -> None:
        self.db = db
        self.clock = ManualClock()
        self.receiver = Receiver()
        self.outbox = Outbox(db, OutboxRow, self.receiver, refusals=refusals, clock=self.clock)

    def owe(self, key: str, number: int) -> None:
        with self.db.session() as session:
            self.outbox.owe(session, key, {"n": number})

    def owed(self, key: str) -> Owed | None:
        with self.db.session(read_only=True) as session:
            return self.outbox.find(session, key)


def test_note_is_delivered_at_once_and_then_owed_no_more(db: Database) -> None:
    stage = Stage(db)
    stage.owe("anna", 1)
    stage.outbox.at_once("anna", 5.0)
    assert stage.receiver.seen == [("anna", 1)]
    assert stage.owed("anna") is None
    stage.outbox.at_once("anna", 5.0)
    assert len(stage.receiver.seen) == 1


def test_job_leaves_it_to_the_request_first_and_then_delivers_it(db: Database) -> None:
    stage = Stage(db)
    stage.owe("anna", 1)
    stage.outbox.deliver()
    assert stage.receiver.seen == []
    stage.clock.sleep(FIRST_S)
    stage.outbox.deliver()
    assert stage.receiver.seen == [("anna", 1)]
    assert stage.owed("anna") is None


def test_note_of_a_transaction_that_failed_is_not_owed(db: Database) -> None:
    stage = Stage(db)
    with db.session() as session:
        stage.outbox.owe(session, "anna", {"n": 1})
        session.rollback()
    assert stage.owed("anna") is None


def test_later_note_takes_the_place_of_an_earlier_one_also_while_that_is_delivered(db: Database) -> None:
    stage = Stage(db)
    stage.owe("anna", 1)
    stage.owe("anna", 2)
    answer = stage.receiver.__call__

    def slow(owed: Owed, deadline_s: float) -> int:
        if len(stage.receiver.seen) == 0:
            stage.owe("anna", 3)
        return answer(owed, deadline_s)

    Outbox(db, OutboxRow, slow, clock=stage.clock).at_once("anna", 5.0)
    assert stage.receiver.seen == [("anna", 2)]
    left = stage.owed("anna")
    assert left is not None
    assert left.payload == {"n": 3}


def test_what_cannot_be_asked_stops_the_turn_and_is_tried_later_without_end(db: Database) -> None:
    stage = Stage(db, refusals=1)
    stage.receiver.status = None
    for number in range(3):
        stage.owe(f"a{number}", number)
    stage.outbox.at_once("a0", 5.0)
    stage.clock.sleep(FIRST_S)
    for _ in range(4):
        asked = len(stage.receiver.seen)
        stage.outbox.deliver()
        assert len(stage.receiver.seen) == asked + 1
        stage.clock.sleep(120)
    stage.receiver.status = 204
    stage.outbox.deliver()
    assert [stage.owed(f"a{number}") for number in range(3)] == [None] * 3


@pytest.mark.parametrize("status", [401, 403, 429, 500, 503])
def test_refusal_of_the_caller_is_none_of_the_note(db: Database, status: int) -> None:
    stage = Stage(db, refusals=1)
    stage.receiver.status = status
    stage.owe("anna", 1)
    for _ in range(3):
        stage.clock.sleep(120)
        stage.outbox.deliver()
    assert stage.owed("anna") is not None


def test_note_that_is_refused_is_given_up_where_that_is_wanted(db: Database) -> None:
    for refusals, kept in ((3, False), (None, True)):
        stage = Stage(db, refusals)
        stage.receiver.status = 404
        stage.owe("anna", 1)
        for _ in range(3):
            assert stage.owed("anna") is not None
            stage.clock.sleep(120)
            stage.outbox.deliver()
        assert (stage.owed("anna") is not None) is kept


def test_two_instances_do_not_deliver_the_same_note(db: Database) -> None:
    one, other = Stage(db), Stage(db)
    other.outbox = Outbox(db, OutboxRow, lambda owed, s: other.outbox.deliver_batch() or 204, clock=one.clock)
    one.owe("anna", 1)
    one.clock.sleep(FIRST_S)
    one.receiver.status = None
    one.outbox.deliver()
    one.outbox.deliver()
    assert len(one.receiver.seen) == 1


def test_pause_between_deliveries_grows_to_half_a_minute() -> None:
    assert [retry_s(n, 1.0) for n in (1, 2, 3, 6, 10**6)] == [1, 2, 4, 30, 30]
    assert retry_s(1, 0.0) == 0.5
