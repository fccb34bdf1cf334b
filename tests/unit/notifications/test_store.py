"""Who is told what, on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import pytest
from sqlalchemy import func, select

from services.kit.db.session import Database
from services.notifications import store
from services.notifications.domain import New, by_comment, by_post, welcome
from services.notifications.tables import Base, DeliveryRow, NotificationRow, PersonRow

ALL = ("app", "email", "push", "sms")
COMMENT = by_comment("ada", "comment", "c1", "p1", "bob", "Well said.")


def tell(db: Database, new: New, available: Collection[str] = ALL, at: int = 1) -> bool:
    with db.session() as session:
        return store.notify(session, new, available, at)


def known(db: Database, user_id: str = "ada") -> None:
    with db.session() as session:
        store.add_person(session, user_id, f"{user_id}@example.com", "Ada", "Lovelace")


def listed(db: Database, user_id: str = "ada", unread: bool | None = None) -> list[str]:
    with db.session(read_only=True) as session:
        store.at_one_moment(session)
        rows = store.page(session, user_id, unread=unread, before=None, limit=100)
        if unread:
            assert len(rows) == store.count_unread(session, user_id)
        return [row.title for row in rows]


def channels(db: Database) -> list[str]:
    with db.session(read_only=True) as session:
        return sorted(session.scalars(select(DeliveryRow.channel)))


def test_everything_is_told_once_and_the_newest_is_first(db: Database) -> None:
    known(db)
    assert tell(db, welcome("ada", "Ada"))
    assert not tell(db, welcome("ada", "Ada"))
    assert tell(db, COMMENT, at=2)
    assert not tell(db, replace(COMMENT, kind="mention")), "one is told of a comment once"
    assert listed(db) == ["New comment on your post", "Welcome, Ada!"]
    assert channels(db) == ["email", "email"]


def test_ones_own_doing_a_blocked_person_and_a_muted_post_are_not_told(db: Database) -> None:
    assert not tell(db, replace(COMMENT, actor_id="ada"))
    with db.session() as session:
        store.silence(session, "ada", "user", "bob", 1)
        store.silence(session, "ada", "post", "p2", 1)
        # The ids are of different things: a post is not muted by blocking a person of that id.
        store.silence(session, "ada", "user", "p3", 1)
    assert not tell(db, COMMENT)
    assert not tell(db, by_comment("ada", "reply", "c2", "p2", "eve", "x"))
    assert tell(db, by_comment("ada", "reply", "c3", "p3", "eve", "x"))
    with db.session() as session:
        store.hear_again(session, "ada", "user", "bob")
    assert tell(db, COMMENT)


def test_channels_are_those_that_the_person_wants_and_that_there_are(db: Database) -> None:
    known(db)
    with db.session() as session:
        store.subscribe(session, "ada", "https://push.example.com/1", "p", "a", 1)
        store.subscribe(session, "ada", "https://push.example.com/2", "p", "a", 1)
        store.set_phone(session, "ada", "+4930123456")
        store.prefer(session, "ada", {"comment": {"email": False, "sms": True}, "reply": {"app": False}})
    assert tell(db, COMMENT)
    assert channels(db) == ["push", "push", "sms"]
    assert tell(db, by_comment("ada", "reply", "c2", "p1", "bob", "x"), available=["app", "email"])
    assert channels(db) == ["email", "push", "push", "sms"]
    assert listed(db) == ["New comment on your post"], "an answer is wanted by mail alone"


def test_a_person_nobody_has_heard_of_has_a_list_and_gets_no_mail(db: Database) -> None:
    assert tell(db, COMMENT)
    assert channels(db) == []
    known(db)
    assert listed(db) == ["New comment on your post"]


def test_nothing_is_left_of_a_deleted_person_and_nothing_comes_late(db: Database) -> None:
    known(db)
    with db.session() as session:
        store.subscribe(session, "ada", "https://push.example.com/1", "p", "a", 1)
        store.prefer(session, "ada", {"comment": {"email": True}})
        store.silence(session, "ada", "user", "bob", 1)
        store.silence(session, "eve", "user", "ada", 1)
    tell(db, COMMENT)
    with db.session() as session:
        store.remove_person(session, "ada", 5)
    assert not tell(db, by_comment("ada", "reply", "c2", "p1", "bob", "x"))
    known(db)
    with db.session() as session:
        store.silence(session, "ada", "post", "p1", 1)
        assert store.subscribe(session, "ada", "https://push.example.com/1", "p", "a", 1) is None
        assert store.find_person(session, "ada") is None
        for table in Base.metadata.sorted_tables:
            left = session.scalar(select(func.count()).select_from(table))
            assert left == {"people": 2}.get(table.name, 0), table.name
        assert session.get_one(PersonRow, "ada").email is None


def test_what_is_deleted_is_taken_back_with_its_mails(db: Database) -> None:
    known(db)
    for comment_id, post_id in (("c1", "p1"), ("c2", "p1"), ("c3", "p2")):
        tell(db, by_comment("ada", "comment", comment_id, post_id, "bob", comment_id))
    tell(db, by_post("ada", "p1", "bob", "About Ada"))
    with db.session() as session:
        store.forget_comment(session, "c1")
    assert (len(listed(db)), len(channels(db))) == (3, 3)
    with db.session() as session:
        store.forget_post(session, "p1")
        assert session.scalars(select(NotificationRow.body)).all() == ["c3"]
    assert channels(db) == ["email"]


def test_unread_is_what_the_list_shows(db: Database) -> None:
    for number in range(5):
        tell(db, by_comment("ada", "comment", f"c{number}", "p1", "bob", "x"), at=number)
    with db.session() as session:
        rows = store.page(session, "ada", unread=None, before=None, limit=100)
        assert store.mark(session, "eve", rows[0].id, 9) is None, "another's"
        first = store.mark(session, "ada", rows[0].id, 9)
        again = store.mark(session, "ada", rows[0].id, 10)
        assert first is not None
        assert again == first
    assert len(listed(db, unread=True)) == 4
    assert len(listed(db, unread=False)) == 1
    with db.session() as session:
        store.mark_all(session, "ada", 11)
    assert listed(db, unread=True) == []
    with db.session() as session:
        store.mark(session, "ada", rows[3].id, None)
    assert len(listed(db, unread=True)) == 1


def test_lists_of_one_person_have_an_end(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MAX_SILENCED", 2)
    monkeypatch.setattr(store, "MAX_SUBSCRIPTIONS", 2)
    with db.session() as session:
        for number in range(2):
            store.silence(session, "ada", "post", f"p{number}", 1)
            store.subscribe(session, "ada", f"https://push.example.com/{number}", "p", "a", 1)
        with pytest.raises(store.TooMany):
            store.silence(session, "ada", "post", "p9", 1)
        with pytest.raises(store.TooMany):
            store.subscribe(session, "ada", "https://push.example.com/9", "p", "a", 1)
        store.subscribe(session, "ada", "https://push.example.com/1", "p2", "a", 1)
        assert len(store.subscriptions(session, "ada")) == 2


def test_what_is_older_than_three_months_goes(db: Database) -> None:
    tell(db, COMMENT, at=1)
    tell(db, by_comment("ada", "comment", "c2", "p1", "bob", "young"), at=store.KEPT_US)
    with db.session() as session:
        assert store.forget_old(session, store.KEPT_US + 2) == 1
    assert len(listed(db)) == 1
