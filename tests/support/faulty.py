"""A proxy in front of a real server that a test can make lie, stumble or hang."""

from __future__ import annotations

import contextlib
import http.client
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tests.support.scripted import Handler, Upstream, upstream


@dataclass
class Passing:
    """An answer on its way back, which a fault may change. `index` is X-Consul-Index, where there was one."""

    path: str
    status: int
    body: bytes
    index: int | None


Fault = Callable[[Passing], Passing | None]


@dataclass
class FaultyProxy:
    """`fault(answer)` changes each answer; None in return hangs up. `stumbles` counts the answers it has changed."""

    target_port: int
    port: int = 0
    fault: Fault | None = None
    before: Callable[[str], None] | None = None
    stumbles: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    server: Upstream | None = None

    @property
    def connections(self) -> int:
        """How many have been made so far."""
        return self.server.connections if self.server is not None else 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @contextlib.contextmanager
    def failing(self, fault: Fault) -> Iterator[None]:
        """Apply a fault to every answer that ends within the block; fails when it never hit one."""
        self.fault, self.stumbles = fault, 0
        try:
            yield
        finally:
            self.fault = None
        assert self.stumbles, "the fault did not happen"

    @contextlib.contextmanager
    def hanging(self) -> Iterator[None]:
        """Accept requests and answer none; those that came are let go at the end of the block."""
        release = threading.Event()
        self.before, self.stumbles = lambda _: self._hang(release), 0
        try:
            yield
        finally:
            self.before = None
            release.set()

    def _hang(self, release: threading.Event) -> None:
        with self.lock:
            self.stumbles += 1
        release.wait(60)

    def forward(self, handler: Handler) -> None:
        """Pass a request on, and its answer back."""
        if self.before is not None:
            self.before(handler.path)
        connection = http.client.HTTPConnection("127.0.0.1", self.target_port, timeout=70)
        try:
            token = handler.seen.headers.get("x-consul-token")
            headers = {"X-Consul-Token": token} if token else {}
            connection.request(handler.command, handler.path, handler.seen.body or None, headers)
            answer = connection.getresponse()
            index = answer.getheader("X-Consul-Index")
            passing: Passing | None = Passing(
                handler.path, answer.status, answer.read(), int(index) if index else None
            )
        finally:
            connection.close()
        if self.fault is not None and passing is not None:
            before = (passing.status, passing.body, passing.index)
            passing = self.fault(passing)
            if passing is None or (passing.status, passing.body, passing.index) != before:
                with self.lock:
                    self.stumbles += 1
        if passing is None:
            handler.hang_up()
            return
        fields = {} if passing.index is None else {"X_Consul_Index": str(passing.index)}
        handler.answer(passing.status, passing.body, **fields)


@contextlib.contextmanager
def faulty_proxy(target_port: int) -> Iterator[FaultyProxy]:
    """A proxy on a free loopback port, honest until set otherwise."""
    proxy = FaultyProxy(target_port)
    with upstream(proxy.forward) as server:
        proxy.port, proxy.server = server.port, server
        yield proxy
