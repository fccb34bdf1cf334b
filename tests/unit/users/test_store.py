from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from services.kit.db.session import Database
from services.users import store
from services.users.domain import User
from services.users.store import NewUser

NOW_US = 1_800_000_000_000_000


def new_id(number: int) -> str:
    return f"{number:032x}"


def create(db: Database, number: int, email: str | None = None, at_us: int = NOW_US) -> User:
    with db.session() as session:
        new = NewUser(new_id(number), email or f"user{number}@example.com", "Ada", "Lovelace")
        return store.create(session, new, at_us)[0]


def test_opening_an_account_twice_is_opening_it_once(db: Database) -> None:
    first = create(db, 1)
    with db.session() as session:
        again, created = store.create(session, NewUser(first.id, first.email, "Ada", "King"), NOW_US + 5)
    assert not created
    assert (again.username, again.created_us, again.last_name) == (first.username, first.created_us, "King")


def test_a_late_repetition_does_not_undo_what_the_owner_changed(db: Database) -> None:
    first = create(db, 1)
    change(db, first.id, {"last_name": "King"})
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
                store.remove(session, seen[0])
                store.remove(session, seen[-1])
    assert seen == [new_id(number) for number in range(9)]


def change(db: Database, user_id: str, values: dict[str, str], at_us: int = NOW_US) -> User:
    with db.session() as session:
        assert store.hold(session, user_id) is not None
        return store.change(session, user_id, values, at_us)


def test_a_change_counts_the_version(db: Database) -> None:
    changed = change(db, create(db, 1).id, {"first_name": "Augusta"}, NOW_US + 7)
    assert (changed.first_name, changed.version, changed.updated_us) == ("Augusta", 2, NOW_US + 7)
    with db.session() as session:
        assert store.hold(session, new_id(9)) is None


def test_simultaneous_changes_come_one_after_the_other(db: Database) -> None:
    user = create(db, 1)
    with ThreadPoolExecutor(8) as pool:
        changed = list(pool.map(lambda n: change(db, user.id, {"first_name": f"N{n}"}), range(8)))
    assert sorted(each.version for each in changed) == list(range(2, 10))
