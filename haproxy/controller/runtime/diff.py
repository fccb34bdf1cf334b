"""The difference between desired and observed, as commands. Pure: no I/O, no clock.

What HAProxy 2.6 needs (measured): a server added at run time is up before its first check once its health and itself are
enabled; `del server` wants maintenance, no session and no idle connection; idle connections go when the address changes, but
those in use go on to the old address for as long as the load lasts. So an instance that has moved gets a server beside its old one.
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
# Between the name of an instance and what distinguishes its new place from its old one; no name of an instance has it.
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

    `overdue` names servers that have drained for as long as they may. A server that must be replaced (its backup flag
    changed: 2.6 cannot change it) is drained and removed first, and only while another serves; the next plan adds it.
    """
    backend = _placed(backend, observed)
    desired = {server.name: server for server in backend.servers}
    steps: list[Step] = []
    for server in backend.servers:
        seen = observed.get(server.name)
        if seen is None:
            steps.append(_add(backend, server, params))
        elif seen.backup == server.backup:
            steps.extend(_correct(backend.name, server, seen))
    remake = _to_remake(desired, observed)
    for name, seen in sorted(observed.items()):
        if name not in desired:
            steps.append(_leave(backend.name, seen, "not in rotation any more", name in overdue))
        elif name == remake:
            steps.append(_leave(backend.name, seen, "replaced as " + _role(desired[name]), name in overdue))
        elif seen.backup != desired[name].backup:
            steps.extend(_correct(backend.name, desired[name], seen))
    return [step for step in steps if step.commands]


def draining(backend: Backend, observed: Mapping[str, ObservedServer]) -> frozenset[str]:
    """Names of servers that are on their way out, or wait for their turn to be replaced."""
    backend = _placed(backend, observed)
    desired = {server.name: server for server in backend.servers}
    return frozenset(
        name for name, seen in observed.items() if name not in desired or seen.backup != desired[name].backup
    )


def _placed(backend: Backend, observed: Mapping[str, ObservedServer]) -> Backend:
    """The backend with each server under the name that HAProxy has for it, or is to get."""
    servers = tuple(replace(server, name=_name_at(server, observed)) for server in backend.servers)
    return replace(backend, servers=servers)


def _name_at(server: Server, observed: Mapping[str, ObservedServer]) -> str:
    place = hashlib.sha256(address_of(server).encode()).hexdigest()[:8]
    elsewhere = f"{server.name}{MOVED}{place}"
    seen = observed.get(server.name)
    moved = seen is not None and (seen.address, seen.port) != (server.address, server.port)
    return elsewhere if moved or elsewhere in observed else server.name


def _to_remake(desired: Mapping[str, Server], observed: Mapping[str, ObservedServer]) -> str | None:
    """One server at a time whose backup flag differs, and only while another can serve in its place."""
    wrong = sorted(n for n, s in desired.items() if n in observed and observed[n].backup != s.backup)
    started = [name for name in wrong if observed[name].mode != "ready"]
    for name in started or wrong:
        others = (seen for other, seen in observed.items() if other != name and other in desired)
        if any(seen.serves for seen in others):
            return name
    return None


def _role(server: Server) -> str:
    return "a backup" if server.backup else "an active server"


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


def _leave(backend: str, seen: ObservedServer, reason: str, overdue: bool) -> Step:
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
