"""What the OpenAPI documents call valid is taken, for all that a schema can say."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from services.auth.schemas import Login, NewApiKey, Register
from services.posts.domain import NewComment, NewPost, PostQuery
from services.products.domain import NewProduct, ProductChange
from services.users.app import Change

TEXTS = [
    "", " ", "\n", "a", "a b", "a\nb", "a\tb", "a\x00b", "a\x0bb", "a\x7fb", "a\x85b", " a ", "\u202ea", "\u2028", "é", "ab-1",
    "-ab", "ab.c", "EUR", "DEM", "XXX", "a@b.co", "a@b.1o", "a@b.10", "a@b", "@b.co", "a..b@c.de", f"{'a' * 65}@b.co", f"a@{'b' * 64}.co",
    "x" * 30, "x" * 40, "x" * 41, "x" * 120, "x" * 256, "é" * 600, "c++", "12345678",
]  # fmt: skip
FIELDS = [
    (model, name)
    for model, names in {
        NewPost: ["title", "content", "tags"],
        NewComment: ["content"],
        PostQuery: ["tag", "q"],
        NewProduct: ["name", "description", "sku", "category", "currency"],
        Change: ["firstName", "username"],
        Register: ["email", "password", "lastName"],
        Login: ["email"],
        NewApiKey: ["name"],
    }.items()
    for name in names
]


def valid(schema: dict[str, Any], text: str) -> bool:
    # JSON Schema's expressions are ECMA's, whose $ stands for nothing but the end.
    pattern = re.sub(r"\$$", r"\\Z", schema.get("pattern", ""))
    return (
        schema.get("minLength", 0) <= len(text) <= schema.get("maxLength", 10**6)
        and (re.search(pattern, text) is not None)
        and text in schema.get("enum", [text])
    )


def taken(model: type[BaseModel], name: str, value: Any) -> bool:
    field = model.model_fields[name]
    try:
        TypeAdapter(field.rebuild_annotation()).validate_python(value)
    except ValidationError:
        return False
    return True


@pytest.mark.parametrize(("model", "name"), FIELDS)
def test_text_that_the_document_calls_valid_is_taken(model: type[BaseModel], name: str) -> None:
    schema = model.model_json_schema()["properties"][name]
    in_list = schema.get("type") == "array"
    schema = schema.get("items") or schema.get("anyOf", [schema])[0]
    fit = [text for text in TEXTS if valid(schema, text)]
    assert fit
    assert [text for text in fit if not taken(model, name, [text] if in_list else text)] == []


def test_document_says_that_a_change_has_a_field() -> None:
    asked = ProductChange.model_json_schema()["anyOf"]
    assert {"required": ["sku"], "properties": {"sku": {"not": {"type": "null"}}}} in asked
    assert len(asked) == len(ProductChange.model_fields)
    assert "anyOf" in Change.model_json_schema()
