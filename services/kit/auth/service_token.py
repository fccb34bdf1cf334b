"""This service's own access token, for calls to others: client_credentials at auth, kept until it is nearly over."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import structlog

log = structlog.get_logger(__name__)

TOKEN_PATH = "/api/auth/token"  # noqa: S105 - a path
DEADLINE_S = 3.0
# A token is renewed in the background once this share of its life is over, and not used for its last seconds.
RENEW_AT = 0.8
LAST_SECONDS_S = 5.0
RETRY_S = 1.0


class TokenSource:
    """Callable: a valid token, or None when auth gives none in the time that its caller has (asked again after `RETRY_S`).
    Safe for threads. A renewal is shared by all callers: it has a thread and a deadline of its own.

    `call` posts a JSON body to a path of auth and returns `(status, parsed answer)`; it may raise.
    """

    def __init__(
        self,
        client_id: str,
        client_secret: str | None,
        call: Callable[[str, dict[str, str]], tuple[int, Any]],
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._body = {
            "grant_type": "client_credentials",
            "client_id": client_id,
            "client_secret": client_secret or "",
        }
        self._usable = bool(client_secret)
        self._call = call
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._renewal: threading.Thread | None = None
        self._token: str | None = None
        self._renew_at = 0.0
        self._expires_at = 0.0
        self._retry_at = 0.0

    def __call__(self, within_s: float = DEADLINE_S) -> str | None:
        if not self._usable:
            return None
        token, now = self._token, self._monotonic()
        if token is not None and now < self._expires_at:
            if now >= self._renew_at:
                self._start()
            return token
        renewal = self._start()
        if renewal is not None:
            renewal.join(max(0.0, within_s))
        return self._token if self._monotonic() < self._expires_at else None

    def _start(self) -> threading.Thread | None:
        """The renewal that is under way, or that begins now; None while it is too early for another."""
        with self._lock:
            if self._renewal is not None and self._renewal.is_alive():
                return self._renewal
            if self._monotonic() < max(self._retry_at, self._renew_at):
                return None
            self._renewal = threading.Thread(target=self._renew, name="token-renewal", daemon=True)
            self._renewal.start()
            return self._renewal

    def _renew(self) -> None:
        try:
            now = self._monotonic()
            self._retry_at = now + RETRY_S
            status, answer = self._call(TOKEN_PATH, self._body)
            if status != 200:
                raise ValueError(f"auth answered {status}")
            life_s = float(answer["expires_in"])
            token = str(answer["access_token"])
            self._renew_at = now + life_s * RENEW_AT
            self._expires_at = now + life_s - LAST_SECONDS_S
            self._token = token
            log.debug("service token renewed", life_s=life_s)
        except Exception as error:
            log.warning("service token not renewed", error=type(error).__name__, reason=str(error)[:200])
