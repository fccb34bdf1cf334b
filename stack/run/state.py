"""What a started stack remembers in `var/stack.json`: its ports, and which instance got which port."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stack.errors import StackError
from stack.run import ports
from stack.servers.vault import write_private


@dataclass(frozen=True, slots=True)
class Slot:
    """One instance that the stack runs: number `number` of its service, on `port`."""

    service: str
    number: int
    port: int

    @property
    def id(self) -> str:
        return f"{self.service}-{self.number}"


@dataclass(slots=True)
class State:
    """`slots` are the instances wanted now; `remembered` maps instance id → port of every instance there has been."""

    path: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    slots: list[Slot] = field(default_factory=list)
    remembered: dict[str, int] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> State:
        """The file's content; a fresh state where there is none or it is damaged."""
        try:
            found = json.loads(path.read_text())
            slots = [Slot(**slot) for slot in found["slots"]]
            return cls(path, found["settings"], slots, dict(found["remembered"]))
        except (OSError, ValueError, KeyError, TypeError):
            return cls(path)

    def save(self) -> None:
        content = {
            "settings": dict(self.settings),
            "slots": [asdict(slot) for slot in self.slots],
            "remembered": self.remembered,
        }
        write_private(self.path, json.dumps(content, indent=2) + "\n")

    def of(self, service: str) -> list[Slot]:
        return [slot for slot in self.slots if slot.service == service]

    def assign(self, wanted: Iterable[tuple[str, int]], base: int, fixed: Iterable[int]) -> list[Slot]:
        """Give each (service, number) that has no slot one: on the port it had before where that is free, else a new one."""
        have = {slot.id for slot in self.slots}
        missing = [
            Slot(service, number, 0) for service, number in wanted if f"{service}-{number}" not in have
        ]
        taken = {*fixed, *(slot.port for slot in self.slots)}
        made: list[Slot] = []
        for slot in missing:
            port = self.remembered.get(slot.id, 0)
            if not port or port in taken or not ports.is_free(port):
                try:
                    (port,) = ports.assign(1, base, {*taken, *self.remembered.values()})
                except OSError as error:
                    raise StackError(str(error), "choose another base: INSTANCE_PORT_BASE=<port>") from error
            taken.add(port)
            self.remembered[slot.id] = port
            made.append(Slot(slot.service, slot.number, port))
        self.slots = sorted([*self.slots, *made], key=lambda slot: (slot.service, slot.number))
        return made
