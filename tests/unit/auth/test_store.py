from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import sqlalchemy as sa

from services.auth import grants, store
from services.auth.lockout import PAIR
from services.auth.store import Account, ApiKey, RefreshToken, TallyRow
from services.kit.db.session import Database
from tests.support.clock import ManualClock

EMAIL = "ada@example.com"


def opened(db: Database, clock: ManualClock, email: str = EMAIL) -> str:
    with db.session() as session:
        held = store.claim(session, email, "hash", clock.now, 15)
        assert held is not None
        assert store.activate(session, held)
    return held.account_id


def test_a_claimed_account_cannot_log_in_before_it_is_active(db: Database, clock: ManualClock) -> None:
    with db.session() as session:
        held = store.claim(session, EMAIL, "hash", clock.now, 15)
        assert held is not None
        assert store.credentials(session, EMAIL) is None
        assert store.find_active(session, held.account_id) is None
        assert store.activate(session, held)
        assert store.credentials(session, "ADA@example.com") is not None


def test_a_released_or_expired_claim_is_taken_over_under_the_same_id(
    db: Database, clock: ManualClock
) -> None:
    with db.session() as session:
        first = store.claim(session, EMAIL, "one", clock.now, 15)
        assert first is not None
        assert store.claim(session, EMAIL, "two", clock.now + 14, 15) is None
        second = store.claim(session, EMAIL, "two", clock.now + 15, 15)
        assert second is not None
        assert second.account_id == first.account_id
        assert not store.activate(session, first), "the first one's claim has been taken over"
        store.release(session, second)
        third = store.claim(session, EMAIL, "three", clock.now + 15, 15)
        assert third is not None
        assert store.activate(session, third)
        assert store.credentials(session, EMAIL)[1] == "three"  # type: ignore[index]
        store.release(session, third)
        assert store.claim(session, EMAIL, "four", clock.now + 999, 15) is None, "active is active"


def test_removal_takes_tokens_and_keys_along(db: Database, clock: ManualClock) -> None:
    account_id = opened(db, clock)
    with db.session() as session:
        refresh = grants.open_family(session, account_id, clock.now, 100)
        grants.create_api_key(session, account_id, "ci", ["user"], clock.now, None)
    with db.session() as session:
        assert store.remove(session, account_id)
        assert not store.remove(session, account_id)
        for table in (Account, RefreshToken, ApiKey):
            assert session.scalar(sa.select(sa.func.count()).select_from(table)) == 0
        assert grants.rotate_refresh(session, refresh, clock.now) is grants.Refusal.UNKNOWN


def test_admin_is_granted_once_and_only_to_accounts(db: Database, clock: ManualClock) -> None:
    opened(db, clock)
    with db.session() as session:
        assert store.grant(session, "nobody@example.com", "admin") is None
        for _ in range(2):
            granted = store.grant(session, "Ada@example.com", "admin")
            assert granted is not None
            assert granted.scopes == ("user", "admin")


def attempt(db: Database, email: str, source: str, now: float) -> float:
    with db.session() as session:
        return store.begin_attempt(session, email, source, now)


def test_a_refused_attempt_does_not_lengthen_the_wait(db: Database, clock: ManualClock) -> None:
    for _ in range(PAIR.free + 20):
        attempt(db, EMAIL, "198.51.100.1", clock.now)
    assert attempt(db, EMAIL, "198.51.100.1", clock.now + 1) == 0


def test_parallel_guesses_are_counted_before_they_are_looked_at(db: Database, clock: ManualClock) -> None:
    with ThreadPoolExecutor(8) as pool:
        waits = list(pool.map(lambda _: attempt(db, EMAIL, "198.51.100.1", clock.now), range(32)))
    assert waits.count(0.0) == PAIR.free


def test_success_makes_the_source_known_and_keeps_no_address(db: Database, clock: ManualClock) -> None:
    for _ in range(PAIR.free):
        attempt(db, EMAIL, "198.51.100.1", clock.now)
    with db.session() as session:
        store.attempt_succeeded(session, EMAIL, "198.51.100.1", clock.now)
    assert attempt(db, EMAIL, "198.51.100.1", clock.now) == 0
    with db.session(read_only=True) as session:
        keys = list(session.scalars(sa.select(TallyRow.key)))
    assert keys
    assert not any("ada" in key or "198" in key and "." in key for key in keys)


def test_old_tallies_are_forgotten_but_known_sources_are_kept(db: Database, clock: ManualClock) -> None:
    attempt(db, EMAIL, "198.51.100.1", clock.now)
    with db.session() as session:
        store.attempt_succeeded(session, "bob@example.com", "198.51.100.9", clock.now)
        assert store.forget_old_tallies(session, clock.now + 86400 + 1) > 0
        left = session.scalar(sa.select(sa.func.count()).select_from(TallyRow))
    assert left == 1, "the pair of the known source"
