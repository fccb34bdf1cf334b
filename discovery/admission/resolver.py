"""The addresses behind host names, from memory: looked up again and again in the background. The last good answer stays."""

from __future__ import annotations

import ipaddress
import re
import socket
import threading
from collections.abc import Callable, Iterable
from queue import SimpleQueue

import structlog

log = structlog.get_logger(__name__)

# Docker's names have `_`. The last label is no number: `127.1` and `0177.0.0.1` are addresses to some.
_HOST = re.compile(r"(?=.{1,253}$)(?:[A-Za-z0-9_-]{1,63}\.)*(?=[^.]*[A-Za-z_-])[A-Za-z0-9_-]{1,63}")
MAX_HOSTS = 1000
EVERY_S = 5.0
# A name that hangs (glibc waits ten seconds and more) holds up one of these and not the others.
THREADS = 4


def is_host(value: str) -> bool:
    """Whether it has the form of a host name, and not of an address."""
    return _HOST.fullmatch(value) is not None


def system_addresses(host: str) -> tuple[str, ...]:
    """What the machine's resolver answers, IPv4 first. Raises OSError."""
    found = {info[4][0] for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    addresses = sorted(map(ipaddress.ip_address, map(str, found)), key=lambda each: (each.version, int(each)))
    return tuple(map(str, addresses))


class Resolver:
    """Looks up the names that it follows every `every_s`, on threads of its own. Thread-safe; asking never waits."""

    def __init__(
        self, resolve: Callable[[str], tuple[str, ...]] = system_addresses, every_s: float = EVERY_S
    ) -> None:
        self._resolve = resolve
        self._every_s = every_s
        self._moved = threading.Condition()
        self._wake = threading.Event()
        self._due: SimpleQueue[str] = SimpleQueue()
        self._started = False
        self._hosts: frozenset[str] = frozenset()
        self._known: dict[str, tuple[str, ...]] = {}
        self._busy: set[str] = set()
        self._failing: set[str] = set()
        self._changed: set[str] = set()

    def follow(self, hosts: Iterable[str]) -> None:
        """Look these up from now on, and no others; of more than MAX_HOSTS, those that are followed already first."""
        with self._moved:
            wanted = sorted(hosts, key=lambda host: (host not in self._hosts, host))[:MAX_HOSTS]
            if self._hosts == frozenset(wanted):
                return
            self._hosts = frozenset(wanted)
            self._known = {host: known for host, known in self._known.items() if host in self._hosts}
            self._failing &= self._hosts
            if not self._started:
                self._started = True
                threading.Thread(target=self._run, name="resolver", daemon=True).start()
                for _ in range(THREADS):
                    threading.Thread(target=self._work, name="resolve", daemon=True).start()
        self._wake.set()

    def wait(self, timeout_s: float) -> None:
        """Until each name has been looked up once, but no longer than this."""
        with self._moved:
            self._moved.wait_for(lambda: self._hosts <= self._known.keys() | self._failing, timeout_s)

    def addresses(self, host: str) -> tuple[str, ...]:
        """The last good answer; empty while there is none."""
        return self._known.get(host, ())

    @property
    def changed(self) -> bool:
        """Whether `take_changed` has something to answer."""
        return bool(self._changed)

    def take_changed(self) -> set[str]:
        """Names whose addresses have changed since the last call."""
        with self._moved:
            changed, self._changed = self._changed, set()
            return changed

    def _run(self) -> None:
        while True:
            with self._moved:
                due = self._hosts - self._busy
                self._busy |= due
            for host in sorted(due):
                self._due.put(host)
            self._wake.wait(self._every_s)
            self._wake.clear()

    def _work(self) -> None:
        while True:
            host = self._due.get()
            found: tuple[str, ...] = ()
            error = "no address"
            try:
                found = self._resolve(host)
            except Exception as failed:  # no name may end the thread
                error = repr(failed)
            self._learn(host, found, error)

    def _learn(self, host: str, found: tuple[str, ...], error: str) -> None:
        with self._moved:
            self._busy.discard(host)
            fails_anew = not found and host not in self._failing
            if found:
                self._failing.discard(host)
            elif host in self._hosts:
                self._failing.add(host)
            if found and host in self._hosts and found != self._known.get(host):
                self._known[host] = found
                self._changed.add(host)
            self._moved.notify_all()
        if fails_anew:
            log.warning("host name not resolved, its last address stands", host=host, error=error)
