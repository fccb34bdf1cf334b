"""From parts to one answer: its bytes, how long it may be kept, and by which caches."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pydantic_core import to_json
from werkzeug.http import generate_etag, quote_etag

from gateway.cache.rules import client_has, directives, seconds
from gateway.compose.result import Result
from gateway.errors import PartFailed
from gateway.model import Answer, Headers, Incoming

JSON = "application/json"
NO_STORE = "no-store"
_SAFE_VALUE = re.compile(r"[\x20-\x7e]{1,500}")
MAX_AGE_S = 31_536_000


def problem(needed: Result, results: Sequence[Result]) -> PartFailed:
    """The answer that there is in place of one that misses a part it needs."""
    headers = []
    challenge = needed.header("www-authenticate")
    if needed.upstream_status == 401 and challenge is not None and _SAFE_VALUE.fullmatch(challenge):
        headers.append(("WWW-Authenticate", challenge))
    retry_after = needed.header("retry-after") or ""
    if needed.answer_status in (429, 503) and re.fullmatch(r"[0-9]{1,5}", retry_after, re.ASCII):
        headers.append(("Retry-After", retry_after))
    error = PartFailed(
        needed.answer_status,
        f"The part {needed.name!r}, from {needed.service}, is needed: {needed.reason}.",
        service=needed.service,
        headers=headers,
        members={"part": needed.name, "parts": {each.name: each.describe() for each in results}},
        retry_after_s=needed.retry_after_s,
    )
    error.attempts = needed.attempts
    return error


def whole(incoming: Incoming, results: Sequence[Result], *, personal: bool, vary: Sequence[str]) -> Answer:
    """The answer of usable and of optional parts. `personal`: it depends on the caller's token, whatever the parts say.

    Its entity tag is weak, and about the parts' data alone: the same data from another instance is the same answer.
    """
    missing = [each.name for each in results if each.state in _INCOMPLETE or not each.usable]
    text = b",".join([b'"%s":%s' % (each.name.encode(), each.data or b"null") for each in results])
    headers: Headers = [("Content-Type", JSON)]
    if missing:
        headers.append(("X-Incomplete", ", ".join(missing)))
    stale_s = [each.age_s for each in results if each.state == "stale"]
    if stale_s:
        headers.append(("X-Stale-Age", str(max(stale_s))))
    asked = [each.cached for each in results if each.cached is not None]
    if asked:
        headers.append(
            ("X-Cache", next((name for name in ("STALE", "MISS", "BYPASS") if name in asked), asked[0]))
        )
    attempts = sum(each.attempts for each in results)
    if missing or stale_s:
        headers.append(("Cache-Control", NO_STORE))
    else:
        control = strictest(
            [(each.header("cache-control"), each.age_s) for each in results], personal=personal
        )
        headers.append(("Cache-Control", control))
        varies = varied([each.header("vary") for each in results], vary)
        if varies:
            headers.append(("Vary", varies))
        if control != NO_STORE:
            headers.append(("ETag", quote_etag(generate_etag(text), weak=True)))
            if client_has(incoming.headers, headers):
                return Answer(304, headers, b"", attempts=attempts)
    parts = to_json({each.name: each.describe() for each in results})
    complete = b"false" if missing else b"true"
    body = b'{%s,"_complete":%s,"_parts":%s}\n' % (text, complete, parts)
    return Answer(200, headers, body, attempts=attempts)


_INCOMPLETE = frozenset({"fallback"})


def strictest(parts: Sequence[tuple[str | None, int]], *, personal: bool) -> str:
    """The Cache-Control that holds for all: of each part what it said (None: nothing), and its age in seconds.

    A part that says nothing may not be kept without asking. Public only if all are, max-age the least that is left.
    """
    public, must_ask = not personal, False
    ages: list[float] = []
    shared: list[float] = []
    for value, age_s in parts:
        given = directives(value or "")
        if NO_STORE in given:
            return NO_STORE
        public = public and "public" in given and "private" not in given
        max_age = seconds(given, "max-age", MAX_AGE_S)
        s_maxage = seconds(given, "s-maxage", MAX_AGE_S)
        must_ask = must_ask or "no-cache" in given or max_age is None
        ages.append(max(0, (max_age or 0) - age_s))
        shared.append(max(0, (s_maxage if s_maxage is not None else max_age or 0) - age_s))
    said = ["public" if public else "private"]
    if must_ask:
        return ", ".join([*said, "no-cache"])
    said.append(f"max-age={min(ages):.0f}")
    if public and min(shared) != min(ages):
        said.append(f"s-maxage={min(shared):.0f}")
    return ", ".join(said)


def shared_s(answer: Answer, known: Sequence[str]) -> float:
    """How long every caller may have this answer, 0 for not at all: not if it varies by other headers than those `known`."""
    given = directives(answer.header("cache-control") or "")
    if "public" not in given or "no-cache" in given:
        return 0.0
    vary = answer.header("vary")
    if vary is not None and not set(vary.split(", ")) <= set(known):
        return 0.0
    shared = seconds(given, "s-maxage")
    return shared if shared is not None else seconds(given, "max-age") or 0.0


def asks_anew(value: str | None) -> bool:
    """Whether a request's Cache-Control asks for nothing that was kept."""
    given = directives(value or "")
    return "no-cache" in given or "no-store" in given or given.get("max-age") == "0"


def varied(values: Sequence[str | None], passed: Sequence[str]) -> str:
    """The Vary of the whole: what its parts name and what was passed on to them; encodings are not the parts' affair."""
    names = {name.strip().lower() for value in values if value for name in value.split(",")} | set(passed)
    if "*" in names:
        return "*"
    kept = (name for name in names if re.fullmatch(r"[a-z0-9-]{1,60}", name))
    return ", ".join(sorted(name for name in kept if name != "accept-encoding"))
