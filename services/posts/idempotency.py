"""Idempotency-Key: the first request under a key does the work, every other gets its answer.

The claim is an INSERT under a primary key, in the transaction that does the work. A second request waits for
that transaction: if it commits, its answer is there to be read; if it fails, the claim is gone with it.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from sqlalchemy import BigInteger, String, Text, delete, select, update
from sqlalchemy.orm import Mapped, Session, mapped_column

from services.kit.db.upsert import insert_new
from services.posts.domain import Answer
from services.posts.tables import Base

KEPT_US = 24 * 3600 * 1_000_000
PURGE_BATCH = 500


class KeyReused(Exception):
    """The key was first used for another request."""


class IdempotencyRow(Base):
    __tablename__ = "idempotency_keys"
    subject: Mapped[str] = mapped_column(String(64), primary_key=True)
    key: Mapped[str] = mapped_column(String(128), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64))
    answer: Mapped[str | None] = mapped_column(Text)
    created_us: Mapped[int] = mapped_column(BigInteger)


def once(
    session: Session, subject: str, key: str, fingerprint: str, now_us: int, work: Callable[[], Answer]
) -> tuple[Answer, bool]:
    """The answer of `work`, which runs in this session if the key is new, and whether it is a repeated one.

    Must be the first statement of its transaction. Raises KeyReused.
    """
    claimed = insert_new(
        session, IdempotencyRow, subject=subject, key=key, fingerprint=fingerprint, created_us=now_us
    )
    mine = (IdempotencyRow.subject == subject, IdempotencyRow.key == key)
    if not claimed:
        row = session.scalars(select(IdempotencyRow).where(*mine)).one()
        if row.fingerprint != fingerprint or row.answer is None:
            raise KeyReused(key)
        return Answer(**json.loads(row.answer)), True
    answer = work()
    kept = json.dumps({"status": answer.status, "body": answer.body, "location": answer.location})
    session.execute(
        update(IdempotencyRow).where(*mine).values(answer=kept).execution_options(synchronize_session=False)
    )
    return answer, False


def purge(session: Session, now_us: int) -> int:
    """Forget keys older than 24 h, at most a batch of them; how many went."""
    old = (
        select(IdempotencyRow.subject, IdempotencyRow.key)
        .where(IdempotencyRow.created_us < now_us - KEPT_US)
        .limit(PURGE_BATCH)
    )
    rows = session.execute(old).all()
    for subject, key in rows:
        session.execute(
            delete(IdempotencyRow)
            .where(IdempotencyRow.subject == subject, IdempotencyRow.key == key)
            .execution_options(synchronize_session=False)
        )
    return len(rows)
