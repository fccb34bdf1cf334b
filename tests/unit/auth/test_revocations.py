from __future__ import annotations

from services.auth import store
from services.kit.db.session import Database
from tests.support.clock import ManualClock


def revoke(db: Database, now: float) -> None:
    with db.session() as session:
        store.revoke(session, "ada", now, 900)


def issued(db: Database, now: float) -> int:
    with db.session() as session:
        return store.issue_time(session, "ada", now)


def before(db: Database, now: float) -> int:
    [entry] = store.revocations(db, now)["revocations"]
    number: int = entry["before"]
    return number


def test_what_was_issued_in_the_second_of_a_revocation_is_void_and_what_follows_is_not(
    db: Database, clock: ManualClock
) -> None:
    first = issued(db, clock.now)
    revoke(db, clock.now + 0.1)
    second = issued(db, clock.now + 0.2)
    assert first <= before(db, clock.now) < second
    revoke(db, clock.now + 0.3)
    third = issued(db, clock.now + 0.4)
    assert second <= before(db, clock.now) < third


def test_revocation_is_listed_until_the_last_token_has_expired(db: Database, clock: ManualClock) -> None:
    revoke(db, clock.now)
    [entry] = store.revocations(db, clock.now + 899)["revocations"]
    assert entry == {"subject": "ada", "before": int(clock.now), "until": int(clock.now) + 901}
    assert store.revocations(db, clock.now + 901) == {"revocations": []}


def test_revocation_is_forgotten_once_nothing_lives_that_it_could_meet(
    db: Database, clock: ManualClock
) -> None:
    revoke(db, clock.now)
    with db.session() as session:
        assert store.forget_old_revocations(session, clock.now + 3600, 3600) == 0
        assert store.revoked_before(session, "ada") == int(clock.now)
        assert store.forget_old_revocations(session, clock.now + 3602, 3600) == 1
        assert store.revoked_before(session, "ada") == 0
