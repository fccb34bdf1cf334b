"""What RFC 9111 lets a shared cache store, for which callers and for how long: by a table, and with malformed input."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.cache import PartPolicy
from gateway.cache.rules import (
    MAX_S,
    Lifetime,
    Verdict,
    directives,
    initial_age_s,
    most_age_s,
    part_verdict,
    refreshed,
    seconds,
    stored_headers,
    verdict,
)
from gateway.model import Headers


def judged(control: str | None, status: int = 200, subject: bool = False, **more: str) -> Verdict | None:
    headers: Headers = [(name.replace("_", "-"), value) for name, value in more.items()]
    if control is not None:
        headers.append(("Cache-Control", control))
    return verdict(status, headers, subject=subject, sie_s=300)


def everybody(fresh_s: float, swr_s: float = 0, sie_s: float = 300) -> Verdict:
    return Verdict(Lifetime(fresh_s, swr_s, sie_s), True)


def own(fresh_s: float, sie_s: float = 300) -> Verdict:
    return Verdict(Lifetime(fresh_s, 0, sie_s), False)


@pytest.mark.parametrize(
    ("control", "expected"),
    [
        ("public, max-age=60", everybody(60)),
        ("PUBLIC,Max-Age=60", everybody(60)),
        ('public, max-age="60"', everybody(60)),
        ("public, max-age=60, s-maxage=10", everybody(10, 0, 0)),
        ("s-maxage=10", everybody(10, 0, 0)),
        ("s-maxage=10, stale-if-error=5", everybody(10, 0, 5)),
        ("public, max-age=1, stale-while-revalidate=7, stale-if-error=9", everybody(1, 7, 9)),
        ("public, max-age=0, stale-while-revalidate=7", everybody(0, 7)),
        ("public, max-age=60, must-revalidate, stale-while-revalidate=7", everybody(60, 0, 0)),
        ("public, max-age=60, proxy-revalidate", everybody(60, 0, 0)),
        ("max-age=60", None),
        ("private, max-age=60, s-maxage=5", None),
        ("public, max-age=60, max-age=5", everybody(60)),
        ("public, max-age=99999999999", everybody(MAX_S)),
        ("public", None),
        (None, None),
        ("public, max-age=0", None),
        ("public, max-age=-1", None),
        ("public, max-age=x", None),
        ("public, max-age=1.5", None),
        ("public, max-age", None),
        ("no-store, public, max-age=60", None),
        ("no-cache, public, max-age=60", None),
        ('no-cache="set-cookie", public, max-age=60', None),
        ("public; max-age=60", None),
        ('public, max-age=60, x="', None),
        ("private, max-age=60", None),
    ],
)
def test_answer_to_nobody_in_particular(control: str | None, expected: Verdict | None) -> None:
    assert judged(control) == expected


@pytest.mark.parametrize(
    ("control", "expected"),
    [
        ("public, max-age=60", everybody(60)),
        ("s-maxage=60", everybody(60, 0, 0)),
        ("max-age=60", own(60)),
        ("private, max-age=60", own(60)),
        # The most that is said against sharing counts.
        ("public, private, max-age=60", own(60)),
        ("private, max-age=60, s-maxage=600", own(60)),
        ("private, no-cache", None),
        ("private, s-maxage=60", None),
    ],
)
def test_answer_to_a_token_is_its_subjects_unless_it_says_otherwise(
    control: str, expected: Verdict | None
) -> None:
    assert judged(control, subject=True) == expected
    # A token that proves no subject has no answers of its own.
    assert judged(control) == (expected if expected is not None and expected.shared else None)


@pytest.mark.parametrize(
    ("status", "stored"),
    [
        (200, True),
        (404, True),
        (301, True),
        (308, True),
        (206, False),
        (302, False),
        (500, False),
        (403, False),
    ],
)
def test_only_these_statuses_are_stored(status: int, stored: bool) -> None:
    assert (judged("public, max-age=60", status=status) is not None) == stored


@pytest.mark.parametrize(
    "more",
    [
        {"Set_Cookie": "a=b"},
        {"Content_Range": "bytes 0-1/2"},
        {"Vary": "*"},
        {"Vary": "Accept, Cookie"},
        {"Vary": "a b"},
        {"Vary": "a,b,c,d,e,f"},
    ],
)
def test_never_stored(more: dict[str, str]) -> None:
    assert judged("public, max-age=60", **more) is None


@pytest.mark.parametrize(
    ("more", "vary"),
    [
        ({"Vary": "Accept-Language, accept"}, ("accept", "accept-language")),
        ({"Content_Encoding": "gzip"}, ("accept-encoding",)),
        ({}, ()),
    ],
)
def test_vary_names_what_the_answer_depends_on(more: dict[str, str], vary: tuple[str, ...]) -> None:
    found = judged("public, max-age=60", **more)
    assert found is not None
    assert found.vary == vary
    assert found.shared


def test_what_varies_by_token_is_nobody_elses_though_it_says_public() -> None:
    assert judged("public, max-age=60", subject=True, Vary="Authorization") == own(60)
    assert judged("public, max-age=60", Vary="Authorization") is None


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, inf),
        ({"cache-control": "no-store"}, None),
        ({"cache-control": "no-cache"}, 0.0),
        ({"pragma": "no-cache"}, 0.0),
        ({"pragma": "no-cache", "cache-control": "max-age=3"}, 3.0),
        ({"range": "bytes=0-1"}, None),
        ({"if-match": '"1"'}, None),
        ({"if-none-match": '"1"'}, inf),
        ({"accept": "text/event-stream"}, None),
        ({"upgrade": "websocket"}, None),
        ({"cookie": "session=1"}, None),
        ({"x-api-key": "k"}, None),
    ],
)
def test_request_says_how_old_its_answer_may_be(headers: dict[str, str], expected: float | None) -> None:
    assert most_age_s(headers) == expected


def part(
    control: str, *, scope: str = "public", status: int = 200, subject: bool = True, **more: str
) -> Verdict | None:
    headers: Headers = [("Cache-Control", control), *((k.replace("_", "-"), v) for k, v in more.items())]
    policy = PartPolicy(ttl_s=5, stale_while_revalidate_s=10, stale_if_error_s=20, scope=scope)
    return part_verdict(policy, status, headers, subject=subject)


def test_part_is_kept_as_declared_but_never_against_the_services_word() -> None:
    assert part("no-cache") == Verdict(Lifetime(5, 10, 20), True)
    assert part("private, no-cache", scope="subject") == Verdict(Lifetime(5, 10, 20), False)
    assert part("private") is None
    assert part("private", scope="subject", subject=False) is None
    assert part("no-store", scope="subject") is None
    assert part("public", status=404) is None
    assert part("public", Set_Cookie="a=b") is None
    assert part("public", Vary="Authorization") is None
    assert part_verdict(PartPolicy(ttl_s=0), 200, [], subject=True) is None


def test_headers_of_one_exchange_are_not_stored() -> None:
    headers = [
        ("Content-Type", "text/plain"), ("X-Request-ID", "1"), ("Connection", "close, X-Hop"), ("X-Hop", "1"),
        ("Date", "x"), ("Age", "3"), ("Set-Cookie", "a"), ("RateLimit", "1"), ("X-Served-By", "i"), ("ETag", '"1"'),
    ]  # fmt: skip
    assert stored_headers(headers) == [("Content-Type", "text/plain"), ("ETag", '"1"')]


def test_validated_answer_takes_the_newer_headers_and_keeps_what_its_body_is() -> None:
    old = [("Content-Type", "text/plain"), ("ETag", '"1"'), ("Cache-Control", "max-age=1")]
    new = [
        ("Cache-Control", "max-age=9"),
        ("Content-Type", "text/html"),
        ("X-New", "1"),
        ("X-Request-ID", "2"),
    ]
    assert refreshed(old, new) == [
        ("Content-Type", "text/plain"), ("ETag", '"1"'), ("Cache-Control", "max-age=9"), ("X-New", "1"),
    ]  # fmt: skip


@pytest.mark.parametrize(("age", "expected"), [("5", 5), ("-5", 0), ("x", 0), ("5, 6", 0), ("9" * 12, MAX_S)])
def test_age_of_other_caches_counts(age: str, expected: float) -> None:
    assert initial_age_s([("Age", age)]) == expected


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text(max_size=60), max_size=3))
def test_no_text_breaks_the_parser(values: list[str]) -> None:
    found = directives(*values)
    for name in found:
        assert seconds(found, name) is not None
        assert name == name.lower()


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.sampled_from(["no-store", "private", "public", "max-age=60", "s-maxage=9", "x=1", ""]), max_size=6
    )
)
def test_no_store_and_private_hold_wherever_they_stand(parts: list[str]) -> None:
    found = judged(", ".join(parts), subject=True)
    if "no-store" in parts:
        assert found is None
    if "private" in parts:
        assert found is None or not found.shared
