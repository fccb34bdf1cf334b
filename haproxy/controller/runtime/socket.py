"""HAProxy's two Unix sockets: the Runtime API of the worker and the CLI of the master.

One command a line, in a `prompt` session that lives for one batch: a session that outlived a reload would go on talking
to the old worker. Words are checked before they are joined, so that nothing can become a second command or an argument.
Ref: https://docs.haproxy.org/2.6/management.html#9.3
"""

from __future__ import annotations

import contextlib
import re
import socket
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

from haproxy.controller.errors import BadWord, Unreachable
from haproxy.controller.runtime.observed import ObservedServer, observed_servers

# No blank, `;`, `\`, quote, `<`, `$`, `%`, `*` or control character. `@`, `!`: the master's address of a worker; `#`: a map's number.
_WORD = re.compile(r"[A-Za-z0-9_.,:/~@!#\[\]-]{1,250}")
_PROMPT = re.compile(rb"(?:^|\n)(?:master(?:\[ReloadFailed\])?)?> $")
_DONE = re.compile(
    r"|New server registered\.|Server deleted\.|.*(?:changed from '.*' to '.*'|no need to change).*",
    re.DOTALL,
)
# Ten thousand servers are 6 MB of `show stat`.
MAX_ANSWER_BYTES = 64 * 1024 * 1024
MAX_LINE_BYTES = 65536
TIMEOUT_S = 3.0


@dataclass(frozen=True, slots=True)
class Command:
    """One line. Raises BadWord for a word that is not of the allowed characters."""

    words: tuple[str, ...]

    def __post_init__(self) -> None:
        for word in self.words:
            if not _WORD.fullmatch(word):
                raise BadWord(f"not a word of a command: {word[:80]!r}")

    def __str__(self) -> str:
        return " ".join(self.words)


def command(*words: object) -> Command:
    """`command("set", "server", "svc_x/a", "weight", 5)`."""
    return Command(tuple(str(word) for word in words))


def succeeded(answer: str) -> bool:
    """Whether an answer to a command that changes something says that it was done."""
    return _DONE.fullmatch(answer.strip()) is not None


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    """A worker: pid and start (Unix seconds) tell one from the next."""

    pid: int
    started: int


@dataclass(frozen=True, slots=True)
class MasterInfo:
    """`workers` are the pids of current workers, `failed` the reloads that failed since the last good one."""

    workers: tuple[int, ...]
    reloads: int
    failed: int


class Session:
    """An interactive session. Raises Unreachable; not thread-safe."""

    def __init__(self, connection: socket.socket, timeout_s: float) -> None:
        self._socket = connection
        self._timeout_s = timeout_s

    def send(self, line: Command) -> str:
        """Send one command and return its whole answer, without the prompt."""
        return self._exchange(str(line).encode("ascii")).decode(errors="replace")

    def _exchange(self, line: bytes) -> bytes:
        until = time.monotonic() + self._timeout_s
        try:
            self._socket.sendall(line + b"\n")
            parts: list[bytes] = []
            size = 0
            tail = b""
            while not _PROMPT.search(tail):
                left = until - time.monotonic()
                if left <= 0 or size > MAX_ANSWER_BYTES:
                    raise Unreachable(f"no whole answer to {line[:80]!r} within {self._timeout_s} s")
                self._socket.settimeout(left)
                part = self._socket.recv(262144)
                if not part:
                    raise Unreachable(f"connection closed during {line[:80]!r}")
                parts.append(part)
                size += len(part)
                tail = (tail + part)[-64:]
        except OSError as error:
            raise Unreachable(f"{line[:80]!r}: {error}") from error
        return _PROMPT.sub(b"", b"".join(parts))

    def info(self) -> ProcessInfo:
        """Which worker is talking."""
        text = self.send(command("show", "info"))
        fields = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
        try:
            return ProcessInfo(int(fields["Pid"]), int(fields["Start_time_sec"]))
        except (KeyError, ValueError) as error:
            raise Unreachable(f"no usable answer to show info: {text[:200]!r}") from error

    def backends(self) -> frozenset[str]:
        """The names of all backends."""
        lines = self.send(command("show", "backend")).splitlines()
        return frozenset(line.strip() for line in lines if line.strip() and not line.startswith("#"))

    def servers(self, backend: str) -> dict[str, ObservedServer] | None:
        """A backend's servers by name; None when there is no such backend."""
        state = self.send(command("show", "servers", "state", backend))
        if "Can't find backend" in state:
            return None
        stat = self.send(command("show", "stat", backend, "4", "-1"))
        return observed_servers(state, stat).get(backend, {})


class Runtime:
    """The Runtime API behind a Unix socket."""

    def __init__(self, path: Path, timeout_s: float = TIMEOUT_S) -> None:
        self._path = path
        self._timeout_s = timeout_s

    @contextlib.contextmanager
    def session(self) -> Iterator[Session]:
        """A session with whichever worker listens now. Raises Unreachable."""
        with _connect(self._path, self._timeout_s) as connection:
            session = Session(connection, self._timeout_s)
            session.send(command("prompt"))
            yield session

    def info(self) -> ProcessInfo:
        with self.session() as session:
            return session.info()

    def follow(self, line: Command, idle_s: float) -> Generator[str | None, None, None]:
        """The lines of an answer that has no end, and None after each `idle_s` seconds without one. Raises Unreachable when it ends."""
        with _connect(self._path, self._timeout_s) as connection:
            try:
                connection.sendall(str(line).encode("ascii") + b"\n")
                connection.settimeout(idle_s)
                rest = b""
                while len(rest) <= MAX_LINE_BYTES:
                    try:
                        part = connection.recv(65536)
                    except TimeoutError:
                        yield None
                        continue
                    if not part:
                        break
                    *lines, rest = (rest + part).split(b"\n")
                    yield from (each.decode(errors="replace") for each in lines)
            except OSError as error:
                raise Unreachable(f"{line}: {error}") from error
        raise Unreachable(f"the answer to {str(line)!r} has ended")


class Master:
    """The master CLI."""

    def __init__(self, path: Path, timeout_s: float = TIMEOUT_S) -> None:
        self._runtime = Runtime(path, timeout_s)

    def info(self) -> MasterInfo:
        """Its workers. Raises Unreachable, also for the moment in which the master restarts itself."""
        with self._runtime.session() as session:
            return parse_processes(session.send(command("show", "proc")))

    def reload(self) -> None:
        """Ask for a reload; 2.6 closes the connection at once and answers nothing."""
        with self._runtime.session() as session, contextlib.suppress(Unreachable):
            session.send(command("reload"))


def parse_processes(text: str) -> MasterInfo:
    """Read `show proc`. Raises Unreachable for something else."""
    found = re.search(r"^\d+\s+master\s+(\d+)(?:\s+\[failed: (\d+)\])?", text, re.MULTILINE)
    if found is None:
        raise Unreachable(f"no usable answer to show proc: {text[:200]!r}")
    current = text.split("# old workers")[0]
    workers = re.findall(r"^(\d+)\s+worker\b", current, re.MULTILINE)
    return MasterInfo(tuple(map(int, workers)), int(found[1]), int(found[2] or 0))


@contextlib.contextmanager
def _connect(path: Path, timeout_s: float) -> Iterator[socket.socket]:
    try:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError as error:  # out of descriptors
        raise Unreachable(f"{path}: {error}") from error
    with connection:
        connection.settimeout(timeout_s)
        try:
            connection.connect(str(path))
        except OSError as error:
            raise Unreachable(f"{path}: {error}") from error
        yield connection
