"""The public keys of auth: fetched, kept, renewed in the background, never thrown away because auth is down."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import jwt
import structlog

log = structlog.get_logger(__name__)

# How old the set may get before it is fetched again: a key taken out of service is refused after that time.
REFRESH_S = 60.0
# Least time between two fetches, so that tokens with made-up key ids cost auth nothing.
MIN_INTERVAL_S = 5.0
MAX_KEYS = 32
# How long a fetch is waited for, from its beginning, by all whose key is not known: one that hangs must not hold every
# thread of a service, nor may made-up key ids. The first may have to find auth yet.
PATIENCE_S = 0.3
FIRST_PATIENCE_S = 2.0

Fetch = Callable[[], dict[str, Any]]


class KeysUnavailable(Exception):
    """No key set has ever been fetched, and it cannot be now."""


class KeySet:
    """RS256 keys by their id. `fetch` returns a JWKS document (a dict with `keys`) or raises. Safe for threads.

    An unknown id makes it fetch, at most every `min_interval_s`; so does age. A fetch is shared by all callers: it has a thread of its
    own, one at a time, and no caller's deadline. One that fails, or brings no usable key, leaves the last good set.
    """

    def __init__(
        self,
        fetch: Fetch,
        *,
        refresh_s: float = REFRESH_S,
        min_interval_s: float = MIN_INTERVAL_S,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fetch = fetch
        self._refresh_s = refresh_s
        self._min_interval_s = min_interval_s
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._keys: dict[str, Any] = {}
        self._raw: dict[str, Any] = {}
        self._fetched_at = float("-inf")
        self._tried_at = float("-inf")
        self._refreshing: threading.Thread | None = None
        self._patient_until = 0.0
        self._patience_s = FIRST_PATIENCE_S
        self.generation = 0

    @property
    def stale(self) -> bool:
        """Whether it is time to look for new keys."""
        now = self._monotonic()
        return now - self._fetched_at > self._refresh_s and now - self._tried_at >= self._min_interval_s

    def get(self, kid: str, within_s: float = FIRST_PATIENCE_S) -> Any:
        """The public key of an id, or None when auth does not know it either, as far as is known `within_s` later.

        Raises KeysUnavailable.
        """
        key = self._keys.get(kid)
        if key is not None:
            self.refresh_soon()
            return key
        refreshing = self._refresh()
        if refreshing is not None:
            refreshing.join(max(0.0, min(within_s, self._patient_until - time.monotonic())))
        if not self._keys:
            raise KeysUnavailable
        return self._keys.get(kid)

    def prefetch(self, within_s: float) -> bool:
        """Fetch until there are keys, for `within_s` at most. Returns whether there are."""
        until = time.monotonic() + within_s
        while not self._keys and (left := until - time.monotonic()) > 0:
            refreshing = self._refresh()
            if refreshing is not None:
                refreshing.join(left)
            else:
                time.sleep(min(left, 0.05))
        return bool(self._keys)

    def refresh_soon(self) -> None:
        """Fetch in the background if it is time to."""
        if self.stale:
            self._refresh()

    def _refresh(self) -> threading.Thread | None:
        """The fetch that is under way, or that begins now; None while it is too early for another."""
        with self._lock:
            if self._refreshing is not None and self._refreshing.is_alive():
                return self._refreshing
            # No keys yet: ask again sooner, since nothing can be served without them.
            interval = self._min_interval_s if self._keys else self._min_interval_s / 10
            if self._monotonic() - self._tried_at < interval:
                return None
            self._tried_at = self._monotonic()
            self._patient_until = time.monotonic() + self._patience_s
            self._refreshing = threading.Thread(target=self._fetch_now, name="jwks-refresh", daemon=True)
            self._refreshing.start()
            return self._refreshing

    def _fetch_now(self) -> None:
        """Errors are logged, and the old set stays."""
        try:
            self._take(self._fetch())
            self._fetched_at = self._monotonic()
        except Exception as error:
            log.warning("key set not fetched", error=type(error).__name__, reason=str(error)[:200])
        finally:
            self._patience_s = PATIENCE_S

    def _take(self, document: dict[str, Any]) -> None:
        raw = {k["kid"]: k for k in document["keys"][:MAX_KEYS] if isinstance(k.get("kid"), str)}
        if raw == self._raw:
            return
        keys: dict[str, Any] = {}
        for kid, described in raw.items():
            try:
                keys[kid] = jwt.PyJWK({**described, "kty": "RSA"}, algorithm="RS256").key
            except (jwt.PyJWTError, ValueError) as error:
                log.warning("key not usable", kid=kid, reason=str(error)[:200])
        if not keys:
            raise ValueError("no RSA key in the key set")
        self._raw, self._keys = raw, keys
        self.generation += 1
        log.info("key set changed", keys=sorted(keys))
