"""The Flask application of a service: flask-openapi3's declarations, with a validation that costs little per request.

A view declares what it takes by annotated parameters: `path`, `query`, `body`, each a pydantic model. The models make the OpenAPI 3.1 document at `/openapi.json`. A view answers a dict, a list, a
pydantic model, or a tuple of one with a status and headers.

flask-openapi3 builds the JSON schema of every query model again on each request (about 0.2 ms); here it is looked
at once, when the view is registered.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import wraps
from typing import Any

from flask import Response, current_app, request
from flask.json.provider import JSONProvider
from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.info import Info
from flask_openapi3.openapi import OpenAPI
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json, to_json
from werkzeug.datastructures import MultiDict
from werkzeug.routing import BaseConverter

from services.kit.auth import require
from services.kit.text import ID_PATTERN
from services.kit.web.problems import MEDIA_TYPE, Problem, ProblemModel, validation_problem

View = Callable[..., Any]
SECURITY = "bearer"
# In a rule of Flask, with or without its converter.
_PARAMETER = re.compile(r"<(?:[^<>:]+:)?([^<>]+)>")


class FastJson(JSONProvider):
    """JSON by pydantic-core: knows dates, UUIDs, decimals and models, and costs a third of the standard library's."""

    def dumps(self, obj: Any, **_: Any) -> str:
        return to_json(obj).decode()

    def loads(self, s: str | bytes, **_: Any) -> Any:
        return read_json(s.encode() if isinstance(s, str) else s)

    def response(self, *args: Any, **kwargs: Any) -> Response:
        return Response(
            to_json(self._prepare_response_obj(args, kwargs)) + b"\n", mimetype="application/json"
        )


def read_json(data: bytes) -> Any:
    """Parse JSON. Raises Problem 400 when it is malformed, nests deeper than the parser's 200 levels, or holds NaN or Infinity."""
    try:
        return from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise Problem(400, "Malformed JSON", str(error)) from None


def _list_fields(model: type[BaseModel]) -> frozenset[str]:
    """The parameters of a query model that may be given several times."""
    lists = set()
    for name, schema in model.model_json_schema().get("properties", {}).items():
        kinds = [schema, *schema.get("anyOf", [])]
        if any(kind.get("type") == "array" for kind in kinds):
            lists.add(name)
    return frozenset(lists)


def _query(model: type[BaseModel], lists: frozenset[str], args: MultiDict[str, str]) -> BaseModel:
    values: dict[str, Any] = dict(args)  # the first of each name
    for name in lists:
        if name in values:
            values[name] = args.getlist(name)
    return model.model_validate(values)


def _body(model: type[BaseModel]) -> BaseModel:
    if not request.is_json:
        raise Problem(415, detail="This takes application/json.")
    return model.model_validate_json(request.get_data(cache=True))


def _sendable(answer: Any) -> Any:
    """What Flask can send: it knows no models."""
    if isinstance(answer, BaseModel):
        return current_app.json.response(answer)
    if isinstance(answer, tuple) and answer and isinstance(answer[0], BaseModel):
        return (current_app.json.response(answer[0]), *answer[1:])
    return answer


class Id(BaseConverter):
    """`<id:post_id>` in a route: anything else in its place is 404."""

    regex = ID_PATTERN


class Validated:
    """Mixin: builds the function that stands between Flask and a view."""

    @staticmethod
    def create_view_func(
        func: View,
        header: Any,
        cookie: Any,
        path: Any,
        query: Any,
        form: Any,
        body: Any,  # noqa: A002, RUF100 - the names of flask-openapi3
        raw: Any,
        view_class: Any = None,
        view_kwargs: Any = None,
        responses: Any = None,
        validate_response: Any = None,
    ) -> View:
        """The token first, then path, query and body, then the view. Called by flask-openapi3 at registration."""
        if header or cookie or form or raw:
            raise TypeError(f"{func.__name__} may declare path, query and body only")
        need = require.need_of(func)
        lists = _list_fields(query) if query else frozenset()

        @wraps(func)
        def view(**kwargs: Any) -> Any:
            if need is not None:
                require.authorize(need)
            taken: dict[str, Any] = {}
            try:
                if path:
                    taken["path"] = path.model_validate(kwargs)
                    kwargs = {name: value for name, value in kwargs.items() if name not in path.model_fields}
                if query:
                    taken["query"] = _query(query, lists, request.args)
                if body:
                    taken["body"] = _body(body)
            except ValidationError as error:
                raise validation_problem(error) from None
            return _sendable(func(**taken, **kwargs))

        return view


class ServiceApp(Validated, OpenAPI):
    """A Flask application with the kit's validation, JSON and OpenAPI document."""

    def __init__(self, import_name: str, *, title: str) -> None:
        super().__init__(
            import_name,
            info=Info(title=title, version="1"),
            security_schemes={SECURITY: {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
            validation_error_model=ProblemModel,
            doc_ui=False,
            static_folder=None,
        )
        self.json = FastJson(self)
        # "//api/x" is not "/api/x": an edge that matched the one must not find the other here.
        self.url_map.merge_slashes = False
        self.url_map.converters["id"] = Id
        self._document: bytes | None = None

    def document(self) -> bytes:
        """The OpenAPI 3.1 document as JSON; errors are described as problem+json."""
        if self._document is None:
            document = self.api_doc
            schema = {"$ref": f"#/components/schemas/{ProblemModel.__name__}"}
            problem = {MEDIA_TYPE: {"schema": schema}}
            for operations in document["paths"].values():
                for operation in operations.values():
                    answers = operation["responses"]
                    if not any(status.startswith("2") for status in answers):
                        answers["2XX"] = {"description": "Success"}
                    answers["422"] = {"description": "Invalid request", "content": problem}
                    answers["default"] = {"description": "Any other error", "content": problem}
            self._mark_secured(document["paths"])
            self._document = to_json(document)
        return self._document

    def _mark_secured(self, paths: dict[str, Any]) -> None:
        for rule in self.url_map.iter_rules():
            if require.need_of(self.view_functions[rule.endpoint]) is None:
                continue
            operations = paths.get(_PARAMETER.sub(r"{\1}", rule.rule), {})
            for method in rule.methods or ():
                if method.lower() in operations:
                    operations[method.lower()]["security"] = [{SECURITY: []}]


class ServiceBlueprint(Validated, APIBlueprint):
    """A blueprint for services of several files; register it with `app.register_api(blueprint)`."""
