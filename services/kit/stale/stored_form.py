"""Stored answers in Redis: under which names, and in which form. Services write theirs (`stale`), gateways read them.

    stale:<service>:p:<path>      hash, slot → sealed answer for every caller
    stale:<service>:s:<subject>   hash, slot → sealed answer for that subject alone
    stale:<service>:g:…           gone: nothing may be kept under that name for a while
    stale:<service>:versions      hash, bucket → a word that changes when what is stored of these paths holds no more
    stale:<service>:changed       channel, where every such change is published

A service may touch what bears its own name, the gateways all of it. Paths are *plain* here: decoded, as WSGI's PATH_INFO has them.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, quote, unquote

from pydantic_core import from_json, to_json

MAGIC = b"BW2"
_DIGEST_BYTES = 16

MAX_PATH_CHARS = 2048
MAX_QUERY_CHARS = 2048
MAX_PARAMETERS = 50
# Answers kept of one path, or of one subject: ever new queries displace the ones before.
SLOTS = 64

BUCKETS = 4096
# Prefixes longer than this many segments are shortened to it: more is forgotten, never less.
MAX_SEGMENTS = 8

Headers = list[tuple[str, str]]


def plain_path(path: str) -> str:
    """A percent-encoded path as WSGI's PATH_INFO: each character one byte."""
    return unquote(path, "latin-1") if "%" in path else path


def normal_query(query: str) -> str | None:
    """One text for all spellings of a query: decoded, ordered by name (not within one name). None for one too long."""
    if not query:
        return ""
    if len(query) > MAX_QUERY_CHARS:
        return None
    try:
        pairs = parse_qsl(query, keep_blank_values=True, encoding="latin-1", max_num_fields=MAX_PARAMETERS)
    except ValueError:
        return None
    return to_json(sorted(pairs, key=lambda pair: pair[0])).decode() if pairs else ""


def digest(*parts: str) -> str:
    """32 hexadecimal digits for what may be long, or hold anything."""
    return hashlib.blake2b(to_json(parts), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class StaleName:
    """Where one stored answer is: a hash's key and a field of it. `whole` says it in full, and is sealed with the answer."""

    key: str
    slot: str
    whole: str


def stale_name(service: str, path: str, query: str, subject: str | None) -> StaleName | None:
    """The name for a plain path and a query as it came; with a subject, of what is its alone. None for one too long."""
    normal = normal_query(query)
    if normal is None or len(path) > MAX_PATH_CHARS:
        return None
    whole = to_json([service, path, normal, subject]).decode()
    if subject is not None:
        return StaleName(subject_key(service, subject), str(_crc(whole) % SLOTS), whole)
    # The plain list keeps its place, however many filters are tried.
    slot = 1 + _crc(normal) % (SLOTS - 1) if normal else 0
    return StaleName(public_key(service, path), str(slot), whole)


def public_key(service: str, path: str) -> str:
    return f"stale:{service}:p:{digest(path)}"


def subject_key(service: str, subject: str) -> str:
    return f"stale:{service}:s:{digest(subject)}"


def gone_key(key: str) -> str:
    """The mark that keeps answers away that were on their way when their path or subject was forgotten."""
    service, _, rest = key.removeprefix("stale:").partition(":")
    return f"stale:{service}:g:{rest}"


def _crc(text: str) -> int:
    return zlib.crc32(text.encode("utf-8", "surrogatepass"))


# -- the form


def seal(name: str, head: Mapping[str, Any], body: bytes) -> bytes:
    """An answer as bytes that show when they are damaged, or stand under another name than `name`."""
    # JSON holds no line break: the first one ends the head.
    content = to_json(head) + b"\n" + body
    return MAGIC + _checksum(name, content) + content


def unseal(name: str, data: bytes) -> tuple[dict[str, Any], bytes] | None:
    """Head and body of what was sealed under `name`; None for anything else."""
    start = len(MAGIC) + _DIGEST_BYTES
    content = data[start:]
    if data[:start] != MAGIC + _checksum(name, content):
        return None
    encoded, _, body = content.partition(b"\n")
    try:
        head = from_json(encoded)
    except ValueError:
        return None
    return (head, body) if isinstance(head, dict) else None


def _checksum(name: str, content: bytes) -> bytes:
    named = name.encode("utf-8", "surrogatepass")
    found = hashlib.blake2b(len(named).to_bytes(4, "big") + named, digest_size=_DIGEST_BYTES)
    found.update(content)
    return found.digest()


def headers_of(stored: object) -> Headers:
    """Headers from a sealed head. Raises ValueError for what could not be sent."""
    if not isinstance(stored, list):
        raise ValueError("no headers")
    found: Headers = []
    for pair in stored:
        name, value = pair
        if not isinstance(name, str) or not isinstance(value, str) or not name:
            raise ValueError("no header")
        if any(c in name + value for c in "\r\n\0"):
            raise ValueError("a header of several lines")
        found.append((name, value))
    return found


# -- what holds no more


def versions_key(service: str) -> str:
    return f"stale:{service}:versions"


def changed_channel(service: str) -> str:
    return f"stale:{service}:changed"


CHANGED_PATTERN = "stale:*"


def service_of_channel(channel: str) -> str | None:
    """The service that publishes on a channel: it may do so on its own only."""
    parts = channel.split(":")
    return parts[1] if len(parts) == 3 and parts[0] == "stale" and parts[2] == "changed" else None


# As a word's beginning says the time, in milliseconds and hexadecimal.
TIME_CHARS = 11


def word(now: float) -> str:
    """A new word for the versions: no other is equal, and it says when (Unix time) what was stored held no more."""
    return f"{int(now * 1000):0{TIME_CHARS}x}-{secrets.token_hex(6)}"


def said_at(word: bytes | None) -> float:
    """When a word was made, by its first `TIME_CHARS` + 1 bytes. 0 for anything else."""
    if word is None or word[TIME_CHARS : TIME_CHARS + 1] != b"-":
        return 0.0
    try:
        return int(word[:TIME_CHARS], 16) / 1000
    except ValueError:
        return 0.0


def bucket(path: str, *, prefix: bool) -> str:
    """The field of the versions that changes with this plain path, or with this prefix."""
    return f"{'p' if prefix else 'x'}{_crc(short_prefix(path) if prefix else path) % BUCKETS}"


def buckets(path: str) -> list[str]:
    """The fields on which what is stored of this plain path depends: its own, and one for each prefix."""
    return [bucket(path, prefix=False), *removals(path)]


def removals(path: str) -> list[str]:
    """The fields that change when this plain path, or one above it, is gone with all below it."""
    return [bucket(each, prefix=True) for each in prefixes(path)]


def prefixes(path: str) -> Iterator[str]:
    """`/`, `/a`, `/a/b` … of a plain path, itself included: the first `MAX_SEGMENTS`."""
    parts = path.split("/")[: MAX_SEGMENTS + 1]
    yield "/"
    for end in range(2, len(parts) + 1):
        yield "/".join(parts[:end])


def short_prefix(path: str) -> str:
    """A prefix as `prefixes` gives it."""
    return "/".join(path.rstrip("/").split("/")[: MAX_SEGMENTS + 1]) or "/"


@dataclass(frozen=True, slots=True)
class Change:
    """What is stored of a plain path holds no more; with `prefix` also of all below it. `noted`: the versions say it already."""

    path: str
    prefix: bool = False
    noted: bool = True

    def covers(self, path: str) -> bool:
        if not self.prefix:
            return path == self.path
        top = short_prefix(self.path)
        return path == top or path.startswith("/" if top == "/" else f"{top}/")

    def message(self) -> str:
        """As it is published: `path` percent-encoded."""
        path = quote(self.path.encode("latin-1", "replace"), safe="/-._~!$&'()*+,;=:@")
        return json.dumps({"path": path, "prefix": self.prefix, "noted": self.noted})


def read_change(data: bytes) -> Change | None:
    """A published change. Any program may publish one: `{"path": "/api/x/1"}`, or with `"prefix": true`."""
    try:
        found = from_json(data)
    except ValueError:
        return None
    if not isinstance(found, dict) or not isinstance(path := found.get("path"), str):
        return None
    if not path.startswith("/") or len(path) > 4 * MAX_PATH_CHARS:
        return None
    try:
        plain = plain_path(path.encode("utf-8").decode("latin-1") if not path.isascii() else path)
    except UnicodeError:
        return None
    return Change(plain, found.get("prefix") is True, found.get("noted") is True)
