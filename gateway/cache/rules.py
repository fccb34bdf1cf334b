"""What RFC 9111 allows: which answers may be stored, for which callers, and for how long. Pure functions; no I/O, no clock.

Stricter than the RFC in four things: an answer is stored only with an explicit lifetime; `no-cache` is not stored at all; a request
with a cookie or an API key is passed by; and what says neither `public` nor `s-maxage` is for the subject of a token, or not stored.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from werkzeug.http import parse_date, parse_etags, parse_list_header, unquote_etag, unquote_header_value

from gateway.model import Headers, first

# Ref: RFC 9111, section 4.2.2: without `public` these need an explicit lifetime; ours always do.
STORABLE = frozenset({200, 301, 308, 404})
MAX_S = 86_400.0
MAX_VARY = 5
_NUMBER = re.compile(r"[0-9]{1,12}", re.ASCII)
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]{1,60}", re.ASCII)

# A request with one of these is not for a stored answer: parts of one, or conditions that the service must judge; or credentials
# that prove no subject here, though the answer may be made from them, whatever it says of itself.
_NOT_OURS = ("range", "if-match", "if-unmodified-since", "if-range", "upgrade", "cookie", "x-api-key")
# What the cache says of its own, or what belongs to one exchange or one instance.
NOT_STORED = frozenset(
    {
        "age",
        "authentication-info",
        "connection",
        "content-length",
        "date",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authentication-info",
        "ratelimit",
        "ratelimit-policy",
        "retry-after",
        "server-timing",
        "set-cookie",
        "traceparent",
        "transfer-encoding",
        "x-cache",
        "x-request-id",
        "x-served-by",
        "x-served-lane",
        "x-stale-age",
    }
)

Directives = Mapping[str, str]
Scope = Literal["public", "subject"]
Seconds = Annotated[float, Field(ge=0, le=MAX_S)]


class PartPolicy(BaseModel):
    """How long a part of a composed answer may be used without asking again, as declarations say it. Seconds: `ttl_s` fresh, then for
    `stale_while_revalidate_s` while a new one is fetched, and for `stale_if_error_s` when that fails.

    `scope` `subject` keeps it for the caller (and these scopes of its token), `public` for all: then it is asked for without a token.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    ttl_s: Seconds
    stale_while_revalidate_s: Seconds = 0.0
    stale_if_error_s: Seconds = 0.0
    scope: Scope = "public"


@dataclass(frozen=True, slots=True)
class Lifetime:
    """Seconds from the moment an answer was made: `fresh_s`, then `swr_s` in which it is given while a new one is fetched, or
    `sie_s` in which it is given when asking failed."""

    fresh_s: float
    swr_s: float = 0.0
    sie_s: float = 0.0

    @property
    def kept_s(self) -> float:
        return self.fresh_s + max(self.swr_s, self.sie_s)


@dataclass(frozen=True, slots=True)
class Verdict:
    """How an answer may be stored: for every caller (`shared`) or its own alone; `vary` are the request's headers that it depends on."""

    lifetime: Lifetime
    shared: bool
    vary: tuple[str, ...] = ()


@lru_cache(maxsize=512)
def directives(*values: str) -> Directives:
    """Cache-Control, by all its lines, as directives in lower case with their arguments; of a repeated one the first.

    What cannot be read says `no-store`: something against storing may stand in it.
    """
    found: dict[str, str] = {}
    for value in values:
        if value.replace('\\"', "").count('"') % 2:
            found["no-store"] = ""
        for item in parse_list_header(value.lower()):
            name, _, argument = item.partition("=")
            if not _NAME.fullmatch(name):
                name = "no-store"
            found.setdefault(name, unquote_header_value(argument))
    return MappingProxyType(found)


def seconds(given: Directives, name: str, most_s: float = MAX_S) -> float | None:
    """A directive's number of seconds, None without the directive. An invalid number counts as 0."""
    text = given.get(name)
    if text is None:
        return None
    return min(float(text), most_s) if _NUMBER.fullmatch(text) else 0.0


def values(headers: Headers, name: str) -> list[str]:
    """All values of a header; `name` in lower case."""
    return [value for key, value in headers if key.lower() == name]


def most_age_s(headers: Mapping[str, str]) -> float | None:
    """How old a stored answer may be for a request with these headers (lower-case names), in seconds; None: none may be given."""
    if any(name in headers for name in _NOT_OURS) or "text/event-stream" in headers.get("accept", ""):
        return None
    control = headers.get("cache-control")
    if control is None:
        return 0.0 if "no-cache" in headers.get("pragma", "").lower() else math.inf
    given = directives(control)
    if "no-store" in given:
        return None
    most_s = 0.0 if "no-cache" in given else seconds(given, "max-age")
    return math.inf if most_s is None else most_s


def client_has(asked: Mapping[str, str], headers: Headers) -> bool:
    """Whether a request's conditions name the state that these headers of its answer describe. Ref: RFC 9110, section 13.2.2.

    `W/` is passed over: HAProxy makes a strong entity tag weak when it compresses an answer.
    """
    known = asked.get("if-none-match")
    if known is not None:
        tag, _ = unquote_etag(first(headers, "etag"))
        return tag is not None and parse_etags(known).contains_weak(tag)
    since, changed = parse_date(asked.get("if-modified-since")), parse_date(first(headers, "last-modified"))
    return since is not None and changed is not None and changed <= since


def verdict(status: int, headers: Headers, *, subject: bool, sie_s: float = 0.0) -> Verdict | None:
    """Whether and how the answer to a GET may be stored; None: not at all.

    `subject`: the request's token proved one. `sie_s` is what an answer that says nothing of stale-if-error gets.
    """
    if status not in STORABLE or values(headers, "set-cookie") or values(headers, "content-range"):
        return None
    given = directives(*values(headers, "cache-control"))
    if "no-store" in given or "no-cache" in given:
        return None
    varied = _vary(headers)
    if varied is None:
        return None
    vary, by_token = varied
    shared = _shared(given, by_token)
    if not shared and not subject:
        return None
    lifetime = _lifetime(given, shared=shared, sie_s=sie_s)
    return Verdict(lifetime, shared, vary) if lifetime is not None else None


def _shared(given: Directives, by_token: bool) -> bool:
    """Whether every caller may have it. Ref: RFC 9111, sections 3.5 and 5.2.2.7."""
    return not by_token and "private" not in given and ("public" in given or "s-maxage" in given)


def _vary(headers: Headers) -> tuple[tuple[str, ...], bool] | None:
    """The request's headers on which the answer depends, and whether its token is one; None where nothing could match again."""
    names = {name.strip().lower() for value in values(headers, "vary") for name in value.split(",")} - {""}
    if values(headers, "content-encoding"):
        names.add("accept-encoding")
    by_token = "authorization" in names
    names.discard("authorization")
    if names & {"*", "cookie", "x-api-key"} or len(names) > MAX_VARY:
        return None
    if not all(_NAME.fullmatch(name) for name in names):
        return None
    return tuple(sorted(names)), by_token


def _lifetime(given: Directives, *, shared: bool, sie_s: float) -> Lifetime | None:
    s_maxage = seconds(given, "s-maxage") if shared else None
    fresh_s = s_maxage if s_maxage is not None else seconds(given, "max-age")
    if fresh_s is None:
        return None
    if "must-revalidate" in given or "proxy-revalidate" in given:
        lifetime = Lifetime(fresh_s)
    else:
        said_s = seconds(given, "stale-if-error")
        # Ref: RFC 9111, section 5.2.2.10: s-maxage forbids what it does not allow by name.
        sie_s = said_s if said_s is not None else 0.0 if s_maxage is not None else sie_s
        lifetime = Lifetime(fresh_s, seconds(given, "stale-while-revalidate") or 0.0, sie_s)
    return lifetime if lifetime.fresh_s or lifetime.swr_s else None


def part_verdict(policy: PartPolicy, status: int, headers: Headers, *, subject: bool) -> Verdict | None:
    """How the answer to a part may be stored: as its policy says, but never against what the service forbids."""
    given = directives(*values(headers, "cache-control"))
    shared = policy.scope == "public"
    if status != 200 or "no-store" in given or values(headers, "set-cookie") or not policy.ttl_s:
        return None
    if (shared and "private" in given) or (not shared and not subject):
        return None
    varied = _vary(headers)
    if varied is None or (shared and varied[1]):
        return None
    lifetime = Lifetime(policy.ttl_s, policy.stale_while_revalidate_s, policy.stale_if_error_s)
    return Verdict(lifetime, shared)


def initial_age_s(headers: Headers) -> float:
    """How old the answer was when it came: what caches on its way say."""
    found = values(headers, "age")
    return min(float(found[0]), MAX_S) if found and _NUMBER.fullmatch(found[0]) else 0.0


def stored_headers(headers: Headers) -> Headers:
    """The headers that are stored with an answer."""
    named = {name.strip().lower() for value in values(headers, "connection") for name in value.split(",")}
    return [
        (name, value)
        for name, value in headers
        if (lower := name.lower()) not in NOT_STORED and lower not in named
    ]


def refreshed(headers: Headers, newer: Headers) -> Headers:
    """Stored headers with those of a 304 in their place. Ref: RFC 9111, section 3.2."""
    news = [
        pair for pair in stored_headers(newer) if pair[0].lower() not in ("content-encoding", "content-type")
    ]
    names = {name.lower() for name, _ in news}
    return [*(pair for pair in headers if pair[0].lower() not in names), *news]
