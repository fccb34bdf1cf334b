"""The certificate: made once, left alone while it is good, never an operator's."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from cryptography import x509

from haproxy.controller.config import tls
from haproxy.controller.settings import EdgeSettings


def settings(tmp_path: Path) -> EdgeSettings:
    return EdgeSettings(edge_dir=tmp_path / "edge", edge_run_dir=tmp_path)


def test_made_once_and_private(tmp_path: Path) -> None:
    path = tls.ensure_tls(settings(tmp_path))
    first = path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600
    assert b"BEGIN PRIVATE KEY" in first
    assert tls.ensure_tls(settings(tmp_path)).read_bytes() == first
    assert [p.name for p in path.parent.iterdir()] == ["edge.pem"]


def test_valid_for_localhost_and_not_for_long(tmp_path: Path) -> None:
    certificate = x509.load_pem_x509_certificate(tls.ensure_tls(settings(tmp_path)).read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "localhost" in names.get_values_for_type(x509.DNSName)
    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc < datetime.timedelta(days=398)


def test_our_own_is_renewed_before_it_expires(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tls.ensure_tls(settings(tmp_path)).read_bytes()
    monkeypatch.setattr(tls, "RENEW_BEFORE_DAYS", tls.LIFETIME_DAYS + 1)
    assert tls.ensure_tls(settings(tmp_path)).read_bytes() != first


def test_an_operators_certificate_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = settings(tmp_path)
    made.certificate.parent.mkdir(parents=True)
    made.certificate.write_text("what an operator has put here")
    monkeypatch.setattr(tls, "RENEW_BEFORE_DAYS", tls.LIFETIME_DAYS + 1)
    assert tls.ensure_tls(made).read_text() == "what an operator has put here"
