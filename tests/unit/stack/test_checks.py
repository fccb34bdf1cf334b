"""What stops a start before anything has started, and what it says."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from stack.errors import PortInUse, StackError
from stack.run import startup
from stack.run.api import Stack
from stack.settings import StackSettings


def fake_haproxy(folder: Path, version: str) -> str:
    """A program that answers -v as HAProxy does."""
    file = folder / "haproxy"
    file.write_text(f"#!/bin/sh\necho 'HAProxy version {version} 2026/01/01 - https://haproxy.org/'\n")
    file.chmod(0o755)
    return str(file)


@pytest.mark.parametrize("version", ["2.5.0", "2.6.12-1+deb12u4", "3.0.1", "10.0.0"])
def test_haproxy_that_can_add_servers_is_taken(tmp_path: Path, version: str) -> None:
    startup.check_haproxy(fake_haproxy(tmp_path, version))


@pytest.mark.parametrize("version", ["1.8.19", "2.4.24-0ubuntu0.22.04.1"])
def test_old_haproxy_is_refused_with_its_version(tmp_path: Path, version: str) -> None:
    with pytest.raises(StackError, match=rf"{version[:3]}.*too old") as caught:
        startup.check_haproxy(fake_haproxy(tmp_path, version))
    assert "2.6" in caught.value.remedy


def test_port_in_use_names_port_variable_and_holder(tmp_path: Path) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        stack = Stack(StackSettings.isolated(tmp_path, stats_port=port))
        with pytest.raises(PortInUse, match=f"{port}.*STATS_PORT.*pid"):
            stack.up()
    assert not (tmp_path / "secrets").exists()


def test_one_port_twice_is_refused(tmp_path: Path) -> None:
    settings = StackSettings.isolated(tmp_path)
    twice = settings.model_copy(update={"stats_port": settings.edge_http_port})
    with pytest.raises(StackError, match=r"STATS_PORT and EDGE_HTTP_PORT|EDGE_HTTP_PORT and STATS_PORT"):
        startup.check_machine(Stack(twice))


def test_long_socket_path_is_refused(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 90)
    with pytest.raises(StackError, match="too long") as caught:
        startup.check_machine(Stack(StackSettings.isolated(deep)))
    assert "BREAKWATER_VAR" in caught.value.remedy


@pytest.mark.parametrize("name", ["50%", 'a"b', "a;b", "a\nb", "$HOME"])
def test_path_that_would_be_code_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(StackError, match="would read as something else"):
        startup.check_machine(Stack(StackSettings.isolated(tmp_path / name)))


def test_missing_program_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stack.install.packages.SEARCH", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StackError, match="consul is not installed"):
        startup.check_machine(Stack(StackSettings.isolated(tmp_path)))
