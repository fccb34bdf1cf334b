from __future__ import annotations

import json
from pathlib import Path

import pytest

from services.auth.grants import NOBODY, Clients, ClientsError, digest, parse_clients


def write(file: Path, clients: dict[str, str]) -> None:
    replacement = file.with_suffix(".new")
    replacement.write_text(json.dumps(clients))
    replacement.replace(file)


def test_a_secret_fits_its_own_service_only(tmp_path: Path) -> None:
    file = tmp_path / "clients.json"
    write(file, {"posts": digest("s1"), "users": digest("s2")})
    clients = Clients(file)
    assert clients.verify("posts", "s1")
    assert not clients.verify("posts", "s2")
    assert not clients.verify("nobody", "s1")
    assert not clients.verify("nobody", NOBODY)


def test_the_file_is_followed_and_a_broken_one_leaves_the_last_state(tmp_path: Path) -> None:
    file = tmp_path / "clients.json"
    clients = Clients(file)
    assert not clients.verify("posts", "s1"), "no file yet"
    write(file, {"posts": digest("s1")})
    assert clients.verify("posts", "s1")
    file.write_text("{broken")
    assert clients.verify("posts", "s1")
    write(file, {"hello": digest("s3")})
    assert clients.verify("hello", "s3")
    assert not clients.verify("posts", "s1")


def test_without_a_file_nobody_gets_in() -> None:
    assert not Clients(None).verify("posts", "")


@pytest.mark.parametrize(
    "text", ["", "[]", '{"posts": 1}', '{"posts": "secret"}', '{"../x": "' + "0" * 64 + '"}']
)
def test_a_malformed_file_is_an_error_that_shows_no_secret(text: str) -> None:
    with pytest.raises(ClientsError) as caught:
        parse_clients(text)
    assert "secret" not in str(caught.value)
