"""Keys that remember answers, on real databases."""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from services.kit import Problem
from services.kit.db.idempotency import Answer, KeyReused, fingerprint, forget_old, once
from services.kit.db.session import Database
from tests.unit.kit.owing import KeyRow
from tests.unit.kit.test_outbox import db

__all__ = ["db"]

DAY_US = 24 * 3600 * 1_000_000


class Body(BaseModel):
    title: str


def answer(title: str) -> Answer:
    return Answer(201, {"data": {"title": title}}, "/x")


def ask(db: Database, key: str, title: str, *, print_: str = "f", subject: str = "anna", at_us: int = 1):
    with db.session() as session:
        return once(session, KeyRow, (subject, key), print_, at_us, lambda: answer(title))


def test_key_gives_its_first_answer_again_to_its_own_subject(db: Database) -> None:
    assert ask(db, "k", "one") == (answer("one"), False)
    assert ask(db, "k", "two") == (answer("one"), True)
    assert ask(db, "k", "two", subject="bert") == (answer("two"), False)


def test_key_is_refused_for_another_request(db: Database) -> None:
    ask(db, "k", "one")
    with pytest.raises(KeyReused) as refused:
        ask(db, "k", "one", print_="g")
    assert isinstance(refused.value, Problem)
    assert refused.value.status == 422


def test_key_whose_work_failed_is_free_again(db: Database) -> None:
    def fail() -> Answer:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError), db.session() as session:
        once(session, KeyRow, ("anna", "k"), "f", 1, fail)
    assert ask(db, "k", "two", print_="g") == (answer("two"), False)


def test_keys_are_forgotten_after_a_day(db: Database) -> None:
    ask(db, "old", "one")
    ask(db, "new", "one", at_us=DAY_US)
    forget_old(db, KeyRow, DAY_US + 2)
    assert ask(db, "new", "two") == (answer("one"), True)
    assert ask(db, "old", "two") == (answer("two"), False)


def test_fingerprint_tells_operations_and_bodies_apart() -> None:
    one, two = Body(title="a"), Body(title="b")
    assert fingerprint("posts", one) == fingerprint("posts", one.model_copy())
    assert len({fingerprint("posts", one), fingerprint("posts", two), fingerprint("x", one)}) == 3
