"""The whole's headers: kept no longer and by no more people than its strictest part allows."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.compose.merge import problem, strictest, varied, whole
from gateway.compose.result import Result
from tests.support.incoming import incoming


def part(
    name: str = "a", data: bytes | None = b"{}", control: str | None = "public, max-age=60", **more: Any
) -> Result:
    headers = [("Cache-Control", control)] if control is not None else []
    values = {"state": "ok", "source": f"{name}-1", "attempts": 1, "upstream_status": 200, **more}
    return Result(name, f"{name}s", data=data, headers=[*headers, *values.pop("headers", [])], **values)


def header(answer: Any, name: str) -> str | None:
    return answer.header(name)


@pytest.mark.parametrize(
    ("parts", "whole_says"),
    [
        ([("public, max-age=60", 0)], "public, max-age=60"),
        ([("public, max-age=60", 0), ("public, max-age=5", 0)], "public, max-age=5"),
        ([("public, max-age=60", 58), ("public, max-age=5", 1)], "public, max-age=2"),
        ([("public, max-age=60", 90)], "public, max-age=0"),
        ([("public, max-age=60", 0), ("private, max-age=5", 0)], "private, max-age=5"),
        ([("max-age=60", 0)], "private, max-age=60"),
        ([("public, private, max-age=9", 0)], "private, max-age=9"),
        ([("public, max-age=60", 0), ("no-store", 0)], "no-store"),
        ([("public, max-age=60", 0), ("private, no-cache", 0)], "private, no-cache"),
        ([("public, max-age=60", 0), ("public, no-cache", 0)], "public, no-cache"),
        ([("public, max-age=60", 0), (None, 0)], "private, no-cache"),
        ([("", 0)], "private, no-cache"),
        ([("public", 0)], "public, no-cache"),
        ([("public, max-age=x", 0)], "public, max-age=0"),
        ([("public, max-age=-5", 0)], "public, max-age=0"),
        ([('Public, Max-Age="7"', 0)], "public, max-age=7"),
        ([("public, max-age=5, max-age=500", 0)], "public, max-age=5"),
        ([("public, max-age=" + "9" * 12, 0)], "public, max-age=31536000"),
        (
            [("public, max-age=5, s-maxage=60", 0), ("public, max-age=30, s-maxage=20", 0)],
            "public, max-age=5, s-maxage=20",
        ),
        ([("public, max-age=5, s-maxage=60", 0), ("private, max-age=30", 0)], "private, max-age=5"),
        ([('ext="a, no-store", public, max-age=5', 0)], "public, max-age=5"),
    ],
)
def test_the_strictest_part_decides(parts: list[tuple[str | None, int]], whole_says: str) -> None:
    assert strictest(parts, personal=False) == whole_says


def test_what_depends_on_the_token_is_private_whatever_its_parts_say() -> None:
    assert strictest([("public, max-age=60, s-maxage=60", 0)], personal=True) == "private, max-age=60"


CONTROL = st.lists(
    st.sampled_from(
        [
            "public",
            "private",
            "no-cache",
            "no-store",
            "max-age=10",
            "max-age=70",
            "s-maxage=30",
            "max-age",
            ",",
            '"',
        ]
    ),
    max_size=4,
).map(", ".join)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.none() | CONTROL, st.integers(0, 100)), min_size=1, max_size=4), st.booleans())
def test_one_more_part_never_loosens_the_whole(parts: list[tuple[str | None, int]], personal: bool) -> None:
    fewer, all_of_them = (strictest(some, personal=personal) for some in (parts[:-1] or parts, parts))
    rank = ["public", "private"]
    if "no-store" in fewer:
        assert all_of_them == "no-store"
    elif all_of_them != "no-store":
        assert rank.index(all_of_them.split(",")[0]) >= rank.index(fewer.split(",")[0])
        ages = [
            int(said.partition("max-age=")[2].split(",")[0]) if "max-age=" in said else 0
            for said in (fewer, all_of_them)
        ]
        assert ages[1] <= ages[0]


def test_vary_is_that_of_all_parts_and_of_what_was_passed_on() -> None:
    assert varied([None, "Accept-Encoding, X-A", "x-b"], ["accept-language"]) == "accept-language, x-a, x-b"
    assert varied(["X-A", "*"], []) == "*"
    assert varied(["x y, \r\nz"], []) == "z"


def test_a_whole_answer_has_its_parts_and_tells_about_them() -> None:
    answer = whole(
        incoming(), [part("a", b'{"x": 1.50}'), part("b", b"[]", age_s=3)], personal=False, vary=[]
    )
    assert answer.status == 200
    assert json.loads(bytes(answer.body)) == {  # type: ignore[arg-type]
        "a": {"x": 1.5},
        "b": [],
        "_complete": True,
        "_parts": {
            "a": {"status": "ok", "source": "a-1", "age": 0, "attempts": 1},
            "b": {"status": "ok", "source": "b-1", "age": 3, "attempts": 1},
        },
    }
    assert b'{"x": 1.50}' in bytes(answer.body)  # type: ignore[arg-type]
    assert header(answer, "cache-control") == "public, max-age=57"
    assert header(answer, "x-incomplete") is None
    assert answer.attempts == 2


def test_an_answer_without_a_part_says_so_and_is_not_kept() -> None:
    absent = part("b", None, state="absent", source=None, reason="nobody", upstream_status=None)
    answer = whole(incoming(), [part("a"), absent], personal=False, vary=[])
    said = json.loads(bytes(answer.body))  # type: ignore[arg-type]
    assert (said["b"], said["_complete"]) == (None, False)
    assert said["_parts"]["b"] == {
        "status": "absent",
        "source": None,
        "age": 0,
        "attempts": 1,
        "reason": "nobody",
    }
    assert header(answer, "x-incomplete") == "b"
    assert header(answer, "cache-control") == "no-store"
    assert header(answer, "etag") is None


def test_what_stands_in_for_a_part_is_not_kept_either() -> None:
    empty = whole(
        incoming(), [part("a", b"[]", state="fallback", source="declaration")], personal=False, vary=[]
    )
    assert json.loads(bytes(empty.body))["_complete"] is False  # type: ignore[arg-type]
    assert header(empty, "cache-control") == "no-store"
    stale = whole(incoming(), [part("a", state="stale", age_s=90, cached="STALE")], personal=False, vary=[])
    assert json.loads(bytes(stale.body))["_complete"] is True  # type: ignore[arg-type]
    assert (header(stale, "x-stale-age"), header(stale, "x-cache")) == ("90", "STALE")
    assert header(stale, "cache-control") == "no-store"


def test_the_tag_is_that_of_the_data_alone() -> None:
    """Another instance, another age, another attempt: the same answer."""
    one = whole(incoming(), [part("a")], personal=False, vary=[])
    other = whole(incoming(), [part("a", source="a-2", age_s=7, attempts=3)], personal=False, vary=[])
    changed = whole(incoming(), [part("a", b'{"x":1}')], personal=False, vary=[])
    assert header(one, "etag") == header(other, "etag") != header(changed, "etag")
    assert (header(one, "etag") or "").startswith('W/"')


@pytest.mark.parametrize("form", ["{}", '"x", {}', "*"])
def test_who_has_it_gets_304(form: str) -> None:
    tag = header(whole(incoming(), [part()], personal=False, vary=["x-a"]), "etag") or ""
    for sent in (tag, tag.removeprefix("W/")):
        answer = whole(incoming(if_none_match=form.format(sent)), [part()], personal=False, vary=["x-a"])
        assert (answer.status, answer.body) == (304, b"")
        assert header(answer, "etag") == tag
        assert header(answer, "cache-control") == "public, max-age=60"
        assert header(answer, "vary") == "x-a"


def test_what_must_not_be_kept_is_never_304() -> None:
    answer = whole(incoming(if_none_match="*"), [part(control="no-store")], personal=False, vary=[])
    assert (answer.status, header(answer, "etag")) == (200, None)


@pytest.mark.parametrize(
    ("states", "told"),
    [
        ((None, None), None),
        (("HIT", "HIT"), "HIT"),
        (("HIT", "MISS"), "MISS"),
        ((None, "HIT"), "HIT"),
        (("MISS", "STALE"), "STALE"),
    ],
)
def test_x_cache_is_that_of_the_worst_part_that_asked(
    states: tuple[str | None, str | None], told: str | None
) -> None:
    parts = [part("a", cached=states[0]), part("b", cached=states[1])]
    assert header(whole(incoming(), parts, personal=False, vary=[]), "x-cache") == told


@pytest.mark.parametrize(
    ("state", "upstream", "status"),
    [
        ("refused", 401, 401),
        ("refused", 403, 403),
        ("refused", 404, 404),
        ("refused", 410, 410),
        ("refused", 429, 429),
        ("refused", 400, 502),
        ("refused", 418, 502),
        ("failed", 500, 502),
        ("failed", 503, 503),
        ("failed", 504, 504),
        ("failed", None, 502),
        ("invalid", 200, 502),
        ("invalid", 302, 502),
        ("timeout", None, 504),
        ("absent", None, 503),
        ("unavailable", None, 503),
    ],
)
def test_a_part_that_is_needed_makes_the_answer_an_error(
    state: Any, upstream: int | None, status: int
) -> None:
    missing = part("a", None, state=state, upstream_status=upstream, reason="for a reason")
    error = problem(missing, [missing, part("b")])
    assert error.status == status
    assert error.members["part"] == "a"
    assert set(error.members["parts"]) == {"a", "b"}  # type: ignore[call-overload]
    assert "for a reason" in error.detail


def test_only_headers_that_mean_something_come_with_the_error() -> None:
    given = [
        ("WWW-Authenticate", "Bearer"),
        ("Retry-After", "7"),
        ("Set-Cookie", "x"),
        ("Cache-Control", "public"),
    ]
    refused = part("a", None, state="refused", upstream_status=401, headers=given)
    assert problem(refused, [refused]).headers == [("WWW-Authenticate", "Bearer")]
    busy = part("a", None, state="failed", upstream_status=503, headers=given)
    assert problem(busy, [busy]).headers == [("Retry-After", "7")]
    odd = part("a", None, state="failed", upstream_status=503, headers=[("Retry-After", "7\r\nX: y")])
    assert problem(odd, [odd]).headers == []
