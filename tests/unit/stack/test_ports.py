"""Ports: which are free, which program holds one, and that instances keep theirs."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from stack import PORT_HOLDERS
from stack.errors import StackError
from stack.run import ports
from stack.run.state import Slot, State
from stack.settings import StackSettings


@pytest.fixture
def busy() -> Iterator[int]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def test_what_root_saw_is_told_after_root_has_gone(busy: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = ports.holders({"STATS_PORT": str(busy), "EDGE_HTTP_PORT": "no port"})
    assert f"pid {os.getpid()}" in seen[busy]
    monkeypatch.setenv(PORT_HOLDERS, json.dumps({str(busy): "nginx (pid 1, user www-data)"}))
    assert ports.holder(busy) == "nginx (pid 1, user www-data)"


def test_free_ports_are_different_and_free() -> None:
    found = ports.free_ports(20)
    assert len(set(filter(ports.is_free, found))) == 20


def test_assign_skips_held_and_refused_ports(busy: int) -> None:
    assert not {busy, busy + 1} & set(ports.assign(3, busy, [busy + 1]))


def test_isolated_settings_share_no_port(tmp_path: Path) -> None:
    settings = StackSettings.isolated(tmp_path)
    assert len(set(settings.fixed_ports.values())) == len(settings.fixed_ports) == 11
    assert settings.edge_bind_address == "127.0.0.1"


def test_ports_of_rabbitmq_are_taken_only_where_it_runs(tmp_path: Path) -> None:
    with_it = StackSettings.isolated(tmp_path, events="rabbitmq").fixed_ports
    assert len(set(with_it.values())) == len(with_it) == 14


def test_every_port_moves_with_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    names = list(StackSettings().fixed_ports)
    for number, name in enumerate(names):
        monkeypatch.setenv(name, str(15000 + number))
    assert StackSettings().fixed_ports == {name: 15000 + n for n, name in enumerate(names)}


def test_instance_gets_its_port_back(tmp_path: Path) -> None:
    state = State(tmp_path / "stack.json")
    base = ports.free_block(50)
    first = state.assign([("users", 1), ("users", 2)], base, [])
    state.save()
    later = State.load(tmp_path / "stack.json")
    later.slots = []
    assert later.assign([("users", 2)], base, []) == [first[1]]


def test_instance_moves_when_its_port_is_taken(tmp_path: Path, busy: int) -> None:
    state = State(tmp_path / "stack.json", remembered={"users-1": busy})
    made = state.assign([("users", 1)], ports.free_block(50), [])
    assert made[0].port != busy
    assert state.remembered["users-1"] == made[0].port


def test_ports_of_other_instances_are_left_to_them(tmp_path: Path) -> None:
    base = ports.free_block(50)
    state = State(tmp_path / "stack.json", remembered={"users-1": base})
    assert state.assign([("posts", 1)], base, [])[0].port != base


def test_damaged_state_starts_afresh(tmp_path: Path) -> None:
    file = tmp_path / "stack.json"
    for text in (
        "",
        "{",
        "[]",
        '{"slots": [{"service": 1}]}',
        '{"slots": 3, "settings": {}, "remembered": {}}',
    ):
        file.write_text(text)
        assert State.load(file).slots == []


def test_no_port_left_says_what_to_do(tmp_path: Path) -> None:
    state = State(tmp_path / "stack.json", slots=[Slot("users", 1, 65535)])
    with pytest.raises(StackError, match="INSTANCE_PORT_BASE"):
        state.assign([("users", 2)], 65535, [])
