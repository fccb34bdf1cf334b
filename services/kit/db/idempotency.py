"""Idempotency-Key: the first request under a key does the work, every other gets its answer.

The claim is an INSERT under a primary key, in the transaction that does the work. A second request waits for
that transaction: if it commits, its answer is there to be read; if it fails, the claim is gone with it.
A service keeps keys in a table of its own (`class KeyRow(Keys, Base)`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from flask import request
from pydantic import BaseModel
from sqlalchemy import BigInteger, String, Text, delete, select, tuple_, update
from sqlalchemy.orm import Mapped, Session, mapped_column

from services.kit.db.portable import insert_new, write
from services.kit.db.session import Database
from services.kit.text import now_us
from services.kit.web.context import current
from services.kit.web.problems import Problem

KEPT_US = 24 * 3600 * 1_000_000
PURGE_BATCH = 500
MAX_PURGES = 100
_KEY = re.compile(r"[\x21-\x7e]{1,128}")


class Keys:
    """The columns of keys and their answers, for a model."""

    __tablename__ = "idempotency_keys"
    subject: Mapped[str] = mapped_column(String(64), primary_key=True)
    key: Mapped[str] = mapped_column(String(128), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64))
    answer: Mapped[str | None] = mapped_column(Text)
    created_us: Mapped[int] = mapped_column(BigInteger)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that can be given again."""

    status: int
    body: dict[str, Any]
    location: str

    def response(self, *, repeated: bool) -> tuple[dict[str, Any], int, dict[str, str]]:
        """What a view returns."""
        headers = {"Location": self.location, "Cache-Control": "no-store"}
        if repeated:
            headers["Idempotency-Replayed"] = "true"
        return self.body, self.status, headers


def answer_once(
    session: Session, table: Any, operation: str, body: BaseModel, work: Callable[[], Answer]
) -> tuple[dict[str, Any], int, dict[str, str]]:
    """What a view returns that creates something: `work` runs in this session, under an Idempotency-Key only the first time.

    Must be the first statement of its transaction. Raises Problem 400, and 422 for a key of another request.
    """
    key = request.headers.get("Idempotency-Key")
    if key is None:
        return work().response(repeated=False)
    if not _KEY.fullmatch(key):
        raise Problem(400, "Bad Idempotency-Key", "Idempotency-Key is 1-128 visible ASCII characters")
    name = {"subject": current().subject or "", "key": key}
    mine = [getattr(table, column) == value for column, value in name.items()]
    asked = fingerprint(operation, body)
    if insert_new(session, table, **name, fingerprint=asked, created_us=now_us()):
        answer = work()
        write(session, update(table).where(*mine).values(answer=json.dumps(asdict(answer))))
        return answer.response(repeated=False)
    row = session.execute(select(table.fingerprint, table.answer).where(*mine)).one()
    if row.fingerprint != asked or row.answer is None:
        raise Problem(422, "Idempotency-Key reused", "This key was first used for another request.")
    return Answer(**json.loads(row.answer)).response(repeated=True)


def fingerprint(operation: str, body: BaseModel) -> str:
    """What a key stands for: the operation and its validated body."""
    text = json.dumps([operation, body.model_dump(mode="json")], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def forget_old(db: Database, table: Any, at_us: int | None = None) -> None:
    """Forget keys older than a day, in short transactions, and not without end. For a job."""
    before_us = (at_us or now_us()) - KEPT_US
    name = tuple_(table.subject, table.key)
    old = select(table.subject, table.key).where(table.created_us < before_us).limit(PURGE_BATCH)
    for _ in range(MAX_PURGES):
        with db.session() as session:
            if write(session, delete(table).where(name.in_(old))) < PURGE_BATCH:
                return
