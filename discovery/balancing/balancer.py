"""Pickers over a snapshot: which instance to call. No I/O.

Round robin is nginx's smooth weighted kind, least outstanding compares outstanding/weight, source and uri are weighted
rendezvous hashes: when an instance comes or goes, only its own share of the keys moves.
"""

from __future__ import annotations

import functools
import hashlib
import math
import threading
from collections.abc import Callable, Collection, Sequence
from typing import cast, get_args

from discovery.balancing.ejection import Identity, identity
from discovery.clock import SYSTEM_CLOCK, Clock
from discovery.contract import WEIGHT
from discovery.errors import ContractError
from discovery.model import DEFAULT_WEIGHT, Balance, Instance

_BALANCES = frozenset(get_args(Balance))


def weight_of(instance: Instance) -> int:
    """The instance's `edge-weight`, or what Consul says; a bad value counts as the default (the edge reports it)."""
    text = instance.meta.get(WEIGHT.name)
    return instance.weight if text is None else _weight(text)


@functools.lru_cache(maxsize=512)
def _weight(text: str) -> int:
    try:
        return int(WEIGHT.read(WEIGHT.name, text))
    except ContractError:
        return DEFAULT_WEIGHT


def balance_of(instance: Instance) -> Balance:
    """How the instance's service wants to be balanced; a bad value counts as the default."""
    value = instance.meta.get("edge-balance", "roundrobin")
    return cast(Balance, value) if value in _BALANCES else "roundrobin"


def is_backup(instance: Instance) -> bool:
    """Whether it gets calls only when the others are gone."""
    return instance.meta.get("edge-backup") == "true"


def usable(instances: Sequence[Instance]) -> list[Instance]:
    """Those that Consul lets take traffic: not critical, not in maintenance, not in warning where `edge-warning` is `skip`;
    and programs, not parts of a mesh."""
    return [
        instance
        for instance in instances
        if not instance.kind
        and instance.status != "critical"
        and not instance.maintenance
        and not (instance.status == "warning" and instance.meta.get("edge-warning") == "skip")
    ]


def some_came(before: Sequence[Instance], after: Sequence[Instance]) -> bool:
    """Whether an instance may be called now that was not there before, or could not be called."""
    known = {(each.key, each.address, each.port) for each in usable(before)}
    return any((each.key, each.address, each.port) not in known for each in usable(after))


def candidates(
    instances: Sequence[Instance], ejected: Collection[Identity], tried: Collection[Identity]
) -> list[Instance]:
    """Of usable instances, the best group that is not empty.

    In this order: neither tried nor ejected (backups only when no other is left), ejected but not tried, and last
    those already tried in this call. So everything ejected means all, rather than none.
    """
    groups: tuple[list[Instance], ...] = ([], [], [], [])
    for instance in instances:
        key = identity(instance)
        if key in tried:
            groups[3].append(instance)
        elif key in ejected:
            groups[2].append(instance)
        else:
            groups[1 if is_backup(instance) else 0].append(instance)
    return next((group for group in groups if group), [])


class Balancer:
    """Picks for one service, and counts what is outstanding. Thread-safe; holds its lock for arithmetic only."""

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._current: dict[Identity, int] = {}
        self._outstanding: dict[Identity, int] = {}
        self._pickers: dict[Balance, Callable[[Sequence[Instance], str], Instance]] = {
            "roundrobin": lambda group, key: self._round_robin(group),
            "leastconn": lambda group, key: self._least_outstanding(group),
            "random": lambda group, key: self._random(group),
            "first": lambda group, key: min(group, key=lambda instance: instance.key),
            "source": rendezvous,
            "uri": rendezvous,
        }

    def pick(self, group: Sequence[Instance], balance: Balance, key: str | None = None) -> Instance:
        """One of `group` (not empty). `source` and `uri` go by `key`, and by round robin where there is none."""
        if len(group) == 1:
            return group[0]
        if balance in ("source", "uri") and key is None:
            balance = "roundrobin"
        with self._lock:
            return self._pickers[balance](group, key or "")

    def began(self, instance: Instance) -> None:
        """An attempt on the instance begins."""
        key = identity(instance)
        with self._lock:
            self._outstanding[key] = self._outstanding.get(key, 0) + 1

    def ended(self, instance: Instance) -> None:
        """That attempt is over, its body included."""
        key = identity(instance)
        with self._lock:
            left = self._outstanding.get(key, 0) - 1
            if left > 0:
                self._outstanding[key] = left
            else:
                self._outstanding.pop(key, None)

    def _round_robin(self, group: Sequence[Instance]) -> Instance:
        total = 0
        best, best_key, best_value = group[0], identity(group[0]), -math.inf
        for instance in group:
            key, weight = identity(instance), weight_of(instance)
            total += weight
            value = self._current.get(key, 0) + weight
            self._current[key] = value
            if value > best_value:
                best, best_key, best_value = instance, key, value
        self._current[best_key] -= total
        if len(self._current) > 2 * len(group) + 16:  # mostly of instances that are gone
            keep = {identity(instance) for instance in group}
            self._current = {key: value for key, value in self._current.items() if key in keep}
        return best

    def _least_outstanding(self, group: Sequence[Instance]) -> Instance:
        loads = [self._outstanding.get(identity(instance), 0) / weight_of(instance) for instance in group]
        least = min(loads)
        # Round robin among equals, by weight: an idle service must not send everything to its first instance.
        return self._round_robin(
            [instance for instance, load in zip(group, loads, strict=True) if load == least]
        )

    def _random(self, group: Sequence[Instance]) -> Instance:
        point = self._clock.random() * sum(map(weight_of, group))
        for instance in group:
            point -= weight_of(instance)
            if point < 0:
                return instance
        return group[-1]


def rendezvous(group: Sequence[Instance], key: str) -> Instance:
    """The instance with the highest score for the key. Ref: Wang & Ravishankar; weights by -w/ln(h)."""
    return max(group, key=lambda instance: _score(instance, key))


def _score(instance: Instance, key: str) -> float:
    text = f"{instance.node}/{instance.id}|{key}".encode(errors="surrogatepass")
    number = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
    return -weight_of(instance) / math.log((number + 1) / (2.0**64 + 1))
