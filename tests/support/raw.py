"""A server of bare sockets: what it says, and when, is up to the test, down to the last byte."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from discovery import ClientSettings, Instance, RetrySettings, ServiceClient, StaticView
from discovery.clock import SYSTEM_CLOCK, Clock

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@dataclass
class Peer:
    """The server's end of one connection, the `number`-th. `heard` is all that has come."""

    sock: socket.socket
    number: int
    heard: bytearray = field(default_factory=bytearray)

    def request(self) -> bytes:
        """The next request whole, as it came; empty when the client has closed."""
        while b"\r\n\r\n" not in self.heard:
            if not self._more():
                return b""
        head, _, _ = bytes(self.heard).partition(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        if fields.get(b"transfer-encoding") == b"chunked":
            while not self.heard.endswith(b"0\r\n\r\n"):
                if not self._more():
                    return b""
            length = len(self.heard)
        else:
            length = len(head) + 4 + int(fields.get(b"content-length", b"0"))
        while len(self.heard) < length:
            if not self._more():
                return b""
        request = bytes(self.heard[:length])
        del self.heard[:length]
        return request

    def head(self) -> bytes:
        """The head of the next request, without reading on."""
        while b"\r\n\r\n" not in self.heard:
            if not self._more():
                return b""
        return bytes(self.heard).partition(b"\r\n\r\n")[0]

    def say(self, data: bytes) -> None:
        self.sock.sendall(data)

    def repeat(self, data: bytes, times: int = 10**9) -> int:
        """Say the same until the client has enough of it; answers how many bytes went out."""
        sent = 0
        with contextlib.suppress(OSError):
            for _ in range(times):
                sent += self.sock.send(data)
        return sent

    def closed(self, within_s: float = 5.0) -> bool:
        """Whether the client closes its end in time."""
        self.sock.settimeout(within_s)
        try:
            while self.sock.recv(65536):
                pass
        except TimeoutError:
            return False
        except OSError:
            pass
        return True

    def _more(self) -> bool:
        try:
            data = self.sock.recv(65536)
        except OSError:
            return False
        self.heard += data
        return bool(data)


@dataclass
class RawServer:
    """`behave(peer)` has a thread for each connection, which is closed when it returns."""

    port: int
    behave: Callable[[Peer], object]
    address: str = "127.0.0.1"
    peers: list[Peer] = field(default_factory=list)
    requests: list[bytes] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)

    def instance(self, id: str = "users-0", **fields: object) -> Instance:
        values: dict[str, object] = {"address": self.address, "port": self.port}
        return Instance("users", id, "node-1", **(values | fields))  # type: ignore[arg-type]


def answering(*answers: bytes) -> Callable[[Peer], object]:
    """Reads whole requests and gives these answers in turn over all connections; the last one goes on."""
    lock = threading.Lock()
    left = list(answers)

    def behave(peer: Peer) -> None:
        while peer.request():
            with lock:
                answer = left.pop(0) if len(left) > 1 else left[0]
            peer.say(answer)

    return behave


def recording(server: RawServer, then: Callable[[Peer], object]) -> Callable[[Peer], None]:
    """Keeps each request in `server.requests`, and lets `then` answer it."""

    def behave(peer: Peer) -> None:
        while request := peer.request():
            server.requests.append(request)
            then(peer)

    return behave


def client_of(*instances: Instance, clock: Clock = SYSTEM_CLOCK, **settings: object) -> ServiceClient:
    """A client that tries once, unless `settings` (of ClientSettings) say otherwise."""
    values: dict[str, object] = {"retry": RetrySettings(attempts=1)} | settings
    return ServiceClient(StaticView(instances), settings=ClientSettings(**values), clock=clock)  # type: ignore[arg-type]


def _serve(server: RawServer, peer: Peer) -> None:
    with peer.sock:
        try:
            server.behave(peer)
        except OSError:
            pass
        except BaseException as error:
            server.failures.append(error)


def _accept(server: RawServer, listener: socket.socket) -> None:
    while True:
        try:
            sock, _ = listener.accept()
        except OSError:
            return
        sock.settimeout(10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer = Peer(sock, len(server.peers))
        server.peers.append(peer)
        threading.Thread(target=_serve, args=(server, peer), daemon=True).start()


@contextlib.contextmanager
def raw_server(
    behave: Callable[[Peer], object], *, family: socket.AddressFamily = socket.AF_INET
) -> Iterator[RawServer]:
    """A server on a free loopback port. Raises what `behave` raised, at the end, but for broken connections."""
    address = "127.0.0.1" if family == socket.AF_INET else "::1"
    listener = socket.create_server((address, 0), family=family, backlog=64)
    server = RawServer(listener.getsockname()[1], behave, address)
    thread = threading.Thread(target=_accept, args=(server, listener), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)
        for peer in server.peers:
            with contextlib.suppress(OSError):
                peer.sock.close()
    if server.failures:
        raise server.failures[0]
