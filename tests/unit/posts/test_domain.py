"""Posts: what is taken, what is refused, and who may change what."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from services.posts.domain import (
    MAX_CONTENT,
    MAX_TITLE,
    NewComment,
    NewPost,
    PostChange,
    PostQuery,
    clean_tag,
)


def test_text_is_trimmed_and_tags_are_folded_and_deduplicated_in_order() -> None:
    post = NewPost(title="  Hello ", content="\nline\n", tags=["Zebra", "C++", "zebra ", "big   Data"])
    assert (post.title, post.content) == ("Hello", "line")
    assert post.tags == ["zebra", "c++", "big data"]


@pytest.mark.parametrize(
    "body",
    [
        {"title": "", "content": "x"},
        {"title": "   ", "content": "x"},
        {"title": "t" * (MAX_TITLE + 1), "content": "x"},
        {"title": "t", "content": "x" * (MAX_CONTENT + 1)},
        {"title": "t\nu", "content": "x"},
        {"title": "t", "content": "a\x00b"},
        {"title": "t", "content": "\ud800"},
        {"title": 7, "content": "x"},
        {"title": "t"},
        {"title": "t", "content": "x", "tags": "python"},
        {"title": "t", "content": "x", "tags": [f"t{i}" for i in range(11)]},
        {"title": "t", "content": "x", "tags": [""]},
        {"title": "t", "content": "x", "tags": ["-led-by-dash"]},
        {"title": "t", "content": "x", "tags": ["x" * 41]},
        {"title": "t", "content": "x", "tags": ['a"b']},
    ],
)
def test_bad_posts_are_refused(body: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        NewPost.model_validate(body)


def test_change_without_a_known_field_is_refused() -> None:
    for body in ({}, {"title": None}, {"authorId": "x"}):
        with pytest.raises(ValidationError):
            PostChange.model_validate(body)
    assert PostChange.model_validate({"tags": []}).tags == []


def test_comments_are_bounded() -> None:
    for content in ("", "x" * 4001, "\x07"):
        with pytest.raises(ValidationError):
            NewComment(content=content)


def test_query_is_normalised_like_what_it_looks_for() -> None:
    query = PostQuery.model_validate({"tag": " Big  DATA", "q": "   ", "limit": "100"})
    assert (query.tag, query.q, query.limit) == ("big data", "", 100)


@given(st.text(max_size=60))
def test_a_clean_tag_stays_as_it_is(text: str) -> None:
    try:
        tag = clean_tag(text)
    except ValueError:
        return
    assert clean_tag(tag) == tag
    assert 1 <= len(tag) <= 40
