"""An instance behind the edge that records the very bytes it is sent, and misbehaves on request.

    with Upstream("users") as upstream:      # threads of this process: its `requests` can be looked at
        ...
    python -m tests.support.recorder users 20001   # a process of its own (`recorder_process`): can be killed and stopped

Such a process takes SIGUSR1 for being cut off: it stops, and to a client that connects not even the kernel answers.

What it does with a request stands in its path: `/fail` in it answers 500, `/slow` waits 0.3 s before it answers,
`/crash` closes the connection without an answer, `/echo` sends the request's head back as the body.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from tests.support.eventually import eventually
from tests.support.servers import Process, accepts

_REASONS = {200: "OK", 404: "Not Found", 500: "Internal Server Error", 503: "Service Unavailable"}


@dataclass(frozen=True)
class Request:
    """One request as it came: `head` holds the request line and the headers, `body` what chunks or length announced."""

    head: bytes
    body: bytes = b""

    @property
    def method(self) -> str:
        return self.head.split(b" ", 1)[0].decode()

    @property
    def target(self) -> str:
        return self.head.split(b" ", 2)[1].decode("latin-1")

    def all(self, name: str) -> list[str]:
        """Every value of that header, in order."""
        lines = (line.partition(b":") for line in self.head.split(b"\r\n")[1:])
        return [
            v.strip().decode("latin-1") for n, _, v in lines if n.strip().lower() == name.lower().encode()
        ]

    def header(self, name: str) -> str | None:
        """The only value of that header, or None; more than one is an error."""
        values = self.all(name)
        assert len(values) <= 1, f"{name} came {len(values)} times"
        return values[0] if values else None


@dataclass
class Answer:
    """What an instance answers."""

    status: int = 200
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)

    def encode(self) -> bytes:
        headers = {"Content-Type": "application/json", "Content-Length": str(len(self.body))} | self.headers
        lines = [f"HTTP/1.1 {self.status} {_REASONS.get(self.status, 'Status')}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join([*lines, "", ""]).encode() + self.body


Handler = Callable[[Request], Answer | None]


def by_path(request: Request) -> Answer | None:
    """The default handler; see the module. None closes the connection."""
    if "/crash" in request.target:
        return None
    if "/slow" in request.target:
        time.sleep(0.3)
    if "/fail" in request.target:
        return Answer(500)
    if "/echo" in request.target:
        return Answer(body=request.head, headers={"Content-Type": "text/plain"})
    return Answer(body=json.dumps({"method": request.method, "path": request.target}).encode())


class Upstream:
    """Listens on a loopback port (0: a free one) while entered. Health answers carry `X-Service: <service>`."""

    def __init__(
        self, service: str, *, port: int = 0, handler: Handler = by_path, ready: bool = True
    ) -> None:
        self.service = service
        self.handler = handler
        self.ready = ready
        self.requests: list[Request] = []
        self.heads: list[bytes] = []  # as soon as a head is whole, before its body has come
        self._listener = socket.create_server(("127.0.0.1", port), backlog=256)
        self.port: int = self._listener.getsockname()[1]
        self._open: set[socket.socket] = set()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in tuple(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def cut_off(self) -> None:
        """Stop this process; connections to it are neither made nor refused any more, once one waits to be accepted."""
        self._listener.listen(0)
        os.kill(os.getpid(), signal.SIGSTOP)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        self._open.add(connection)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection, contextlib.suppress(OSError, ValueError):
            for request in _requests(connection, self.heads):
                answer = self._answer(request)
                if answer is None:
                    break
                connection.sendall(answer.encode())
        self._open.discard(connection)

    def _answer(self, request: Request) -> Answer | None:
        if request.target == "/health/ready" and request.all("user-agent") == ["edge-check"]:
            return Answer(200 if self.ready else 503, headers={"X-Service": self.service})
        self.requests.append(request)
        return self.handler(request)


def _requests(connection: socket.socket, heads: list[bytes]) -> Iterator[Request]:
    """The requests on one connection, by a parser that believes what it reads: chunks before length, as RFC 9112 has it."""
    with connection.makefile("rb") as stream:
        while True:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                line = stream.readline(65536)
                if not line:
                    return
                head += line
            request = Request(head[:-4])
            if b"user-agent: edge-check" not in head:
                heads.append(head)
            if "chunked" in ",".join(request.all("transfer-encoding")).lower():
                yield Request(request.head, _chunks(stream))
            else:
                lengths = request.all("content-length")
                yield Request(request.head, stream.read(int(lengths[0])) if lengths else b"")


def _chunks(stream) -> bytes:  # type: ignore[no-untyped-def]
    body = b""
    while size := int(stream.readline().split(b";")[0], 16):
        body += stream.read(size)
        stream.readline()
    while stream.readline().strip():
        pass
    return body


@contextlib.contextmanager
def refusing_port() -> Iterator[int]:
    """A loopback port that refuses connections, and that no other program can take meanwhile: bound, and not listening."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def recorder_process(folder: Path, service: str, port: int, *options: str) -> Process:
    """A started process that listens; its log goes to the folder. The caller kills it."""
    argv = [sys.executable, "-m", "tests.support.recorder", service, str(port), *options]
    process = Process(argv, folder / f"{port}.log")
    process.start()
    eventually(lambda: accepts(port), 10)
    return process


def main() -> None:
    """`python -m tests.support.recorder SERVICE PORT [fail]`: serve until killed; `fail` answers 500 to all but health."""
    service, port = sys.argv[1], int(sys.argv[2])
    handler = (lambda _: Answer(500)) if sys.argv[3:] == ["fail"] else by_path
    with Upstream(service, port=port, handler=handler) as upstream:
        signal.signal(signal.SIGUSR1, lambda *_: upstream.cut_off())
        threading.Event().wait()


if __name__ == "__main__":
    main()
