"""Counts owed to users, and keys that remember answers, on a real database."""

from __future__ import annotations

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.orm import sessionmaker

from services.posts import idempotency, outbox, store
from services.posts.domain import Answer, NewPost
from services.posts.tables import Base

DAY_US = 24 * 3600 * 1_000_000


def test_migration_makes_what_the_models_say(sessions: sessionmaker) -> None:
    with sessions() as session:
        context = MigrationContext.configure(session.connection(), opts={"compare_type": True})
        drift = [
            d
            for d in compare_metadata(context, Base.metadata)
            if d[0] not in ("remove_table", "remove_index")
        ]
    assert [d for d in drift if not (isinstance(d, tuple) and d[0] == "remove_constraint")] == []


def test_each_post_raises_count_and_version_and_each_deletion_lowers_the_count(
    sessions: sessionmaker,
) -> None:
    with sessions.begin() as session:
        post = store.create_post(session, "anna", NewPost(title="a", content="b"), 1000)
        store.create_post(session, "anna", NewPost(title="a", content="b"), 1000)
    with sessions() as session:
        owed = outbox.owed_count(session, "anna")
    assert owed is not None
    assert (owed.count, owed.version) == (2, 1001)
    with sessions.begin() as session:
        assert store.delete_post(session, post, 5000)
        assert not store.delete_post(session, post, 6000)
    with sessions() as session:
        owed = outbox.owed_count(session, "anna")
    assert owed is not None
    assert (owed.count, owed.version) == (1, 5000)


def test_a_settled_count_is_owed_no_more_but_a_newer_one_is(sessions: sessionmaker) -> None:
    with sessions.begin() as session:
        outbox.owe_count(session, "anna", 1, 1000)
        first = outbox.owed_count(session, "anna")
        assert first is not None
        outbox.owe_count(session, "anna", 1, 2000)
        outbox.settle_count(session, first)
    with sessions.begin() as session:
        session.expire_all()
        second = outbox.owed_count(session, "anna")
        assert second is not None
        assert second.count == 2
        outbox.settle_count(session, second)
    with sessions() as session:
        assert outbox.owed_count(session, "anna") is None
        assert outbox.due_counts(session, 10**15, 10) == []


def test_an_overdue_count_is_claimed_once(sessions: sessionmaker) -> None:
    with sessions.begin() as session:
        outbox.owe_count(session, "anna", 1, 1000)
        assert outbox.due_counts(session, 1000, 10) == []
        [(author, due)] = outbox.due_counts(session, 1000 + outbox.DELIVERY_LEASE_US, 10)
    with sessions.begin() as session:
        mine = outbox.claim_count(session, author, due, due + 50)
        assert mine is not None
        assert mine.attempts == 1
    with sessions.begin() as session:
        assert outbox.claim_count(session, author, due, due + 50) is None
        assert outbox.due_counts(session, due + 49, 10) == []
        assert len(outbox.due_counts(session, due + 50, 10)) == 1


def answer(title: str) -> Answer:
    return Answer(201, {"data": {"title": title}}, "/x")


def test_a_key_gives_its_first_answer_again(sessions: sessionmaker) -> None:
    with sessions.begin() as session:
        assert idempotency.once(session, "anna", "k", "f", 1, lambda: answer("one")) == (answer("one"), False)
    with sessions.begin() as session:
        assert idempotency.once(session, "anna", "k", "f", 2, lambda: answer("two")) == (answer("one"), True)
        assert idempotency.once(session, "bert", "k", "f", 2, lambda: answer("two")) == (answer("two"), False)


def test_a_key_is_refused_for_another_request(sessions: sessionmaker) -> None:
    with sessions.begin() as session:
        idempotency.once(session, "anna", "k", "f", 1, lambda: answer("one"))
    with sessions.begin() as session, pytest.raises(idempotency.KeyReused):
        idempotency.once(session, "anna", "k", "g", 2, lambda: answer("two"))


def test_a_key_whose_work_failed_is_free_again(sessions: sessionmaker) -> None:
    def fail() -> Answer:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError), sessions.begin() as session:
        idempotency.once(session, "anna", "k", "f", 1, fail)
    with sessions.begin() as session:
        assert idempotency.once(session, "anna", "k", "g", 2, lambda: answer("two"))[1] is False


def test_keys_are_forgotten_after_a_day(sessions: sessionmaker) -> None:
    with sessions.begin() as session:
        idempotency.once(session, "anna", "old", "f", 1, lambda: answer("one"))
        idempotency.once(session, "anna", "new", "f", DAY_US, lambda: answer("one"))
    with sessions.begin() as session:
        assert idempotency.purge(session, DAY_US + 2) == 1
        assert idempotency.once(session, "anna", "new", "f", 2, lambda: answer("two"))[1] is True
