"""What a service answers: validation, problems, ids, health, metrics, OpenAPI. Without a server or a network."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from flask.testing import FlaskClient
from pydantic import BaseModel, Field
from redis.exceptions import ConnectionError as RedisAway
from redis.exceptions import OutOfMemoryError, ResponseError
from sqlalchemy import MetaData, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from structlog.testing import capture_logs

import discovery
from discovery.errors import DeadlineExceeded, NoInstance, ResponseLost
from services.kit import Problem, ServiceApp, ServiceBlueprint, current, kit, require_scope

Make = Callable[..., ServiceApp]
MEMBERS = {"type", "title", "status", "detail", "instance", "request_id", "layer", "service"}


class ThingPath(BaseModel):
    number: int


class ThingQuery(BaseModel):
    limit: int = Field(20, ge=1, le=100)
    tags: list[str] = []
    near: list[int] | None = None


class NewThing(BaseModel):
    name: str = Field(min_length=1, max_length=10)
    password: str = "x"


RAISED: dict[str, Exception] = {
    "problem": Problem(409, "Taken", "It is taken.", "https://example.test/taken", owner="u2"),
    "bug": RuntimeError("secret detail of a bug"),
    "pool": PoolTimeout("QueuePool limit reached"),
    "integrity": IntegrityError("INSERT secret_table", {}, Exception("UNIQUE")),
    "redis": RedisAway("refused"),
    "redis mistake": ResponseError("WRONGTYPE secret"),
    "redis full": OutOfMemoryError("command not allowed"),
    "no instance": NoInstance("users"),
    "too late": DeadlineExceeded("users", sent=True),
    "lost": ResponseLost("users"),
}


@pytest.fixture
def client(make: Make) -> FlaskClient:
    app = make(settings={"max_body_bytes": 1000})

    @app.get("/api/hello/things/<number>")
    def thing(path: ThingPath, query: ThingQuery) -> dict[str, Any]:
        return {"number": path.number, **query.model_dump()}

    @app.post("/api/hello/things")
    def add(body: NewThing) -> Any:
        return body, 201, {"Location": "/api/hello/things/1"}

    @app.post("/api/hello/guarded")
    @require_scope("admin")
    def guarded(body: NewThing) -> Any:
        return body

    @app.get("/api/hello/who")
    def who() -> dict[str, Any]:
        caller = current()
        return {"left_s": caller.remaining_s(), "trace": caller.traceparent, "service": kit().name}

    @app.get("/api/hello/raise/<name>")
    def fail(name: str) -> None:
        raise RAISED[name]

    return app.test_client()


def problem(answer: Any, status: int) -> dict[str, Any]:
    """The members of a problem answer, checked for shape."""
    assert answer.status_code == status
    assert answer.mimetype == "application/problem+json"
    members: dict[str, Any] = json.loads(answer.data)
    assert members.keys() >= MEMBERS
    assert members["status"] == status
    assert members["layer"] == "service"
    assert members["service"] == "hello"
    assert members["request_id"] == answer.headers["X-Request-ID"]
    assert "Traceback" not in answer.text
    assert "secret" not in answer.text
    return members


def test_path_and_query_are_validated(client: FlaskClient) -> None:
    answer = client.get("/api/hello/things/7?limit=5&tags=a&tags=b&near=3&other=1")
    assert answer.json == {"number": 7, "limit": 5, "tags": ["a", "b"], "near": [3]}


@pytest.mark.parametrize(
    "url", ["/api/hello/things/x", "/api/hello/things/1?limit=0", "/api/hello/things/1?near=x"]
)
def test_bad_parameter_is_422_and_names_it(client: FlaskClient, url: str) -> None:
    members = problem(client.get(url), 422)
    assert members["errors"][0]["loc"]
    assert members["errors"][0]["msg"]


def test_body_is_validated_and_answered_as_a_model(client: FlaskClient) -> None:
    answer = client.post("/api/hello/things", json={"name": "n"})
    assert (answer.status_code, answer.json) == (201, {"name": "n", "password": "x"})
    assert answer.headers["Location"] == "/api/hello/things/1"


def test_refused_body_is_not_repeated(client: FlaskClient) -> None:
    answer = client.post("/api/hello/things", json={"name": "", "password": ["secret"]})
    assert [e["loc"] for e in problem(answer, 422)["errors"]] == [["name"], ["password"]]


@pytest.mark.parametrize(
    "data",
    [b"{", b"", b'{"name": "x"', b"\xff\xfe", b'{"name":' + b"[" * 300 + b"]" * 300 + b"}", b"[" * 900],
)
def test_malformed_or_deep_json_is_400(client: FlaskClient, data: bytes) -> None:
    problem(client.post("/api/hello/things", data=data, content_type="application/json"), 400)


def test_body_that_is_no_json_is_415(client: FlaskClient) -> None:
    problem(client.post("/api/hello/things", data="name=x"), 415)


def test_unknown_path_is_404_and_unknown_method_405_with_allow(client: FlaskClient) -> None:
    assert problem(client.get("/nowhere"), 404)["instance"] == "/nowhere"
    answer = client.delete("/api/hello/things")
    problem(answer, 405)
    assert "POST" in answer.headers["Allow"]


def test_doubled_slash_is_not_the_same_path(client: FlaskClient) -> None:
    problem(client.get("//api/hello/who", base_url="http://localhost//"), 404)


def test_scope_is_checked_before_the_body(client: FlaskClient) -> None:
    answer = client.post("/api/hello/guarded", data="{")
    problem(answer, 401)
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")


@pytest.mark.parametrize(
    "value",
    ["Basic dTpw", "Bearer", "Bearer a.b", "Bearer a.b.c,Bearer a.b.c", "Bearer a.b.c d", "Bearer\ta.b.c"],
)
def test_authorization_that_is_not_one_bearer_token_is_401(client: FlaskClient, value: str) -> None:
    answer = client.post("/api/hello/guarded", json={"name": "x"}, headers={"Authorization": value})
    problem(answer, 401)


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("bug", 500),
        ("integrity", 500),
        ("redis mistake", 500),
        ("redis full", 503),
        ("pool", 503),
        ("redis", 503),
        ("no instance", 503),
        ("too late", 504),
        ("lost", 502),
    ],
)
def test_exception_becomes_a_problem_without_its_text(client: FlaskClient, name: str, status: int) -> None:
    answer = client.get(f"/api/hello/raise/{name}")
    problem(answer, status)
    assert ("Retry-After" in answer.headers) == (status == 503)


def test_mistake_in_sql_is_500_with_its_traceback_and_a_lock_is_503(make: Make, tmp_path: Path) -> None:
    app = make(settings={"db_timeout_s": 0.1})

    @app.get("/api/hello/run/<statement>")
    def run(statement: str) -> dict[str, Any]:
        with kit().db.session() as session:
            session.execute(text(statement))
        return {}

    client = app.test_client()
    assert client.get("/api/hello/run/SELECT 1").status_code == 200
    for mistake in ("SELECT 1 FROM no_table", "SELECT", "SELECT no_column"):
        with capture_logs() as lines:
            problem(client.get(f"/api/hello/run/{mistake}"), 500)
        assert [line["event"] for line in lines if isinstance(line.get("exc_info"), Exception)] == [
            "request failed"
        ]
    with contextlib.closing(sqlite3.connect(tmp_path / "hello.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        answer = client.get("/api/hello/run/SELECT 1")
    problem(answer, 503)
    assert answer.headers["Retry-After"]


def test_problem_keeps_its_own_members(client: FlaskClient) -> None:
    members = problem(client.get("/api/hello/raise/problem"), 409)
    assert members["title"] == "Taken"
    assert members["type"] == "https://example.test/taken"
    assert members["owner"] == "u2"


def test_request_id_and_trace_are_taken_over(client: FlaskClient) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    answer = client.get("/api/hello/who", headers={"X-Request-ID": "a" * 20, "traceparent": trace})
    assert answer.headers["X-Request-ID"] == "a" * 20
    assert answer.json["trace"].startswith(trace[:36])
    assert answer.json["trace"] != trace


def test_deadline_is_taken_over_and_one_that_is_past_is_504(client: FlaskClient) -> None:
    assert client.get("/api/hello/who", headers={"X-Deadline-Ms": "500"}).json["left_s"] < 0.5
    assert client.get("/api/hello/who").json["left_s"] > 20
    problem(client.get("/api/hello/who", headers={"X-Deadline-Ms": "0"}), 504)


def test_only_the_instance_that_is_asked_for_is_ready(client: FlaskClient) -> None:
    """Consul asks at an address that may have become another's: both would be healthy."""
    kit = client.application.extensions["kit"]
    own = kit.registration(8000).check
    assert client.get(own.path).status_code == 200
    assert client.get("/health/ready?instance=users-1").status_code == 503


def test_health_carries_the_services_name_and_draining_is_503(client: FlaskClient) -> None:
    live, ready = client.get("/health/live"), client.get("/health/ready")
    assert (live.status_code, ready.status_code) == (200, 200)
    assert live.headers["X-Service"] == ready.headers["X-Service"] == "hello"
    client.application.extensions["kit"].state.drain()
    answer = client.get("/health/ready")
    assert (answer.status_code, answer.json) == (503, {"status": "draining"})
    assert answer.headers["X-Service"] == "hello"
    assert client.get("/health/live").status_code == 200
    assert client.get("/api/hello/who").status_code == 200


def test_metrics_count_by_template_and_never_by_path(client: FlaskClient) -> None:
    for number in range(3):
        client.get(f"/api/hello/things/{number}").close()
        client.get(f"/nowhere/{number}").close()
    client.open("/api/hello/who", method="BREW").close()
    text = client.get("/metrics").text
    counted = 'service_requests_total{method="GET",route="/api/hello/things/<number>",service="hello",status="200"} 3.0'
    assert counted in text
    assert 'route="unmatched",service="hello",status="404"} 3.0' in text
    assert 'method="OTHER"' in text
    assert "nowhere" not in text
    assert "BREW" not in text
    assert "service_requests_in_progress" in text


def test_openapi_document_is_3_1_and_tells_models_security_and_problems(client: FlaskClient) -> None:
    document = json.loads(client.get("/openapi.json").text)
    assert document["openapi"].startswith("3.1")
    add = document["paths"]["/api/hello/things"]["post"]
    assert add["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("/NewThing")
    assert "application/problem+json" in add["responses"]["422"]["content"]
    assert add["responses"].keys() == {"2XX", "422", "default"}
    assert "security" not in add
    assert document["paths"]["/api/hello/guarded"]["post"]["security"] == [{"bearer": []}]
    assert "/health/ready" not in document["paths"]


def test_blueprint_validates_as_the_application_does(make: Make) -> None:
    app = make()
    blueprint = ServiceBlueprint("parts", "parts", url_prefix="/api/hello")

    @blueprint.post("/parts")
    def add(body: NewThing) -> Any:
        return body

    app.register_api(blueprint)
    client = app.test_client()
    assert client.post("/api/hello/parts", json={"name": "n"}).json["name"] == "n"
    assert client.post("/api/hello/parts", json={}).mimetype == "application/problem+json"


@pytest.mark.parametrize(
    "options",
    [{"paths": ["/"]}, {"paths": ["/health"]}, {"paths": ["/a b"]}, {"name": "Bad"}, {"auth": "none"}],
)
def test_route_that_the_edge_would_refuse_is_refused_here(make: Make, options: dict[str, Any]) -> None:
    with pytest.raises(discovery.errors.ContractError):
        make(**options)


def test_every_request_leaves_one_line_with_its_ids(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[bytes] = []
    monkeypatch.setattr("services.kit.telemetry.logs.RawWriter.info", lambda _, line: lines.append(line))
    client = make().test_client()
    started = time.monotonic()
    client.get("/api/hello?password=secret", headers={"X-Request-ID": "b" * 16}).close()
    (line,) = [json.loads(each) for each in lines]
    assert line["event"] == "request"
    assert (line["service"], line["request_id"], line["status"]) == ("hello", "b" * 16, 404)
    assert len(line["trace_id"]) == 32
    assert 0 <= line["duration_s"] <= time.monotonic() - started
    assert "secret" not in json.dumps(line)


def test_what_is_to_stop_does_in_reverse_order_whatever_one_of_it_meets(make: Make) -> None:
    kit, seen = make().extensions["kit"], []
    kit.on_start(lambda: seen.append("start"))
    for name in ("first", "second"):
        kit.on_stop(lambda name=name: seen.append(name))
    kit.on_stop(lambda: 1 / 0)
    kit.started()
    kit.stopped()
    assert seen == ["start", "second", "first"]


def test_environment_outranks_the_worker_that_the_code_asks_for(make: Make) -> None:
    assert make(worker="gevent").extensions["kit"].settings.worker_class == "gevent"
    named = make(settings={"worker_class": "gthread"}, worker="gevent")
    assert named.extensions["kit"].settings.worker_class == "gthread"


def test_instance_follows_what_its_service_calls_and_auth(make: Make) -> None:
    settings = {"consul_http_addr": "127.0.0.1:1"}
    for calls, followed in ((["users"], {"auth", "users", "users-grpc"}), ([], {"auth"}), (None, None)):
        with mock.patch("discovery.View") as view:
            _ = make(settings=settings, calls=calls).extensions["kit"].view
        assert view.call_args.kwargs["services"] == followed


def test_worker_is_connected_to_its_database_before_it_serves(make: Make) -> None:
    own = make(models_metadata=MetaData()).extensions["kit"]
    own.started()
    try:
        assert own.db.engine.pool.checkedin() == 1
    finally:
        own.stopped()
