"""Settings, ids, traces, deadlines and body limits: pure rules."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from pydantic import ValidationError
from pydantic_settings import SettingsError
from werkzeug.exceptions import RequestEntityTooLarge

from services.kit.settings import ServiceSettings, secret
from services.kit.web import body, context
from services.kit.web.middleware import deadline_s


def test_settings_read_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "20001")
    monkeypatch.setenv("DRAIN_DELAY_S", "")
    settings = ServiceSettings()
    assert settings.port == 20001
    assert settings.drain_delay_s == 1.0


def test_secret_comes_from_the_file_that_its_variable_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "secret"
    file.write_text("s3cret\n")
    monkeypatch.setenv("SERVICE_CLIENT_SECRET_FILE", str(file))
    settings = ServiceSettings()
    assert secret(settings.service_client_secret) == "s3cret"
    assert "s3cret" not in repr(settings)


def test_missing_secret_file_names_its_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REDIS_PASSWORD_FILE", str(tmp_path / "none"))
    with pytest.raises(SettingsError, match="REDIS_PASSWORD_FILE"):
        ServiceSettings()


@pytest.mark.parametrize(("name", "value"), [("PORT", "70000"), ("WORKER_CLASS", "tornado"), ("PORT", "x")])
def test_bad_setting_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError):
        ServiceSettings()


@pytest.mark.parametrize("given", [None, "", "short", "x" * 65, "a" * 15 + "\n", "a" * 16 + "\n", "é" * 20])
def test_bad_request_id_is_replaced(given: str | None) -> None:
    made = context.request_id(given)
    assert made != given
    assert len(made) == 32


@pytest.mark.parametrize(
    "given",
    [
        None,
        "nonsense",
        "00-" + "0" * 32 + "-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-" + "0" * 16 + "-01",
        "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\n",
    ],
)
def test_malformed_trace_starts_a_new_one(given: str | None) -> None:
    child = context.child_of(given)
    assert len(child) == 55
    assert not given or child[3:35] != given[3:35]
    assert child != context.child_of(given)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, 30.0),
        ("250", 0.25),
        ("0", 0.0),
        ("999999", 30.0),
        ("-5", 30.0),
        ("1e9", 30.0),
        ("9" * 5000, 30.0),
        ("٣", 30.0),
    ],
)
def test_deadline_is_taken_over_and_clamped(given: str | None, expected: float) -> None:
    assert deadline_s(given, 30.0) == expected


def chunked(data: bytes) -> dict[str, object]:
    return {"HTTP_TRANSFER_ENCODING": "chunked", "wsgi.input": io.BytesIO(data)}


@pytest.mark.parametrize("size", [-1, 10, 200])
def test_chunked_body_above_the_limit_raises_however_it_is_read(size: int) -> None:
    environ = chunked(b"x" * 101)
    assert body.limit(environ, 100)
    with pytest.raises(RequestEntityTooLarge):
        list(iter(lambda: environ["wsgi.input"].read(size), b""))  # type: ignore[attr-defined]
