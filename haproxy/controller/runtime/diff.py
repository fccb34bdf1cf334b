"""The difference between desired and observed, as commands. Pure: no I/O, no clock.

What HAProxy 2.6 needs (measured): a server added at run time is up before its first check once its health and itself are
enabled; `del server` wants maintenance, no session and no idle connection; idle connections go when the address changes, but
those in use go on to the old address for as long as the load lasts; whether a server is a backup cannot be changed. So an instance
that has moved, or is a backup now or is none any more, gets a server beside its old one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from haproxy.controller.config.model import Backend, Server
from haproxy.controller.config.template import Params, address_of
from haproxy.controller.runtime.observed import ObservedServer
from haproxy.controller.runtime.socket import Command, command

Kind = Literal["add", "ready", "weight", "drain", "remove"]
# Between the name of an instance and what distinguishes its new server from its old one; no name of an instance has it.
MOVED = ":"


@dataclass(frozen=True, slots=True)
class Step:
    """Commands that belong together: when one is refused, the rest of the step is not sent. `reason` is for the log."""

    kind: Kind
    backend: str
    server: str
    reason: str
    commands: tuple[Command, ...]


def plan_backend(
    backend: Backend, observed: Mapping[str, ObservedServer], overdue: frozenset[str], params: Params
) -> list[Step]:
    """What brings one backend in step, in order: what adds capacity comes before what takes it away.

    `overdue` names servers that have drained for as long as they may.
    """
    backend = _placed(backend, observed)
    steps: list[Step] = []
    for server in backend.servers:
        seen = observed.get(server.name)
        if seen is None:
            steps.append(_add(backend, server, params))
        else:
            steps.extend(_correct(backend.name, server, seen))
    desired = {server.name for server in backend.servers}
    steps += [
        _leave(backend.name, seen, name in overdue)
        for name, seen in sorted(observed.items())
        if name not in desired
    ]
    return [step for step in steps if step.commands]


def draining(backend: Backend, observed: Mapping[str, ObservedServer]) -> frozenset[str]:
    """Names of servers that are on their way out."""
    return frozenset(observed) - {server.name for server in _placed(backend, observed).servers}


def _placed(backend: Backend, observed: Mapping[str, ObservedServer]) -> Backend:
    """The backend with each server under the name that HAProxy has for it, or is to get."""
    servers = tuple(replace(server, name=_name_at(server, observed)) for server in backend.servers)
    return replace(backend, servers=servers)


def _name_at(server: Server, observed: Mapping[str, ObservedServer]) -> str:
    place = f"{address_of(server)} {server.backup}"
    elsewhere = f"{server.name}{MOVED}{hashlib.sha256(place.encode()).hexdigest()[:8]}"
    seen = observed.get(server.name)
    changed = seen is not None and (
        (seen.address, seen.port, seen.backup) != (server.address, server.port, server.backup)
    )
    return elsewhere if changed or elsewhere in observed else server.name


def _add(backend: Backend, server: Server, params: Params) -> Step:
    target = f"{backend.name}/{server.name}"
    words = params(backend.route, server).split()
    return Step(
        "add",
        backend.name,
        server.name,
        f"new instance at {server.address}:{server.port}",
        (
            command("add", "server", target, address_of(server), *words),
            command("enable", "health", target),
            command("enable", "server", target),
        ),
    )


def _correct(backend: str, server: Server, seen: ObservedServer) -> list[Step]:
    target = f"{backend}/{server.name}"
    steps = []
    if seen.weight != server.weight:
        reason = f"weight {seen.weight} → {server.weight}"
        line = command("set", "server", target, "weight", server.weight)
        steps.append(Step("weight", backend, server.name, reason, (line,)))
    lines = [] if seen.checked else [command("enable", "health", target)]
    if seen.mode != "ready":
        lines.append(command("set", "server", target, "state", "ready"))
    # One that HAProxy has seen down stays so until its own check has found it: Consul may have asked another service's
    # instance, which has got the address meanwhile.
    if lines:
        reason = f"in rotation, but {seen.mode}" if seen.mode != "ready" else "its checks are off"
        steps.append(Step("ready", backend, server.name, reason, tuple(lines)))
    return steps


def _leave(backend: str, seen: ObservedServer, overdue: bool) -> Step:
    reason = "not in rotation any more"
    target = f"{backend}/{seen.name}"
    # An instance that shuts down answers "not ready" before its last request has ended, and a server that is
    # marked down loses its requests (Reaper): from here on only the instance itself decides.
    quiet = [command("disable", "health", target)] if seen.checked else []
    if seen.mode == "ready":
        drain = command("set", "server", target, "state", "drain")
        return Step("drain", backend, seen.name, reason, (drain, *quiet))
    if seen.sessions and not overdue:
        return Step("drain", backend, seen.name, f"{seen.sessions} requests under way", tuple(quiet))
    lines = [command("set", "server", target, "state", "maint")]
    if seen.sessions:
        lines.append(command("shutdown", "sessions", "server", target))
        reason = f"{reason}; {seen.sessions} requests under way for too long"
    # Another address closes idle connections, which would forbid the removal for minutes; nothing is sent to it.
    elsewhere = 1 if seen.port != 1 else 2
    lines.append(command("set", "server", target, "addr", seen.address, "port", elsewhere))
    lines.append(command("del", "server", target))
    return Step("remove", backend, seen.name, reason, tuple(lines))
