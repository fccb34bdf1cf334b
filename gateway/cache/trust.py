"""Whether a stored answer may be given out, and as what: every such decision is here. Pure, but for the memory of `Changes`.

    an answer of the cache     Redis names the version that its path has now (`is_current`), or a change would have been heard of
                               (`would_know`) and was not (`Changes`); then its age counts (`state_of`, `may_stand_in`)
    a whole of several parts   the same, with the changes of all its parts
    a service's last good one  `age_of_last_good`

Times are seconds, on whatever clock the caller has; ages are differences.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from gateway.cache.rules import Lifetime
from services.kit.auth.verifier import Identity
from services.kit.stale.stored_form import Change
from services.kit.stale.writer import GONE_MS

# How long what is held in this process is used without a word from Redis.
TRUST_S = 1.0
# A clock may be this much ahead of another's.
MAX_SKEW_S = 5.0
# How many changes are remembered, for answers that were asked for before them.
REMEMBERED = 4096
# Longer than a request and its place in the service's queue take: what was read before a removal is not given after it.
REMOVED_S = GONE_MS / 1000


def state_of(
    life: Lifetime, age_s: float, *, most_age_s: float = math.inf, stale: bool = True, resting: bool = False
) -> Literal["HIT", "STALE"] | None:
    """As what an answer of this age is given; None: not at all.

    The request wants none of `most_age_s` or older. `stale`: one that is stale will do, for a new one is asked for meanwhile.
    `resting`: asking has just failed, and is left for a moment.
    """
    if age_s >= most_age_s:
        return None
    if age_s < life.fresh_s:
        return "HIT"
    beyond_s = max(life.swr_s, life.sie_s) if resting else life.swr_s
    return "STALE" if stale and age_s < life.fresh_s + beyond_s else None


def may_stand_in(life: Lifetime, age_s: float) -> bool:
    """Whether an answer of this age is given in place of a failure."""
    return age_s < life.fresh_s + life.sie_s


def is_current(version: str, now: str) -> bool:
    """Whether what was stored under a version holds while its path has the version `now`. An empty one holds never."""
    return bool(version) and version == now


def would_know(checked: float, now: float, *, heard: float, since: float) -> bool:
    """Whether what was asked for at `checked` would be known here to hold no more.

    `heard` is until when all changes that Redis published are known here, `since` from when on; 0 while nothing is heard.
    """
    return now - checked < TRUST_S or (now - heard < TRUST_S and 0 < since <= checked)


def is_of_the_future(born: float, now: float) -> bool:
    """Whether an answer says that it was made later than any clock may be wrong, or at no time."""
    return not born <= now + MAX_SKEW_S


def age_of_last_good(
    head: Mapping[str, Any], identity: Identity | None, now: float, removed: float
) -> float | None:
    """The age of a service's last good answer with this head; None where it is not to be given.

    Not when it is too old, or of before its path was `removed` (0: never), or was given to a token of more scopes than `identity`
    has: what the caller may see may have become less since. Raises KeyError, TypeError, ValueError for an invalid head.
    """
    at, scopes = float(head["at"]), set(head["scopes"])
    if removed and at < removed + REMOVED_S:
        return None
    if is_of_the_future(at, now) or not now - at < float(head["stale_s"]) or head["status"] != 200:
        return None
    if scopes and (identity is None or not scopes <= identity.scopes):
        return None
    return max(0.0, now - at)


class Changes:
    """The latest changes of paths that are known here, in sequence. Not thread-safe."""

    def __init__(self) -> None:
        self.number = 0
        self._latest: deque[tuple[int, str, Change]] = deque(maxlen=REMEMBERED)

    def add(self, service: str, change: Change) -> None:
        self.number += 1
        self._latest.append((self.number, service, change))

    def touch(self, places: Sequence[tuple[str, str]], since: int) -> bool:
        """Whether one after the number `since` covers any of these (service, plain path), or may have done so."""
        if self.number - since > len(self._latest):
            return True
        for number, service, change in reversed(self._latest):
            if number <= since:
                return False
            if any(service == name and change.covers(path) for name, path in places):
                return True
        return False
