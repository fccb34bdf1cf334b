"""Telling auth that an account is gone: at once after the commit, and again until auth has heard it."""

from __future__ import annotations

import threading

import structlog
from sqlalchemy.exc import SQLAlchemyError

from discovery.clock import SYSTEM_CLOCK, Clock
from discovery.errors import CallError
from services.kit import Kit
from services.users import store

log = structlog.get_logger(__name__)

TURN_S = 1.0
BATCH = 20
CALL_S = 2.0
# The caller's answer does not depend on it, so it is not kept waiting longer.
AT_ONCE_S = 0.5


class Removals:
    """Delivers what the table `removals` holds. No transaction is open during a call. Thread-safe."""

    def __init__(self, kit: Kit, clock: Clock = SYSTEM_CLOCK) -> None:
        self._kit = kit
        self._clock = clock
        self._failing = False

    def start(self) -> None:
        """Deliver about once a second in a daemon thread of this process.

        It may die with its process at any moment: a delivery cut short comes due again, and auth takes it twice.
        """
        threading.Thread(target=self._run, name="removals", daemon=True).start()

    def at_once(self, user_id: str) -> None:
        """Try one right after its commit. Never raises: what fails is left to the thread."""
        try:
            if self._tell(user_id, AT_ONCE_S):
                with self._kit.db.session() as session:
                    store.settle_removal(session, user_id)
        except SQLAlchemyError as error:
            log.warning("removal not settled", user_id=user_id, error=type(error).__name__)

    def turn(self) -> int:
        """Deliver what is due. Returns how many auth has heard."""
        now = self._clock.time()
        with self._kit.db.session(read_only=True) as session:
            due = store.due_removals(session, now, BATCH)
        told = 0
        for user_id, attempts in due:
            with self._kit.db.session() as session:
                mine = store.claim_removal(session, user_id, attempts, now)
            if mine and self._tell(user_id, CALL_S):
                with self._kit.db.session() as session:
                    store.settle_removal(session, user_id)
                told += 1
        return told

    def _tell(self, user_id: str, deadline_s: float) -> bool:
        path = f"/internal/auth/accounts/{user_id}"
        try:
            status = self._kit.client.request("DELETE", "auth", path, deadline_s=deadline_s).status
        except CallError as error:
            status, reason = 0, str(error)
        else:
            reason = f"auth answered {status}"
        if status in (204, 404):
            log.info("credentials removed", user_id=user_id)
            return True
        log.warning("credentials not removed yet", user_id=user_id, reason=reason)
        return False

    def _run(self) -> None:
        while True:
            # Jitter keeps instances that were started together from asking together.
            self._clock.sleep(TURN_S * (0.5 + self._clock.random()))
            try:
                self.turn()
                self._failing = False
            except Exception as error:
                if not self._failing:
                    log.warning("removals not looked at", error=type(error).__name__, reason=str(error)[:200])
                self._failing = True
