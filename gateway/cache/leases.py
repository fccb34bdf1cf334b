"""The leases of this process in Redis: who has one loads an answer, and the other processes wait for it.

A lease is short and kept up while its load lasts, so that nobody waits for long for one who has died. One that was asked for and
never answered may stand in Redis without an owner: it is given back as soon as Redis answers again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from redis import Redis

# One that is not kept up ends. The link's thread keeps it up four times in this time.
LEASE_MS = 1000
# The time of one load. A lease is not kept up for longer, and who waits for another's load tries by himself after it.
LOAD_S = 5.0
# Without an owner, as far as is known; those beyond it end by themselves.
MAX_LOST = 1024

# Which of them still are the caller's: those are kept up, or with 0 given back.
_TEND = """
for i, key in ipairs(KEYS) do
  if redis.pcall('GET', key) == ARGV[i + 1] then
    if ARGV[1] == '0' then redis.call('DEL', key) else redis.call('PEXPIRE', key, ARGV[1]) end
  end
end
"""


class Leases:
    """By their keys in Redis, each with the token that proves it. Thread-safe."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._held: dict[str, tuple[str, float]] = {}
        self._lost: dict[str, str] = {}
        self._script = Redis().register_script(_TEND)  # opens nothing

    @property
    def idle(self) -> bool:
        """Whether there is nothing to tend."""
        return not self._held and not self._lost

    def taken(self, key: str, token: str) -> None:
        """It is ours now, and kept up until `returned`."""
        with self._lock:
            self._held[key] = (token, self._monotonic() + LOAD_S)

    def returned(self, key: str, token: str) -> None:
        """Ours no more."""
        with self._lock:
            if self._held.get(key, ("", 0.0))[0] == token:
                del self._held[key]

    def lost(self, key: str, token: str) -> None:
        """Redis has not answered: it may stand there, and nobody is at work."""
        self.returned(key, token)
        with self._lock:
            self._lost[key] = token
            while len(self._lost) > MAX_LOST:
                del self._lost[next(iter(self._lost))]

    def tend(self, redis: Redis) -> None:
        """Keep up what is held, give back what was lost. Raises RedisError."""
        now = self._monotonic()
        with self._lock:
            self._held = {key: each for key, each in self._held.items() if now < each[1]}
            held = {key: token for key, (token, _) in self._held.items()}
            lost = dict(self._lost)
        for leases, keep_ms in ((held, LEASE_MS), (lost, 0)):
            if leases:
                self._script([*leases], [keep_ms, *leases.values()], client=redis)
        with self._lock:
            for key, token in lost.items():
                if self._lost.get(key) == token:
                    del self._lost[key]
