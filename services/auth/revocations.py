"""Access tokens that end before they expire: those of accounts that are gone, or were logged out everywhere.

A token is void when its account has a revocation and it was issued at `before` or earlier. Both are whole seconds, as `iat` is:
a token that is issued right after a revocation is dated into the next second (`issue_time`), and lives.
Each function with a session works in its transaction.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from services.auth.models import Revocation
from services.kit.db.portable import insert_new, write
from services.kit.db.session import Database


def revoke(session: Session, subject: str, now: float, longest_s: float) -> None:
    """Void every token and browser session that `subject` has; no token lives for more than `longest_s`.

    Call it last in the transaction: what is issued beside it, and sees nothing of it yet, is then older.
    """
    # A second revocation in one second voids what was issued after the first, too.
    before = issue_time(session, subject, now)
    values = {"before": before, "until": int(now + longest_s) + 1}
    if not insert_new(session, Revocation, subject=subject, **values):
        session.execute(update(Revocation).where(Revocation.subject == subject).values(**values))


def read(db: Database, now: float) -> dict[str, Any]:
    """What verifiers of tokens must know: the revocations some of whose tokens have not expired."""
    query = select(Revocation).where(Revocation.until > now).order_by(Revocation.subject)
    with db.session(read_only=True) as session:
        rows = session.scalars(query)
        entries = [{"subject": row.subject, "before": row.before, "until": row.until} for row in rows]
    return {"revocations": entries}


def issue_time(session: Session, subject: str, now: float) -> int:
    """The `iat` of a token that is made for `subject` now: after its revocation, if there has been one."""
    return max(int(now), revoked_before(session, subject) + 1)


def revoked_before(session: Session, subject: str) -> int:
    """What was issued to `subject` up to then is void; 0 when nothing has been revoked."""
    before = session.scalar(select(Revocation.before).where(Revocation.subject == subject))
    return before or 0


def forget_old(session: Session, now: float, kept_s: float) -> int:
    """Delete revocations that nothing issued lives long enough to meet. Returns how many."""
    return write(session, delete(Revocation).where(Revocation.before < now - kept_s))
