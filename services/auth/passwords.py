"""Argon2id, a bounded number at a time.

One hash holds 64 MiB and a core for about 0.14 s at the library's defaults: unbounded, a hundred logins at once are
6 GiB and a dead machine. `Hasher` runs `slots` of them and turns the rest away at once, with `Saturated`.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import argon2
from argon2.exceptions import InvalidHashError, VerificationError, VerifyMismatchError

T = TypeVar("T")


class Saturated(Exception):
    """Every slot was taken for the whole wait. `retry_after_s` is when it is worth asking again."""

    def __init__(self, retry_after_s: int = 1) -> None:
        self.retry_after_s = retry_after_s
        super().__init__("all password hashing slots are taken")


@dataclass(frozen=True, slots=True)
class Cost:
    """Argon2's parameters; None takes the library's default (RFC 9106, low-memory profile)."""

    time: int = argon2.DEFAULT_TIME_COST
    memory_kib: int = argon2.DEFAULT_MEMORY_COST
    lanes: int = argon2.DEFAULT_PARALLELISM


class Hasher:
    """Hash and verify under a bound shared by all threads of this process.

    `slots` hashes run at once; as many callers again wait for one, `wait_s` at most; the others get Saturated at once, so
    that there is always a thread left for what needs no hash. Work happens inside `with hasher.slot():`, so that what
    surrounds a hash (a look at the lockout) is under the same bound.
    """

    def __init__(self, cost: Cost, *, slots: int, wait_s: float) -> None:
        self._argon2 = argon2.PasswordHasher(
            time_cost=cost.time, memory_cost=cost.memory_kib, parallelism=cost.lanes
        )
        # The password of no account, at today's cost; made now, for a first login must not take longer than the next.
        self._decoy = self._argon2.hash(secrets.token_hex(16))
        self._slots = threading.BoundedSemaphore(slots)
        self._admitted = threading.BoundedSemaphore(slots * 2)
        self._wait_s = wait_s

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Hold one slot. Raises Saturated when none comes free in time, or too many are waiting already."""
        if not self._admitted.acquire(blocking=False):
            raise Saturated
        try:
            if not self._slots.acquire(timeout=self._wait_s):
                raise Saturated
            try:
                yield
            finally:
                self._slots.release()
        finally:
            self._admitted.release()

    def hash(self, password: str) -> str:
        """The encoded hash, with its salt and parameters. Call it inside a slot."""
        return off_loop(lambda: self._argon2.hash(password))

    def verify(self, password_hash: str | None, password: str) -> bool:
        """Whether the password fits. With no hash it costs the same and answers False: the time does
        not tell whether an account exists. Call it inside a slot."""
        try:
            fits = off_loop(lambda: self._argon2.verify(password_hash or self._decoy, password))
        except (VerifyMismatchError, VerificationError, InvalidHashError):
            return False
        return fits and password_hash is not None

    def outdated(self, password_hash: str) -> bool:
        """Whether the hash was made with other parameters than today's."""
        return self._argon2.check_needs_rehash(password_hash)


def off_loop(work: Callable[[], T]) -> T:
    """Run native code that takes long. argon2 releases the interpreter, which is enough among threads; under gevent
    it would stop every greenlet of the process, so there it goes to gevent's pool of real threads."""
    from gevent import get_hub, monkey

    if monkey.is_module_patched("threading"):
        result: T = get_hub().threadpool.apply(work)
        return result
    return work()
