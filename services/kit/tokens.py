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
    """Callable: a valid token, or None when auth gives none (asked again after `RETRY_S`). Safe for threads.

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
        self._token: str | None = None
        self._renew_at = 0.0
        self._expires_at = 0.0
        self._retry_at = 0.0

    def __call__(self) -> str | None:
        if not self._usable:
            return None
        now = self._monotonic()
        token, expires_at = self._token, self._expires_at
        if token is not None and now < expires_at:
            if now >= self._renew_at and now >= self._retry_at and not self._lock.locked():
                threading.Thread(target=self._renew, name="token-renewal", daemon=True).start()
            return token
        self._renew(wait=True)
        return self._token if self._monotonic() < self._expires_at else None

    def _renew(self, wait: bool = False) -> None:
        if not self._lock.acquire(blocking=wait, timeout=DEADLINE_S * 2 if wait else -1):
            return
        try:
            now = self._monotonic()
            if now < self._retry_at or (self._token is not None and now < self._renew_at):
                return
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
        finally:
            self._lock.release()
