"""Keys that remember answers, on real databases."""

from __future__ import annotations

from typing import Any

import pytest
from flask import Flask
from pydantic import BaseModel
from sqlalchemy.orm import DeclarativeBase

from services.kit import Caller, Problem
from services.kit.db.idempotency import KEPT_US, Answer, Keys, answer_once, forget_old
from services.kit.db.session import Database
from services.kit.text import now_us
from services.kit.web.context import set_current
from tests.support.databases import shared


class Base(DeclarativeBase):
    pass


class KeyRow(Keys, Base):
    pass


tables, db = shared(Base.metadata)


class Body(BaseModel):
    title: str = "x"


def ask(
    db: Database,
    text: str,
    *,
    key: str = "k",
    subject: str = "anna",
    operation: str = "post",
    body: Any = None,
) -> tuple[str, bool]:
    """What a request is answered whose work would answer `text`, and whether that is a repeated answer."""

    def work() -> Answer:
        if text == "fail":
            raise RuntimeError(text)
        return Answer(201, {"data": text}, "/x")

    set_current(Caller(subject=subject))
    try:
        with Flask("x").test_request_context(headers={"Idempotency-Key": key}), db.session() as session:
            answer, _, headers = answer_once(session, KeyRow, operation, body or Body(), work)
    finally:
        set_current(None)
    return answer["data"], "Idempotency-Replayed" in headers


def test_key_gives_its_first_answer_again_to_its_own_subject(db: Database) -> None:
    assert ask(db, "one") == ("one", False)
    assert ask(db, "two") == ("one", True)
    assert ask(db, "two", subject="bert") == ("two", False)


def test_key_is_refused_for_another_operation_or_body(db: Database) -> None:
    ask(db, "one")
    for other in ({"operation": "comment"}, {"body": Body(title="y")}):
        with pytest.raises(Problem) as refused:
            ask(db, "one", **other)
        assert refused.value.status == 422


def test_key_whose_work_failed_is_free_again(db: Database) -> None:
    with pytest.raises(RuntimeError):
        ask(db, "fail")
    assert ask(db, "two", operation="comment") == ("two", False)


def test_key_is_forgotten_after_a_day_and_no_sooner(db: Database) -> None:
    ask(db, "one")
    forget_old(db, KeyRow, now_us())
    assert ask(db, "two") == ("one", True)
    forget_old(db, KeyRow, now_us() + KEPT_US)
    assert ask(db, "two") == ("two", False)
