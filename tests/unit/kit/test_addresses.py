"""Where an instance says that it is: given, or found on the network that it should be on."""

from __future__ import annotations

import resource
import socket
import struct
from pathlib import Path

import pytest
from pydantic import ValidationError

from services.kit.server import addresses
from services.kit.server.run import CONNECTIONS, listen
from services.kit.settings import ServiceSettings


def test_address_that_is_given_is_taken_as_it_is() -> None:
    assert addresses.own_address("192.0.2.7") == "192.0.2.7"


def test_network_gives_this_machines_own_address_in_it() -> None:
    assert addresses.own_address("127.0.0.0/8") == "127.0.0.1"
    assert addresses.own_address("::1/128") in {"::1", None}


def test_network_that_this_machine_is_not_on_gives_none() -> None:
    assert addresses.own_address("198.51.100.0/24") is None


def test_network_gives_none_while_no_socket_can_be_opened() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        found = addresses.own_address("127.0.0.0/8")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert found is None
    assert addresses.own_address("127.0.0.0/8") == "127.0.0.1"


@pytest.mark.parametrize("text", ["10.0.0.0/33", "10.0.0.1/24", "users.local", "10.0.0"])
def test_setting_that_is_neither_address_nor_network_is_refused(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("ADVERTISE_ADDRESS", text)
    with pytest.raises(ValidationError, match="advertise_address|ADVERTISE_ADDRESS"):
        ServiceSettings()


def test_instances_that_listen_everywhere_are_told_apart_by_their_host_names() -> None:
    assert addresses.default_instance_id("users", "127.0.0.1", 20001) == "users-127.0.0.1-20001"
    assert addresses.default_instance_id("users", "::1", 20001) == "users-..1-20001"
    for host in ("0.0.0.0", "::"):
        assert addresses.default_instance_id("users", host, 8000) == f"users-{socket.gethostname()}"


def test_as_many_connections_may_wait_as_a_worker_takes() -> None:
    """For one more than may wait the kernel drops a packet, and the client tries again seconds later."""
    with listen("127.0.0.1", 0) as listener:
        # Of a listening socket, tcpi_sacked is how many may wait. Ref: linux, net/ipv4/tcp.c, tcp_get_info.
        (may_wait,) = struct.unpack_from(
            "I", listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), 28
        )
    most = int(Path("/proc/sys/net/core/somaxconn").read_text())
    assert may_wait == min(CONNECTIONS, most)
    assert may_wait > 1024 or most <= 1024
