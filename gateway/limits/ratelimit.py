"""Rate limits and quotas by subject of a verified token. Callers without a token the edge limits by their address.

A subject's own tokens and those made from API keys count apart, and have policies of their own. Services are exempt.
Ref: draft-ietf-httpapi-ratelimit-headers-10 (the fields are Lists of Strings with parameters, RFC 9651).
"""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cachetools import FIFOCache
from limits import RateLimitItem, parse_many

from gateway.errors import LimitExceeded
from gateway.limits.counts import Count, Counts
from gateway.model import Headers, Incoming
from gateway.redis_link import RedisLink
from services.kit.auth.verifier import Identity

OFF = "off"
EXEMPT_SCOPE = "service"
# Subjects that are remembered; the one that came first goes first, and its counts are learned again from Redis.
MAX_SUBJECTS = 20_000
MAX_POLICIES = 4


@dataclass(frozen=True, slots=True)
class Policy:
    """So many requests a window. `name` is what the headers call it: `rate-minute`, `quota-day`, `rate-10-second`."""

    name: str
    item: RateLimitItem


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """The policies of a subject's own tokens, and of those made from API keys. All of a tuple hold at once."""

    subject: tuple[Policy, ...] = ()
    key: tuple[Policy, ...] = ()


def policies(kind: str, text: str) -> tuple[Policy, ...]:
    """Policies from a setting: `600/minute`, `10/second;600/minute`, or `off`. Raises ValueError.

    `kind` is `rate` or `quota`. The notation is that of the library `limits`.
    """
    if text.strip().lower() == OFF:
        return ()
    found = []
    for item in parse_many(text):
        if not 0 < item.amount < 10**15:
            raise ValueError(f"{text!r}: a limit is at least 1, and no number of more than 15 digits")
        often = f"{item.multiples}-" if item.multiples > 1 else ""
        found.append(Policy(f"{kind}-{often}{item.GRANULARITY.name}", item))
    if len({each.name for each in found}) < len(found) or len(found) > MAX_POLICIES:
        raise ValueError(f"{text!r}: at most {MAX_POLICIES} limits, each with a window of its own")
    return tuple(found)


class _Tier:
    """Policies that hold together, and what of their headers never changes."""

    def __init__(self, name: str, policies: Sequence[Policy]) -> None:
        self.name = name
        self.policies = tuple(policies)
        parts = (f'"{each.name}";q={each.item.amount};w={each.item.get_expiry()}' for each in policies)
        self.header = ("RateLimit-Policy", ", ".join(parts))

    def counts(self, subject: str) -> tuple[Count, ...]:
        digest = hashlib.sha256(f"{self.name}\0{subject}".encode(errors="surrogatepass"))
        phase = int.from_bytes(digest.digest()[:4], "big") / 2**32
        name = digest.hexdigest()[:32]
        return tuple(Count(each.item, f"{each.name}:{name}", phase) for each in self.policies)


class Limits:
    """Counts each request against its subject's policies. Thread-safe; `start` in the worker shares counts through Redis.

    `refused` hears the name of each policy that a request was refused for.
    """

    def __init__(
        self,
        settings: LimitSettings,
        link: RedisLink,
        *,
        refused: Callable[[str], object] = lambda policy: None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.shared = Counts(link, now)
        self._now = now
        self._refused = refused
        self._own = _Tier("subject", settings.subject)
        self._key = _Tier("key", settings.key)
        self._lock = threading.Lock()
        self._counts: FIFOCache[tuple[str, bool], tuple[Count, ...]] = FIFOCache(MAX_SUBJECTS)

    def check(self, incoming: Incoming) -> Headers:
        """Count the request. Returns the headers that say what is left: none for what is not limited.

        Raises LimitExceeded; what was refused does not count.
        """
        identity = incoming.identify()
        if identity is None or EXEMPT_SCOPE in identity.scopes:
            return []
        tier = self._key if identity.by_key else self._own
        if not tier.policies:
            return []
        counts, now = self.counts(identity), self._now()
        admitted, left = self.shared.admit(counts, now)
        rows = [
            (policy.name, rest, math.ceil(count.left_s(now)))
            for policy, count, rest in zip(tier.policies, counts, left, strict=True)
        ]
        fields = ", ".join([f'"{name}";r={max(0, rest - admitted)};t={reset}' for name, rest, reset in rows])
        headers: Headers = [tier.header, ("RateLimit", fields)]
        if admitted:
            return headers
        spent = [(name, reset) for name, rest, reset in rows if rest <= 0]
        for name, _ in spent:
            self._refused(name)
        raise LimitExceeded(incoming.service, headers, retry_after_s=float(max(reset for _, reset in spent)))

    def counts(self, identity: Identity) -> tuple[Count, ...]:
        """The subject's counts, one for each of its policies."""
        name = (identity.subject, identity.by_key)
        with self._lock:
            known = self._counts.get(name)
            if known is None:
                tier = self._key if identity.by_key else self._own
                known = self._counts[name] = tier.counts(identity.subject)
        return known

    @property
    def remembered(self) -> int:
        """How many subjects' counts are held."""
        return len(self._counts)
