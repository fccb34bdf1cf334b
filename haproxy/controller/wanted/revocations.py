"""Tokens that end before they expire: of which subjects, polled from auth and kept in a map of HAProxy.

A line of the map is `subject before`: a token of this subject that was issued at `before` (Unix seconds) or earlier is void. The file is for
the next worker, the Runtime API for this one, and what HAProxy has is compared at each poll, whichever worker it is.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import structlog

from discovery.errors import ContractError
from haproxy.controller.config.files import write_if_changed
from haproxy.controller.config.model import Server
from haproxy.controller.errors import EdgeError, Unreachable
from haproxy.controller.loop.steady import Health, steady
from haproxy.controller.metrics import Metrics
from haproxy.controller.runtime.socket import Command, Runtime, Session, command
from haproxy.controller.settings import EdgeSettings
from haproxy.controller.wanted.auth_poll import AuthDocument

log = structlog.get_logger(__name__)

PATH = "/internal/auth/revocations"
EVERY_S = 2.0
MAX_BYTES = 8 * 1024 * 1024
# What the configuration takes for a subject: nothing else has a token that passes.
_SUBJECT = re.compile(r"[A-Za-z0-9_.:@-]{1,128}")
_ENTRY = re.compile(r"^0x[0-9a-f]+ (\S+) (\d+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Revocation:
    """Tokens issued at `before` or earlier are void; from `until` on they have expired anyway. Unix seconds."""

    before: int
    until: int


def parse_revocations(data: bytes) -> dict[str, Revocation]:
    """By subject. Raises ContractError for anything else than what auth promises."""
    try:
        entries = json.loads(data)["revocations"]
        found = {entry["subject"]: Revocation(entry["before"], entry["until"]) for entry in entries}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ContractError("revocations", data[:80], f"not a list of revocations: {error!r}") from None
    for subject, revocation in found.items():
        if not isinstance(subject, str) or not _SUBJECT.fullmatch(subject):
            raise ContractError("subject", subject, "must be 1-128 of letters, digits and _ . : @ -")
        if type(revocation.before) is not int or type(revocation.until) is not int or revocation.before < 0:
            raise ContractError("before", revocation.before, "must be whole seconds")
    return found


def changes(wanted: Mapping[str, int], present: Mapping[str, int], map_id: str) -> list[Command]:
    """What makes the map hold what it should. Pure."""
    lines = [command("del", "map", map_id, subject) for subject in sorted(present.keys() - wanted.keys())]
    for subject, before in sorted(wanted.items()):
        if subject not in present:
            lines.append(command("add", "map", map_id, subject, before))
        elif present[subject] != before:
            lines.append(command("set", "map", map_id, subject, before))
    return lines


class RevocationPoll:
    """Polls on a thread of its own. auth away: what is known stays for as long as it matters."""

    def __init__(
        self,
        settings: EdgeSettings,
        servers: Callable[[], Iterable[Server]],
        runtime: Runtime,
        metrics: Metrics,
        health: Health,
    ) -> None:
        self._file = settings.revoked_file
        self._document = AuthDocument("revocations", PATH, MAX_BYTES, parse_revocations, servers, metrics)
        self._runtime = runtime
        self._metrics = metrics
        self._known: dict[str, Revocation] | None = None
        self._loop = steady("revocations", self._turn, health)
        self.start, self.stop = self._loop.start, self._loop.stop

    def _turn(self) -> float:
        found = self._document.poll()
        self._known = self._known if found is None else found
        if self._known is not None:
            now = time.time()
            wanted = {s: r.before for s, r in self._known.items() if r.until > now}
            write_if_changed(
                self._file, "".join(f"{subject} {wanted[subject]}\n" for subject in sorted(wanted)).encode()
            )
            try:
                with self._runtime.session() as session:
                    self._apply(session, wanted)
            except Unreachable as error:
                log.debug("revocations not brought to haproxy", error=str(error))
        return EVERY_S

    def _apply(self, session: Session, wanted: Mapping[str, int]) -> None:
        map_id = self._map_id(session.send(command("show", "map")))
        if map_id is None:
            return  # a worker of before this map; the reload that brings it is on its way
        entries = _ENTRY.findall(session.send(command("show", "map", map_id)))
        for line in changes(wanted, {subject: int(before) for subject, before in entries}, map_id):
            answer = session.send(line).strip()
            self._metrics.commands.labels(" ".join(line.words[:2]), "refused" if answer else "ok").inc()
            if answer:
                raise EdgeError(f"{line}: {answer[:200]}")
            log.info("revocation", step=line.words[0], subject=line.words[3])

    def _map_id(self, listing: str) -> str | None:
        """Maps are named by their number: the path may hold blanks, which no command may."""
        for line in listing.splitlines():
            number, _, rest = line.partition(" ")
            if rest.startswith(f"({self._file})"):
                return f"#{number}"
        return None
