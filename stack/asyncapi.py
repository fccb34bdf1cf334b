"""`make docs`: docs/events/asyncapi.yaml, from the models of events and from what the services consume. No server is started.

Ref: https://www.asyncapi.com/docs/reference/specification/v3.0.0
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic.json_schema import models_json_schema

from services.kit import ServiceApp
from services.kit.events.event import MAX_BYTES, MAX_ID_CHARS, MAX_SUBJECT_CHARS, SPEC_VERSION, Event
from stack.run.programs import Catalogue
from stack.servers.vault import Vault
from stack.settings import REPO, StackSettings

FILE = REPO / "docs" / "events" / "asyncapi.yaml"
HEAD = "# Made by `make docs` from services/*/events.py and from what services consume. Below is JSON, which is YAML too.\n"
CONTENT_TYPE = "application/cloudevents+json"

Kinds = Iterable[type[Event]]


def generate() -> str:
    """The file as it should be. Changes this process' environment: for a command."""
    names = {path.parent.name for path in (REPO / "services").glob("*/app.py")} - {"kit"}
    with tempfile.TemporaryDirectory() as folder:
        heard = {name: consumed(_app(name, Path(folder))) for name in sorted(names)}
    return to_yaml(document(published(), heard))


def to_yaml(made: Mapping[str, Any]) -> str:
    return HEAD + json.dumps(made, indent=2, ensure_ascii=False) + "\n"


def published() -> list[type[Event]]:
    """The events that services publish: the models in their events.py."""
    found = []
    for path in sorted((REPO / "services").glob("*/events.py")):
        module = importlib.import_module(f"services.{path.parent.name}.events")
        found += [
            kind
            for _, kind in inspect.getmembers(module, inspect.isclass)
            if issubclass(kind, Event) and kind.__module__ == module.__name__
        ]
    return found


def consumed(app: ServiceApp) -> list[type[Event]]:
    """The events that an application hears."""
    try:
        return list(app.extensions["kit"].events.consumed)
    except LookupError:
        return []


def _app(name: str, folder: Path) -> ServiceApp:
    """A service's application as the stack would run it, but with secrets and data that go when this is done."""
    vault = Vault(folder / "secrets")
    vault.write_clients([name])
    catalogue = Catalogue(StackSettings(breakwater_var=folder), vault, {}, {})
    os.environ.update(catalogue.base_environment() | catalogue.service_environment(name))
    module = importlib.import_module(f"services.{name}.app")
    # auth's is made by a function, for its tests.
    app: ServiceApp = module.app if hasattr(module, "app") else module.create_app()
    return app


def document(kinds: Kinds, heard: Mapping[str, Kinds]) -> dict[str, Any]:
    """The AsyncAPI document. `heard`: service → what it consumes. The same for the same, whatever their sequence."""
    receivers = {service: sorted(found, key=_type) for service, found in sorted(heard.items())}
    every = sorted({*kinds, *(kind for found in receivers.values() for kind in found)}, key=_type)
    schemas, data = _schemas(every)
    producers = sorted({kind.PRODUCER for kind in every})
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Events of Breakwater",
            "version": "1.0.0",
            "description": "CloudEvents 1.0 in JSON (structured mode), at least once. Over Redis a channel is a stream; over"
            " RabbitMQ all events go through the exchange `breakwater.events`, with their type as routing key.",
            "license": {"name": "MIT"},
        },
        "defaultContentType": CONTENT_TYPE,
        "channels": {name: _channel(name, _of(name, every)) for name in producers},
        "operations": {
            **{f"{name}.publishes": _operation("send", name, _of(name, every)) for name in producers},
            **{
                f"{service}.hears.{name}": _operation("receive", name, _of(name, found))
                for service, found in receivers.items()
                for name in sorted({kind.PRODUCER for kind in found})
            },
        },
        "components": {
            "messages": {kind.TYPE: _message(kind, data[kind]) for kind in every},
            "schemas": {"CloudEvent": _ENVELOPE, **schemas},
        },
    }


_TEXT = {"type": "string"}
_ENVELOPE: Mapping[str, Any] = {
    "description": f"CloudEvents 1.0, at most {MAX_BYTES} bytes. Ref: https://github.com/cloudevents/spec",
    "type": "object",
    "required": ["specversion", "id", "type", "source", "subject", "time", "datacontenttype", "data"],
    "properties": {
        "specversion": {"const": SPEC_VERSION},
        "id": {**_TEXT, "description": "A UUID of version 7.", "minLength": 1, "maxLength": MAX_ID_CHARS},
        "type": _TEXT,
        "source": {**_TEXT, "description": "`/services/<name>`"},
        "subject": {**_TEXT, "minLength": 1, "maxLength": MAX_SUBJECT_CHARS},
        "time": {**_TEXT, "format": "date-time"},
        "datacontenttype": {"const": "application/json"},
        "traceparent": {**_TEXT, "description": "W3C Trace Context, where there is one."},
        "data": {"type": "object"},
    },
}


def _type(kind: type[Event]) -> str:
    return kind.TYPE


def _of(producer: str, kinds: Kinds) -> list[type[Event]]:
    return [kind for kind in kinds if producer == kind.PRODUCER]


def _schemas(kinds: list[type[Event]]) -> tuple[dict[str, Any], dict[type[Event], dict[str, Any]]]:
    """The schemas of the data by name, and a reference to each kind's."""
    template = "#/components/schemas/{model}"
    refs, made = models_json_schema([(kind, "serialization") for kind in kinds], ref_template=template)
    return dict(sorted(made.get("$defs", {}).items())), {kind: refs[kind, "serialization"] for kind in kinds}


def _channel(producer: str, kinds: Kinds) -> dict[str, Any]:
    return {
        "address": f"events:{producer}",
        "messages": {kind.TYPE: {"$ref": f"#/components/messages/{kind.TYPE}"} for kind in kinds},
    }


def _operation(action: str, producer: str, kinds: Kinds) -> dict[str, Any]:
    messages = [{"$ref": f"#/channels/{producer}/messages/{kind.TYPE}"} for kind in kinds]
    return {"action": action, "channel": {"$ref": f"#/channels/{producer}"}, "messages": messages}


def _message(kind: type[Event], data: Mapping[str, Any]) -> dict[str, Any]:
    own = {
        "type": {"const": kind.TYPE},
        "source": {"const": f"/services/{kind.PRODUCER}"},
        "data": data,
    }
    return {
        "name": kind.TYPE,
        "summary": inspect.cleandoc(kind.__doc__ or kind.__name__),
        "description": f"Its subject is `{kind.SUBJECT}`: events of one subject arrive in order.",
        "contentType": CONTENT_TYPE,
        "payload": {"allOf": [{"$ref": "#/components/schemas/CloudEvent"}, {"properties": own}]},
    }
