from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from services.kit.db.session import Database
from services.users import store
from services.users.domain import User
from services.users.models import Base
from services.users.store import NewUser

NOW_US = 1_800_000_000_000_000
NOW = 1_800_000_000.0


def new_id(number: int) -> str:
    return f"{number:032x}"


def create(db: Database, number: int, email: str | None = None, at_us: int = NOW_US) -> User:
    with db.session() as session:
        new = NewUser(new_id(number), email or f"user{number}@example.com", "Ada", "Lovelace")
        return store.create(session, new, at_us)[0]


def test_migrations_make_exactly_the_tables_of_the_models(db: Database) -> None:
    with db.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def test_opening_an_account_twice_is_opening_it_once(db: Database) -> None:
    first = create(db, 1)
    with db.session() as session:
        again, created = store.create(session, NewUser(first.id, first.email, "Ada", "King"), NOW_US + 5)
    assert not created
    assert (again.username, again.created_us, again.last_name) == (first.username, first.created_us, "King")


def test_a_late_repetition_does_not_undo_what_the_owner_changed(db: Database) -> None:
    first = create(db, 1)
    with db.session() as session:
        store.change(session, first.id, {"last_name": "King"}, NOW_US, None)
    assert create(db, 1).last_name == "King"


def test_one_address_is_one_account_whatever_its_case(db: Database) -> None:
    create(db, 1, "ada@example.com")
    with pytest.raises(store.Taken, match="email"):
        create(db, 2, "ADA@example.com")


def test_same_local_parts_get_different_usernames(db: Database) -> None:
    def one(number: int) -> str:
        return create(db, number, f"ada@host{number}.example.com").username

    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(one, range(20)))
    assert len(set(names)) == 20
    assert "ada" in names


def test_pages_cover_everyone_once_though_others_come_and_go(db: Database) -> None:
    for number in range(9):
        create(db, number, at_us=NOW_US + number // 3)
    seen: list[str] = []
    after = None
    while True:
        with db.session(read_only=True) as session:
            page = store.page(session, after, 2)
        if not page:
            break
        seen += [user.id for user in page]
        after = (page[-1].created_us, page[-1].id)
        if len(seen) == 4:
            with db.session() as session:
                store.remove(session, seen[0], NOW, None)
                store.remove(session, seen[-1], NOW, None)
    assert seen == [new_id(number) for number in range(9)]


def test_a_change_counts_the_version_and_needs_the_expected_one(db: Database) -> None:
    user = create(db, 1)
    with db.session() as session:
        changed = store.change(session, user.id, {"first_name": "Augusta"}, NOW_US + 7, 1)
        assert changed is not None
        assert (changed.first_name, changed.version, changed.updated_us) == ("Augusta", 2, NOW_US + 7)
        assert store.change(session, user.id, {"first_name": "X"}, NOW_US, 1) is None
        assert store.change(session, new_id(9), {"first_name": "X"}, NOW_US, None) is None


def test_of_simultaneous_changes_of_one_state_one_succeeds(db: Database) -> None:
    user = create(db, 1)

    def one(number: int) -> bool:
        with db.session() as session:
            return store.change(session, user.id, {"first_name": f"N{number}"}, NOW_US, 1) is not None

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(one, range(8))) == 1


def test_a_username_has_one_holder(db: Database) -> None:
    one, two = create(db, 1), create(db, 2)
    with db.session() as session:
        store.change(session, one.id, {"username": "ada"}, NOW_US, None)
        store.change(session, one.id, {"username": "ada"}, NOW_US, None)
    with pytest.raises(store.Taken, match="username"), db.session() as session:
        store.change(session, two.id, {"username": "ada"}, NOW_US, None)
    with db.session(read_only=True) as session:
        assert store.find(session, two.id) == two, "the failed change left nothing behind"


def test_a_late_post_count_does_not_win(db: Database) -> None:
    user = create(db, 1)
    with db.session() as session:
        assert store.set_post_count(session, user.id, 3, 30, NOW_US) is True
        assert store.set_post_count(session, user.id, 2, 20, NOW_US) is False
        assert store.set_post_count(session, user.id, 9, 30, NOW_US) is False
        assert store.set_post_count(session, new_id(9), 1, 1, NOW_US) is None
        found = store.find(session, user.id)
    assert found is not None
    assert found.post_count == 3


def test_removal_is_owed_to_auth_until_it_is_settled(db: Database) -> None:
    user = create(db, 1)
    with db.session() as session:
        assert store.remove(session, user.id, NOW, None)
        assert not store.remove(session, user.id, NOW, None)
        assert store.due_removals(session, NOW, 10) == [], "the request tells auth itself first"
        due = store.due_removals(session, NOW + 1, 10)
        assert due == [(user.id, 0)]
        assert store.claim_removal(session, user.id, 0, NOW + 1)
        assert not store.claim_removal(session, user.id, 0, NOW + 1), "another instance has it"
        assert store.due_removals(session, NOW + 1.5, 10) == []
        assert store.due_removals(session, NOW + 2, 10) == [(user.id, 1)], "the claim ran out"
        store.settle_removal(session, user.id)
        assert store.due_removals(session, NOW + 999, 10) == []
