"""Whether an answer is what the service's own OpenAPI document says of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import requests

from tests.support.instances import RunningInstance

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


class Misfit(AssertionError):
    """An answer that its document does not describe."""


@dataclass
class Documented:
    """Calls of one instance, each held against the instance's document."""

    instance: RunningInstance

    def __post_init__(self) -> None:
        self.document: dict[str, Any] = self.instance.call("GET", "/openapi.json").json()

    def __call__(self, method: str, template: str, *ids: str, **options: Any) -> Any:
        """The JSON of a success (None without a body); `ids` fill the template's parameters in their order."""
        path = template
        for value in ids:
            path = re.sub(r"\{\w+\}", value, path, count=1)
        answer = as_documented(self.document, template, self.instance.call(method, path, **options))
        return answer.json() if answer.content else None


def as_documented(document: dict[str, Any], path: str, answer: requests.Response) -> requests.Response:
    """The answer, a success. `path` is the template in the document. Raises Misfit."""
    method = (answer.request.method or "").lower()
    where = f"{method.upper()} {path} {answer.status_code}"
    if not answer.ok:
        raise Misfit(f"{where}: {answer.text}")
    declared = document["paths"][path][method]["responses"].get(str(answer.status_code))
    if declared is None:
        raise Misfit(f"{where}: not in the document")
    if "content" in declared:
        _fits(document, declared["content"]["application/json"]["schema"], answer.json(), where)
    elif answer.content:
        raise Misfit(f"{where}: a body where the document has none")
    return answer


def _fits(document: dict[str, Any], schema: dict[str, Any], value: Any, where: str) -> None:
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema:
        if not any(_is(document, one, value) for one in schema["anyOf"]):
            raise Misfit(f"{where}: {value!r} is none of {schema['anyOf']}")
        return
    kind = schema["type"]
    if not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "boolean"):
        raise Misfit(f"{where}: {value!r} is no {kind}")
    if value not in schema.get("enum", [value]) or value != schema.get("const", value):
        raise Misfit(f"{where}: {value!r}")
    if kind == "array":
        for item in value:
            _fits(document, schema["items"], item, f"{where}[]")
    if kind == "object":
        properties = schema["properties"]
        if not set(schema.get("required", [])) <= set(value) <= set(properties):
            raise Misfit(f"{where}: {sorted(value)}, and the document has {sorted(properties)}")
        for name, inner in value.items():
            _fits(document, properties[name], inner, f"{where}.{name}")


def _is(document: dict[str, Any], schema: dict[str, Any], value: Any) -> bool:
    try:
        _fits(document, schema, value, "")
    except Misfit:
        return False
    return True
