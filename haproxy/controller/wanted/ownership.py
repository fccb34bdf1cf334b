"""Which service owns which path prefix, and the memory of it.

The first holder of a prefix keeps it, also while it is away and while the controller is down; a claim *inside* another's
prefix is refused like the prefix itself, unless the other is a gateway, and so is one *around* it, unless a gateway claims. Pins of the operator (KV `edge/policy/owners`) outrank both.
See docs/adr/0005-path-ownership.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from discovery.admission.rules import GATEWAY
from discovery.contract import check_name, check_prefix, parse_route, route_meta
from discovery.errors import ContractError
from discovery.model import Route
from haproxy.controller.config.files import write_atomically

log = structlog.get_logger(__name__)

# What instances keep for the inside, whatever a service claims.
NEVER_ROUTED = ("/metrics/", "/internal/")
MAX_PINS = 10_000


@dataclass(frozen=True, slots=True)
class Claim:
    """What one service asks for. `order` is the lowest create index of its instances: lower was there first."""

    service: str
    paths: tuple[str, ...]
    order: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """A prefix that was not given, and why."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Grants:
    """Which service got which prefix. `refused` and `granted` go by service."""

    granted: Mapping[str, tuple[str, ...]]
    refused: Mapping[str, tuple[Refusal, ...]]


def resolve(claims: Iterable[Claim], held: Mapping[str, str], pins: Mapping[str, str]) -> Grants:
    """Give every claimed prefix to one service. `held`: prefix → service that had it before, for services that
    claim it still or are away; `pins`: prefix → service, by the operator."""
    owners = {prefix: service for prefix, service in held.items() if _pin_allows(prefix, service, pins)}
    owners |= pins
    inside: dict[str, set[str]] = {}
    for path, service in owners.items():
        _note_above(inside, path, service)
    granted: dict[str, list[str]] = {}
    refused: dict[str, list[Refusal]] = {}
    for claim in sorted(claims, key=lambda each: (each.order, each.service)):
        for path in claim.paths:
            reason = _refusal(path, claim.service, owners, pins) or _around(
                path, claim.service, owners, inside
            )
            if reason is None:
                if path not in owners:
                    _note_above(inside, path, claim.service)
                owners[path] = claim.service
                granted.setdefault(claim.service, []).append(path)
            else:
                refused.setdefault(claim.service, []).append(Refusal(path, reason))
    return Grants(
        {service: tuple(paths) for service, paths in granted.items()},
        {service: tuple(refusals) for service, refusals in refused.items()},
    )


def _pin_allows(path: str, service: str, pins: Mapping[str, str]) -> bool:
    """Whether what a service holds stands beside the pins: the nearest pin on it or above it decides."""
    for prefix in _self_and_above(path):
        if prefix in pins:
            return pins[prefix] == service or (prefix != path and pins[prefix].startswith(GATEWAY))
    return True


def _refusal(path: str, service: str, owners: Mapping[str, str], pins: Mapping[str, str]) -> str | None:
    if f"{path}/".startswith(NEVER_ROUTED):
        return "never routed from outside"
    owner = owners.get(path)
    if owner is not None:
        if owner == service:
            return None
        return (
            f"pinned to {owner} by the operator" if path in pins else f"held by {owner}, which had it first"
        )
    for above in _self_and_above(path):
        owner = owners.get(above)
        if owner is not None and owner != service and not owner.startswith(GATEWAY):
            return f"inside {above}, which {owner} holds; an operator can pin it in edge/policy/owners"
    return None


def _around(path: str, service: str, owners: Mapping[str, str], inside: Mapping[str, set[str]]) -> str | None:
    """A prefix around others' takes nothing of theirs, but all that is still free: `/api` would keep every new service out."""
    others = inside.get(path, set()) - {service}
    if not others or owners.get(path) == service or service.startswith(GATEWAY):
        return None
    return f"around what {min(others)} holds; an operator can pin it in edge/policy/owners"


def _note_above(inside: dict[str, set[str]], path: str, service: str) -> None:
    """Note at each prefix above `path` that `service` has something inside it."""
    for above in _self_and_above(path.rpartition("/")[0]):
        inside.setdefault(above, set()).add(service)


def _self_and_above(path: str) -> Iterator[str]:
    while path:
        yield path
        path = path.rpartition("/")[0]


def parse_pins(data: bytes | None, key: str = "edge/policy/owners") -> dict[str, str]:
    """The value of a key: a JSON object, prefix → service. Raises ContractError; a missing key is no pins."""
    if data is None:
        return {}
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ContractError(key, data[:80], f"not JSON: {error}") from None
    if not isinstance(document, dict) or len(document) > MAX_PINS:
        raise ContractError(key, data[:80], f"must be an object of at most {MAX_PINS} pins")
    pins = {}
    for prefix, service in document.items():
        if not isinstance(service, str):
            raise ContractError(key, service, "must be the name of a service")
        pins[check_prefix(prefix)] = check_name(service)
    return pins


@dataclass(frozen=True, slots=True)
class Agreed:
    """One of the two documents in Consul's KV, prefix → service, and the index of its last change; None and 0 where there is none."""

    owners: Mapping[str, str] | None
    modified: int


@dataclass(frozen=True, slots=True)
class Memory:
    """What a service was given last. `gone_since` (Unix seconds) is None while it is there."""

    route: Route
    gone_since: float | None = None


class OwnerBook:
    """The memory of grants and the last good pins, with a copy in one file. Not thread-safe.

    Which prefix is whose, all edges agree on: what `adopt` brings is right, `proposal` is what this edge adds.
    The rest (routes, and since when a service is gone) is each edge's own.
    """

    def __init__(self, path: Path, memory_s: float) -> None:
        self._path = path
        self._memory_s = memory_s
        self._stale = False
        self.memories: dict[str, Memory] = {}
        self.pins: Mapping[str, str] = {}
        # Whether what is remembered has been agreed on with the other edges once.
        self._joined = False
        self._agreed: Agreed | None = None
        self._proposed: Mapping[str, str] | None = None

    def load(self) -> None:
        """Read the file; one that is missing or broken counts as empty, and is logged."""
        try:
            document = json.loads(self._path.read_bytes())
            memories = {str(name): _memory(str(name), entry) for name, entry in document["services"].items()}
            pins = parse_pins(json.dumps(document["pins"]).encode())
            joined = document.get("agreed") is True
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ContractError) as error:
            log.error(
                "memory of owners is broken, starting without it", path=str(self._path), error=str(error)
            )
            return
        self.memories, self.pins, self._joined = memories, pins, joined

    def save(self) -> None:
        """Write what has changed since the last call; a failure is logged, and tried again at the next call."""
        if not self._stale:
            return
        document = {
            "services": {
                name: {"meta": route_meta(memory.route), "gone_since": memory.gone_since}
                for name, memory in sorted(self.memories.items())
            },
            "pins": self.pins,
            "agreed": self._joined,
        }
        try:
            write_atomically(self._path, json.dumps(document, indent=1).encode())
        except OSError as error:
            log.error("memory of owners not written", path=str(self._path), error=str(error))
            return
        self._stale = False

    def set_pins(self, pins: Mapping[str, str]) -> None:
        self._stale |= pins != self.pins
        self.pins = pins

    def settle(
        self, claims: Mapping[str, Claim], routes: Mapping[str, Route], away: frozenset[str], now: float
    ) -> Grants:
        """Give out the prefixes and remember it.

        `claims` and `routes` are of the services that ask; `away` names those that are there but cannot ask
        validly: like those that have gone, they keep what they held for a time. `now` in Unix seconds.
        """
        absent = {
            name: Memory(memory.route, memory.gone_since or now)
            for name, memory in self.memories.items()
            if name not in claims and self._is_remembered(name, memory, away, now)
        }
        held = {path: name for name, memory in absent.items() for path in memory.route.paths}
        for name, claim in claims.items():
            memory = self.memories.get(name)
            if memory is not None:
                held |= {path: name for path in memory.route.paths if path in claim.paths}
        kept = [Claim(name, memory.route.paths, 0) for name, memory in absent.items()]
        grants = resolve([*claims.values(), *kept], held, self.pins)
        after = {
            name: _with_paths(absent.get(name) or Memory(routes[name]), paths)
            for name, paths in grants.granted.items()
        }
        self._stale |= after != self.memories
        self.memories = after
        return grants

    def _is_remembered(self, name: str, memory: Memory, away: frozenset[str], now: float) -> bool:
        if name in away or memory.gone_since is None:
            return True
        return now - memory.gone_since < self._memory_s

    def owners(self) -> dict[str, str]:
        """Prefix → service."""
        return {path: name for name, memory in self.memories.items() for path in memory.route.paths}

    def adopt(self, agreed: Agreed) -> None:
        """Take in what is agreed; `settle` is due afterwards.

        An edge that has not agreed with others yet, after its start with a file of former times, adds what it remembers
        where no other edge has given it; from then on the document is right.
        """
        proposed, self._proposed, self._agreed = self._proposed, None, agreed
        joined, self._joined, self._stale = self._joined, agreed.owners is not None, True
        # Our own proposal comes back: what has changed here since is newer.
        if agreed.owners is None or agreed.owners == proposed:
            return
        owners = agreed.owners if joined else {**self.owners(), **agreed.owners}
        paths: dict[str, list[str]] = {}
        for path, name in owners.items():
            paths.setdefault(name, []).append(path)
        self.memories = {
            name: _with_paths(self.memories.get(name) or Memory(Route(name, ())), held)
            for name, held in paths.items()
        }

    def proposal(self) -> Agreed | None:
        """What should be agreed, and the index that it builds on; None where there is nothing new, or the agreement is not known.

        One at a time: until an answer to the last one has come (it, or what another edge was first with), the next one waits.
        With two on their way the first would come back as if it were another edge's, and undo what is newer here.
        """
        owners = self.owners()
        if self._agreed is None or self._proposed is not None or owners == (self._agreed.owners or {}):
            return None
        self._proposed = owners
        return Agreed(owners, self._agreed.modified)


def _with_paths(memory: Memory, paths: Iterable[str]) -> Memory:
    """Sorted: in another order it would be another route."""
    return Memory(replace(memory.route, paths=tuple(sorted(paths))), memory.gone_since)


def _memory(name: str, entry: Mapping[str, object]) -> Memory:
    meta, gone = entry["meta"], entry["gone_since"]
    if not isinstance(meta, dict) or not (gone is None or isinstance(gone, (int, float))):
        raise ContractError("owners", name, "not an entry")
    route = parse_route(name, {str(key): str(value) for key, value in meta.items()})
    if route is None:
        raise ContractError("owners", name, "an entry without a path")
    return Memory(route, gone)
