"""docs/events/asyncapi.yaml is what the code says now, is AsyncAPI 3, and describes what is really sent."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator, Draft202012Validator
from sqlalchemy import MetaData

from services.auth.events import UserCreated
from services.kit import create_service
from services.kit.events.event import Event, wrap
from services.kit.text import now_us
from services.posts.events import PostDeleted, PostPublished
from stack.asyncapi import FILE, HEAD, consumed, document, published, to_yaml
from stack.settings import REPO
from tests.support.eventually import time_scale

SCHEMA = Path(__file__).parent / "asyncapi" / "3.0.0.json"


@pytest.fixture(scope="module")
def kept() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(FILE.read_text().removeprefix(HEAD))
    return found


def test_file_is_what_the_code_says_now(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "stack", "docs", "--to", str(tmp_path / "made")]
    done = subprocess.run(argv, cwd=REPO, capture_output=True, text=True, timeout=60 * time_scale())
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "made").read_text() == FILE.read_text(), f"{FILE} is stale: make docs"


def test_file_is_asyncapi_3(kept: dict[str, Any]) -> None:
    validator = Draft7Validator(json.loads(SCHEMA.read_text()))
    assert [f"{error.json_path}: {error.message}" for error in validator.iter_errors(kept)] == []
    wrong = {**kept, "channels": {"posts": {"address": 7}}}
    assert list(validator.iter_errors(wrong))


def test_every_reference_leads_somewhere(kept: dict[str, Any]) -> None:
    def references(part: Any) -> list[str]:
        if isinstance(part, list):
            return [found for each in part for found in references(each)]
        if not isinstance(part, dict):
            return []
        own = [part["$ref"]] if isinstance(part.get("$ref"), str) else []
        return own + [found for each in part.values() for found in references(each)]

    assert references(kept)
    for reference in references(kept):
        part: Any = kept
        for step in reference.removeprefix("#/").split("/"):
            part = part[step]


def test_every_model_is_a_message_of_its_producers_channel(kept: dict[str, Any]) -> None:
    assert UserCreated in published()
    for kind in published():
        assert kind.TYPE in kept["channels"][kind.PRODUCER]["messages"]
        assert kind.TYPE in kept["components"]["messages"]


def sent(event: Event) -> dict[str, Any]:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    found: dict[str, Any] = json.loads(wrap(event, now_us(), trace).to_json())
    return found


def test_what_is_sent_fits_its_message_and_nothing_else_does(kept: dict[str, Any]) -> None:
    payload = kept["components"]["messages"]["post.published.v1"]["payload"]
    validator = Draft202012Validator({**payload, "components": kept["components"]})
    post = PostPublished.model_validate(
        {"postId": "p", "authorId": "u", "title": "t", "tags": ["a"], "publishedAt": "2026-01-01T00:00:00Z"}
    )
    good = sent(post)
    assert [error.message for error in validator.iter_errors(good)] == []
    for wrong in ({"specversion": "0.3"}, {"source": "/services/users"}, {"data": {}}, {"subject": ""}):
        assert list(validator.iter_errors(good | wrong)), wrong


def test_who_hears_what_is_asked_of_the_application() -> None:
    assert consumed(create_service("deaf")) == []
    app = create_service("reader", models_metadata=MetaData(), events=True)
    for kind in (UserCreated, PostDeleted, PostPublished):
        app.extensions["kit"].events.consumes(kind)(lambda event, session: None)
    operations = document([], {"reader": consumed(app), "deaf": []})["operations"]
    assert list(operations) == [
        "auth.publishes",
        "posts.publishes",
        "reader.hears.auth",
        "reader.hears.posts",
    ]
    assert operations["reader.hears.posts"] == {
        "action": "receive",
        "channel": {"$ref": "#/channels/posts"},
        "messages": [
            {"$ref": "#/channels/posts/messages/post.deleted.v1"},
            {"$ref": "#/channels/posts/messages/post.published.v1"},
        ],
    }


def test_sequence_in_which_models_are_found_changes_nothing() -> None:
    kinds = published()
    there = document(kinds, {"a": kinds, "b": kinds[:2]})
    back = document(kinds[::-1], {"b": kinds[:2][::-1], "a": kinds[::-1]})
    assert to_yaml(there) == to_yaml(back)
