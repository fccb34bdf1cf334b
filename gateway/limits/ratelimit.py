"""Rate limits and quotas by who asks: the subject of a verified token. What anonymous callers may ask, the edge limits by source.

A subject's own tokens and those made from API keys count apart, and have policies of their own. Services are exempt.
Ref: draft-ietf-httpapi-ratelimit-headers-10 (the fields are Lists of Strings with parameters, RFC 9651).
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from limits import RateLimitItem, parse_many
from redis import Redis

from discovery.clock import SYSTEM_CLOCK, Clock
from gateway.errors import LimitExceeded
from gateway.limits.counts import Count, Counts
from gateway.model import Headers, Incoming
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


class _Subject:
    """Who asks, with a count for each of his policies."""

    __slots__ = ("counts", "tier")

    def __init__(self, tier: _Tier, counts: tuple[Count, ...]) -> None:
        self.tier = tier
        self.counts = counts


class _Tier:
    """Policies that hold together, and what of their headers never changes."""

    def __init__(self, name: str, policies: Sequence[Policy]) -> None:
        self.name = name
        self.policies = tuple(policies)
        self.names = tuple(f'"{policy.name}";r=' for policy in policies)
        parts = (f'"{each.name}";q={each.item.amount};w={each.item.get_expiry()}' for each in policies)
        self.header = ("RateLimit-Policy", ", ".join(parts))

    def subject(self, subject: str) -> _Subject:
        digest = hashlib.sha256(f"{self.name}\0{subject}".encode(errors="surrogatepass"))
        phase = int.from_bytes(digest.digest()[:4], "big") / 2**32
        name = digest.hexdigest()[:32]
        return _Subject(self, tuple(Count(each.item, f"{each.name}:{name}", phase) for each in self.policies))


class Limits:
    """Counts each request against its sender's policies. Thread-safe; `start` in the worker shares counts through Redis."""

    def __init__(
        self,
        settings: LimitSettings,
        redis: Redis | None,
        *,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.counts = Counts(redis, now=clock.time, monotonic=clock.monotonic)
        self._now = clock.time
        # Hears the name of each policy that a request was refused for.
        self.refused: Callable[[str], object] = lambda policy: None
        self._own = _Tier("subject", settings.subject)
        self._key = _Tier("key", settings.key)
        self._lock = threading.Lock()
        self._subjects: dict[tuple[str, bool], _Subject] = {}

    def start(self) -> None:
        self.counts.start()

    def stop(self) -> None:
        self.counts.stop()

    def check(self, incoming: Incoming) -> Headers:
        """Count the request. Answers the headers that tell its sender where he stands: none for who is not limited.

        Raises LimitExceeded; what was refused does not count.
        """
        identity = incoming.identify()
        if identity is None or EXEMPT_SCOPE in identity.scopes:
            return []
        subject = self._subject(identity)
        if not subject.counts:
            return []
        now = self._now()
        admitted, left = self.counts.admit(subject.counts, now)
        resets = [math.ceil(count.left_s(now)) for count in subject.counts]
        parts = zip(subject.tier.names, left, resets, strict=True)
        fields = ", ".join([f"{name}{max(0, rest - admitted)};t={reset}" for name, rest, reset in parts])
        headers: Headers = [subject.tier.header, ("RateLimit", fields)]
        if admitted:
            return headers
        spent = [number for number, rest in enumerate(left) if rest <= 0]
        for number in spent:
            self.refused(subject.tier.policies[number].name)
        raise LimitExceeded(
            incoming.service, headers, retry_after_s=float(max(resets[number] for number in spent))
        )

    def _subject(self, identity: Identity) -> _Subject:
        name = (identity.subject, identity.by_key)
        known = self._subjects.get(name)
        if known is None:
            tier = self._key if identity.by_key else self._own
            with self._lock:
                known = self._subjects.setdefault(name, tier.subject(identity.subject))
                while len(self._subjects) > MAX_SUBJECTS:
                    del self._subjects[next(iter(self._subjects))]
        return known
