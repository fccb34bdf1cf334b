from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from services.auth import grants, store
from services.auth.grants import Refusal, Rotation
from services.auth.store import ApiKey, RefreshFamily, RefreshToken
from services.kit.db.session import Database
from tests.support.clock import ManualClock
from tests.unit.auth.test_store import opened


@pytest.fixture
def account_id(db: Database, clock: ManualClock) -> str:
    return opened(db, clock)


@pytest.fixture
def first(db: Database, clock: ManualClock, account_id: str) -> str:
    with db.session() as session:
        return grants.open_family(session, account_id, clock.now, 100)


def rotate(db: Database, token: str, now: float) -> Rotation | Refusal:
    with db.session() as session:
        return grants.rotate_refresh(session, token, now)


def succeed(db: Database, token: str, now: float) -> str:
    outcome = rotate(db, token, now)
    assert isinstance(outcome, Rotation), outcome
    return outcome.token


def test_a_reused_token_revokes_its_whole_family_and_no_other(
    db: Database, clock: ManualClock, account_id: str, first: str
) -> None:
    with db.session() as session:
        elsewhere = grants.open_family(session, account_id, clock.now, 100)
    second = succeed(db, first, clock.now)
    assert rotate(db, first, clock.now) is Refusal.REUSED
    assert rotate(db, second, clock.now) is Refusal.REVOKED
    succeed(db, elsewhere, clock.now)


def test_of_simultaneous_rotations_one_succeeds_and_the_family_ends(
    db: Database, clock: ManualClock, first: str
) -> None:
    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(lambda _: rotate(db, first, clock.now), range(8)))
    won = [outcome for outcome in outcomes if isinstance(outcome, Rotation)]
    assert len(won) == 1
    assert rotate(db, won[0].token, clock.now) is Refusal.REVOKED


def test_rotation_does_not_lengthen_the_life_of_a_login(db: Database, clock: ManualClock, first: str) -> None:
    second = succeed(db, first, clock.now + 99)
    assert rotate(db, second, clock.now + 100) is Refusal.EXPIRED


def test_logout_with_any_token_of_the_family_ends_it(db: Database, clock: ManualClock, first: str) -> None:
    second = succeed(db, first, clock.now)
    with db.session() as session:
        grants.log_out(session, first, clock.now)
        grants.log_out(session, "unknown", clock.now)
    assert rotate(db, second, clock.now) is Refusal.REVOKED


def test_refresh_tokens_are_not_kept_in_the_clear(db: Database, clock: ManualClock, first: str) -> None:
    with db.session(read_only=True) as session:
        stored = session.scalar(sa.select(RefreshToken.token_hash))
    assert stored == grants.digest(first)
    assert rotate(db, stored or "", clock.now) is Refusal.UNKNOWN


def test_expired_families_are_forgotten_with_their_tokens(
    db: Database, clock: ManualClock, first: str
) -> None:
    with db.session() as session:
        assert grants.forget_expired_families(session, clock.now + 50) == 0
        assert grants.forget_expired_families(session, clock.now + 101) == 1
        for table in (RefreshFamily, RefreshToken):
            assert session.scalar(sa.select(sa.func.count()).select_from(table)) == 0


def new_key(db: Database, clock: ManualClock, account_id: str, ttl_s: float | None = None) -> tuple[str, str]:
    with db.session() as session:
        made = grants.create_api_key(session, account_id, "ci", ["user"], clock.now, ttl_s)
        assert made is not None
        return made[0].id, made[1]


def use(db: Database, text: str, now: float) -> bool:
    with db.session() as session:
        return grants.use_api_key(session, text, now) is not None


def test_a_key_works_until_it_is_revoked_by_its_owner(
    db: Database, clock: ManualClock, account_id: str
) -> None:
    key_id, text = new_key(db, clock, account_id)
    assert text.startswith("sk-")
    assert use(db, text, clock.now)
    with db.session() as session:
        assert not grants.revoke_api_key(session, "0" * 32, key_id, clock.now)
        assert grants.revoke_api_key(session, account_id, key_id, clock.now)
        assert not grants.revoke_api_key(session, account_id, key_id, clock.now)
        assert grants.list_api_keys(session, account_id) == []
    assert not use(db, text, clock.now)


def test_a_key_ends_with_its_time(db: Database, clock: ManualClock, account_id: str) -> None:
    _, text = new_key(db, clock, account_id, ttl_s=10)
    assert use(db, text, clock.now + 9)
    assert not use(db, text, clock.now + 10)


def test_the_prefix_alone_or_a_changed_key_opens_nothing(
    db: Database, clock: ManualClock, account_id: str
) -> None:
    _, text = new_key(db, clock, account_id)
    for wrong in (text[: grants.API_KEY_PREFIX_CHARS], text[:-1], text + "x", text.swapcase(), "", "sk-"):
        assert not use(db, wrong, clock.now)


def test_keys_are_kept_as_hash_and_prefix_only(db: Database, clock: ManualClock, account_id: str) -> None:
    _, text = new_key(db, clock, account_id)
    with db.session(read_only=True) as session:
        row = session.scalars(sa.select(ApiKey)).one()
    assert row.key_hash == grants.digest(text)
    assert row.prefix == text[:11]


def test_keys_of_one_account_are_bounded_under_concurrency(
    db: Database, clock: ManualClock, account_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grants, "MAX_API_KEYS", 3)

    def one(_: int) -> bool:
        with db.session() as session:
            return grants.create_api_key(session, account_id, "k", ["user"], clock.now, None) is not None

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(one, range(12))) == 3


def test_a_deleted_account_gets_no_key_and_no_login(
    db: Database, clock: ManualClock, account_id: str
) -> None:
    with db.session() as session:
        store.remove(session, account_id)
    with db.session() as session:
        with pytest.raises(store.AccountGone):
            grants.create_api_key(session, account_id, "ci", ["user"], clock.now, None)
        with pytest.raises(store.AccountGone):
            grants.open_family(session, account_id, clock.now, 100)
