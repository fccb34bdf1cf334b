"""Who is named in a text: user names are noted in the transaction that hears of the text, and looked up at users after it."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict, replace

import structlog
from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from discovery.errors import CallError
from services.kit import Kit
from services.kit.db.portable import insert_new, write
from services.kit.text import now_us
from services.notifications import store
from services.notifications.domain import New, retry_s, usernames
from services.notifications.tables import MentionRow

log = structlog.get_logger(__name__)

CALL_S = 2.0
BATCH = 50
# What users refuses is a mistake in this service, or a version of users that does not know the question.
MAX_REFUSALS = 10


class Mentions:
    """`available` are the channels that this installation has."""

    def __init__(self, kit: Kit, available: Collection[str]) -> None:
        self._kit = kit
        self._available = available

    def note(self, session: Session, new: New, mentions: Collection[str]) -> None:
        """Tell it to those who are named, once they are found. `new` is for nobody yet."""
        names = usernames(mentions)
        if names:
            text = json.dumps({"new": asdict(new), "usernames": names})
            insert_new(
                session, MentionRow, about=new.about, post_id=new.post_id, text=text, due_us=now_us(), attempts=0
            )  # fmt: skip

    def find(self) -> None:
        """Look up what is due, as far as users can be asked. For a job."""
        with self._kit.db.session(read_only=True) as session:
            due = select(MentionRow.about, MentionRow.due_us).where(MentionRow.due_us <= now_us())
            rows = session.execute(due.order_by(MentionRow.due_us).limit(BATCH)).all()
        for row in rows:
            claimed = self._claim(row.about, row.due_us)
            if claimed is not None and not self._look_up(row.about, *claimed):
                return

    def _claim(self, about: str, due_us: int) -> tuple[str, int] | None:
        """Its text, and how often it was tried; None if another instance was faster."""
        mine = (MentionRow.about == about, MentionRow.due_us == due_us)
        with self._kit.db.session() as session:
            tried = session.scalar(select(MentionRow.attempts).where(*mine))
            if tried is None:
                return None
            # At least as long as the call takes.
            again_us = now_us() + int((CALL_S + min(30.0, retry_s(tried + 1, 1.0))) * 1e6)
            if not write(
                session, update(MentionRow).where(*mine).values(due_us=again_us, attempts=tried + 1)
            ):
                return None
            return session.scalars(select(MentionRow.text).where(MentionRow.about == about)).one(), tried + 1

    def _look_up(self, about: str, text: str, tried: int) -> bool:
        """False where users cannot be asked now."""
        noted = json.loads(text)
        names = {"usernames": noted["usernames"]}
        try:
            answer = self._kit.client.request(
                "POST", "users", "/internal/users/by-username", json=names, deadline_s=CALL_S
            )
        except CallError as error:
            log.info("mentions wait for users", error=type(error).__name__)
            return False
        if answer.status == 200:
            self._tell(about, New(**noted["new"]), answer.json()["data"].values())
        elif answer.status >= 500 or answer.status in (401, 403, 429) or tried < MAX_REFUSALS:
            log.warning("mentions refused by users", status=answer.status, about=about)
            return False
        else:
            log.error("mentions given up", status=answer.status, about=about)
            self._tell(about, New(**noted["new"]), ())
        return True

    def _tell(self, about: str, new: New, people: Collection[str]) -> None:
        with self._kit.db.session() as session:
            # What is deleted meanwhile is not told of.
            if write(session, delete(MentionRow).where(MentionRow.about == about)):
                for user_id in people:
                    store.notify(session, replace(new, user_id=user_id), self._available, now_us())
