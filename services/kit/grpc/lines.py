"""Channels to instances, one each: made when it is first called, closed when it is gone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import grpc

from discovery.errors import ConnectFailed
from discovery.http.connection import connect
from discovery.model import Instance, Snapshot

# Service, address and port.
Place = tuple[str, str, int]
Method = Callable[..., Any]


class Line:
    """A channel, and how many calls are under way on it. Once retired it is closed with the last of them."""

    def __init__(self, place: Place, options: list[tuple[str, int]]) -> None:
        self.place = place
        self.retired = False
        self.calls = 0
        self._channel = grpc.insecure_channel(_target(*place[1:]), options)
        self._methods: dict[str, Method] = {}

    def method(self, name: str, deserializer: Callable[[bytes], Any], *, stream: bool) -> Method:
        """The call of one method; its request is bytes."""
        found = self._methods.get(name)
        if found is None:
            make = self._channel.unary_stream if stream else self._channel.unary_unary
            found = self._methods[name] = make(name, None, deserializer)
        return found

    def close(self) -> None:
        self._channel.close()


class Lines:
    """Thread-safe, and works under gevent.

    A plain socket finds out whether anything listens before a channel is made, so that a refused connection is known to have sent
    nothing: gRPC says UNAVAILABLE to that and to a call that was cut off alike. A channel on which a call was cut off is given up:
    the next call finds out anew, and waits for none of gRPC's pauses.
    """

    def __init__(self, connect_timeout_s: float, max_bytes: int) -> None:
        self._connect_timeout_s = connect_timeout_s
        self._options = [
            ("grpc.max_receive_message_length", max_bytes),
            # Retries are the guard's alone, and no channel sits out the pause of one before it.
            ("grpc.enable_retries", 0),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.min_reconnect_backoff_ms", int(connect_timeout_s * 1000)),
            # A proxy of the environment must not carry calls away.
            ("grpc.enable_http_proxy", 0),
        ]
        self._lock = threading.Lock()
        self._lines: dict[Place, Line] = {}

    def take(self, instance: Instance, timeout_s: float) -> Line:
        """The line to an instance, for one call, which must `release` it. Raises ConnectFailed."""
        place = (instance.service, instance.address, instance.port)
        line = self._held(place)
        if line is None:
            self._probe(instance, min(timeout_s, self._connect_timeout_s))
            line = self._held(place, make=True)
            assert line is not None
        return line

    def release(self, line: Line, *, broken: bool = False) -> None:
        """A call is over; `broken`: its connection has failed."""
        with self._lock:
            line.calls -= 1
            if broken:
                self._retire(line)
            over = line.retired and not line.calls
        if over:
            line.close()

    def drop_gone(self, snapshot: Snapshot) -> None:
        """Close the lines to instances that are no more."""
        with self._lock:
            services = {service for service, _, _ in self._lines}
            live = {(each, one.address, one.port) for each in services for one in snapshot.instances(each)}
            gone = [line for place, line in self._lines.items() if place not in live]
            for line in gone:
                self._retire(line)
        for line in gone:
            if not line.calls:
                line.close()

    def places(self) -> list[Place]:
        """What there are lines to."""
        return list(self._lines)

    def _held(self, place: Place, *, make: bool = False) -> Line | None:
        with self._lock:
            line = self._lines.get(place)
            if line is None and make:
                line = self._lines[place] = Line(place, self._options)
            if line is not None:
                line.calls += 1
            return line

    def _retire(self, line: Line) -> None:
        line.retired = True
        if self._lines.get(line.place) is line:
            del self._lines[line.place]

    def _probe(self, instance: Instance, timeout_s: float) -> None:
        try:
            connect(instance.address, instance.port, max(timeout_s, 0.001)).close()
        except (OSError, ValueError, OverflowError) as error:
            detail = f"{instance.address}:{instance.port}: {type(error).__name__}: {error}"[:200]
            raise ConnectFailed(instance.service, detail, instance_id=instance.id) from error


def _target(address: str, port: int) -> str:
    """An address as gRPC takes it; it would look a plain one up."""
    if ":" in address:
        return f"ipv6:[{address}]:{port}"
    return f"ipv4:{address}:{port}" if address.replace(".", "").isdecimal() else f"dns:///{address}:{port}"
