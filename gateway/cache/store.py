"""The shared layer: answers in Redis, the leases to load them, and the changes that end them.

Every answer carries the version of its path: an epoch, and the words of the buckets that its path and its prefixes fall into
(`services.kit.stale.stored_form`). A change sets a new word, so that what was loaded before it, or is being loaded by another
instance, is valid no more, whatever its key: nothing has to be found and deleted. A lost hash of versions has a new epoch.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from redis import Redis

from gateway.cache.key import Names, Spec, Variant, read_spec
from services.kit.redis_client import Away, Circuit, is_refusal
from services.kit.stale import stored_form
from services.kit.stale.stored_form import Change, StaleName
from services.kit.stale.writer import forget, note_changes

# The kit keeps bodies of up to 256 KiB; the rest is for the head.
MAX_STALE_BYTES = 512 * 1024

# One that is not kept up ends. The link's thread keeps it up four times in this time.
LEASE_MS = 1000
# The time of one load. A lease is not kept up for longer, and what waits for another's load tries by itself after it.
LOAD_S = 5.0

# A key that holds no string, and a word that is too long, are mischief: they are deleted.
_FETCH = """
local function text(key)
  local value = redis.pcall('GET', key)
  if type(value) == 'table' then redis.pcall('DEL', key) return false end
  return value
end
local words = redis.pcall('HMGET', KEYS[1], 'e', unpack(ARGV, 4))
if words.err then redis.pcall('DEL', KEYS[1]) words = {false} end
for i = 1, #ARGV - 2 do
  if words[i] and #words[i] > 64 then redis.pcall('DEL', KEYS[1]) words = {false} break end
end
if not words[1] then
  local made = redis.pcall('HSET', KEYS[1], 'e', ARGV[1])
  if type(made) == 'table' then return {false, false, false, -1, made.err} end
  words[1] = ARGV[1]
end
for i = 1, #ARGV - 2 do words[i] = words[i] or '-' end
local version = table.concat(words, '.')
local spec = text(KEYS[2])
if spec and spec ~= ARGV[3] then return {version, spec, false, 0, false} end
local value = text(KEYS[3])
if value or ARGV[2] == '0' then return {version, spec, value, 0, false} end
local leased = redis.pcall('SET', KEYS[4], ARGV[1], 'NX', 'PX', ARGV[2])
if type(leased) == 'table' and leased.err then return {version, spec, false, -1, leased.err} end
return {version, spec, false, leased and 1 or 0, false}
"""
_STORE = """
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[4])
redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[4])
if redis.call('GET', KEYS[3]) == ARGV[1] then redis.call('DEL', KEYS[3]) end
return 1
"""
_LEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return 1 end
return redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) and 1 or 0
"""
# A service writes its own: one that has gone mad must not keep the gateway busy for the others.
_STALE = """
local found, names = {}, #KEYS - 1
for i = 1, names do
  local size = redis.pcall('HSTRLEN', KEYS[i], ARGV[i + 2])
  found[i] = type(size) == 'number' and size <= tonumber(ARGV[1]) and redis.call('HGET', KEYS[i], ARGV[i + 2])
end
local words = redis.pcall('HMGET', KEYS[names + 1], unpack(ARGV, names + 3))
for i, word in ipairs(words.err and {} or words) do
  found[names + i] = word and string.sub(word, 1, tonumber(ARGV[2]))
end
return found
"""
# Those of the leases that still are the caller's are kept up.
_KEEP_UP = """
for i, key in ipairs(KEYS) do
  if redis.pcall('GET', key) == ARGV[i + 1] then redis.call('PEXPIRE', key, ARGV[1]) end
end
"""
_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


class Leases:
    """This process's leases in Redis: the one that has a lease loads an answer, and the other processes wait for it. Thread-safe.

    By their keys in Redis, each with the token that proves it. A lease is short and kept up while its load lasts, so that nothing
    waits for long for a process that has died, or for one that Redis answered too late.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._held: dict[str, tuple[str, float]] = {}
        self._script = Redis().register_script(_KEEP_UP)  # opens nothing

    def take(self, key: str, token: str) -> None:
        """It is ours now, and kept up until it is given back."""
        with self._lock:
            self._held[key] = (token, self._monotonic() + LOAD_S)

    def give_back(self, key: str, token: str) -> None:
        """Ours no more."""
        with self._lock:
            if self._held.get(key, ("", 0.0))[0] == token:
                del self._held[key]

    def keep_up(self, redis: Redis) -> None:
        """Keep up what is held; asks Redis nothing where nothing is. Raises RedisError."""
        now = self._monotonic()
        with self._lock:
            self._held = {key: each for key, each in self._held.items() if now < each[1]}
            held = {key: token for key, (token, _) in self._held.items()}
        if held:
            self._script([*held], [LEASE_MS, *held.values()], client=redis)


@dataclass(frozen=True, slots=True)
class Fetched:
    """What Redis knows: `version` of the path now (empty: it could not say), a `spec` where it is another than was assumed,
    the stored bytes, and whether the caller has the lease (None: it could not be asked for)."""

    version: str
    spec: Spec | None
    data: bytes | None
    leased: bool | None


class Store:
    """One group's answers in Redis. Thread-safe. Methods raise Away, but for those that say that they do not."""

    def __init__(self, circuit: Circuit, names: Names, leases: Leases) -> None:
        self._circuit = circuit
        self._names = names
        self._leases = leases
        loader = Redis()  # opens nothing: a script asks it for the encoding
        self._fetch = loader.register_script(_FETCH)
        self._store = loader.register_script(_STORE)
        self._lease = loader.register_script(_LEASE)
        self._release = loader.register_script(_RELEASE)
        self._stale = loader.register_script(_STALE)

    def fetch(self, variant: Variant, text: str, spec: Spec, token: str, *, lease: bool) -> Fetched:
        """What is stored of a variant (`text` is its text), in one round trip; with `lease`, also the lease where nothing is."""
        base = variant.base
        key = self._names.lease(text)
        keys = [stored_form.versions_key(base.service), self._names.spec(base), self._names.entry(text), key]
        words = stored_form.buckets(stored_form.plain_path(base.path))
        arguments: list[str | bytes | int] = [token, LEASE_MS if lease else 0, spec.text(), *words]

        def ask(redis: Redis) -> Any:
            *found, refusal = self._fetch(keys, arguments, client=redis)
            if refusal and is_refusal(refusal.decode("latin-1")):
                raise Away(refusal.decode("latin-1"))
            return found

        version, spec_text, data, leased = self._circuit.run(ask)
        if leased == 1:
            self._leases.take(key, token)
        known = version.decode("latin-1") if version else ""
        other = read_spec(spec_text) if spec_text else spec
        if other is None:
            return Fetched(known, None, None, None)  # not ours; the next answer stored puts it right
        return Fetched(known, other if other != spec else None, data, bool(leased) if leased >= 0 else None)

    def lease(self, text: str, token: str) -> bool:
        """Whether the caller may load the variant: it has its lease, or gets it."""
        key = self._names.lease(text)
        leased = bool(self._circuit.run(lambda r: self._lease([key], [token, LEASE_MS], client=r)))
        if leased:
            self._leases.take(key, token)
        return leased

    def save(self, variant: Variant, text: str, spec: Spec, data: bytes, token: str, kept_s: float) -> bool:
        """Store an answer and give the lease back; False where Redis did not take it. Does not raise."""
        key = self._names.lease(text)
        keys = [self._names.entry(text), self._names.spec(variant.base), key]
        arguments: list[str | bytes | int] = [token, data, spec.text(), max(1, int(kept_s * 1000))]
        try:
            self._circuit.run(lambda r: self._store(keys, arguments, client=r))
        except Away:
            self.release(text, token)
            return False
        self._leases.give_back(key, token)
        return True

    def release(self, text: str, token: str) -> None:
        """Give the lease back, where it is still the caller's. Does not raise."""
        key = self._names.lease(text)
        self._leases.give_back(key, token)
        with contextlib.suppress(Away):
            self._circuit.run(lambda r: self._release([key], [token], client=r))

    def change(self, service: str, changes: Sequence[Change]) -> None:
        """End what is stored of the changes' paths, and publish it to all gateways."""
        self._circuit.run(lambda r: note_changes(r, service, changes))

    def forget_stale(self, service: str, path: str) -> None:
        """Delete the last good answers of a plain path that are for every caller, and keep out those on their way."""
        key = stored_form.public_key(service, path)
        self._circuit.run(lambda r: forget(r, key))

    def stale(self, service: str, path: str, names: Sequence[StaleName]) -> tuple[list[bytes | None], float]:
        """The sealed last good answers of a plain path under these names (None also for one that is too long to be one), and
        when the path was last removed, in Unix time; 0 for never."""
        keys = [*(name.key for name in names), stored_form.versions_key(service)]
        arguments: list[str | bytes | int] = [
            MAX_STALE_BYTES,
            stored_form.TIME_CHARS + 1,
            *(name.slot for name in names),
            *stored_form.removals(path),
        ]
        found: Any = self._circuit.run(lambda r: self._stale(keys, arguments, client=r))
        values = [each if isinstance(each, bytes) else None for each in found]
        return values[: len(names)], max(map(stored_form.said_at, values[len(names) :]), default=0.0)


def token() -> str:
    """A word that nothing else has."""
    return secrets.token_hex(8)
