"""Secrets: private, made once, kept."""

from __future__ import annotations

import base64
import hashlib
import json
import uuid
from pathlib import Path

import pytest

from stack.servers.vault import REDIS_OPERATOR, Vault, write_private


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    made = Vault(tmp_path / "secrets")
    made.open()
    return made


def test_every_secret_is_private(vault: Vault) -> None:
    vault.consul_token_file("users")
    vault.gossip_key()
    vault.redis_password_file("users")
    vault.key_encryption_file()
    vault.write_clients(["users"])
    files = [path for path in vault.root.rglob("*") if path.is_file()]
    assert len(files) == 6
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert vault.root.stat().st_mode & 0o777 == 0o700


def test_folder_that_others_could_read_is_closed(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir(mode=0o755)
    Vault(tmp_path / "secrets").open()
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700


def test_secret_is_made_once(vault: Vault) -> None:
    token = vault.consul_token("users")
    assert uuid.UUID(token)
    assert vault.consul_token("users") == token
    assert vault.consul_token("posts") != token
    assert vault.consul_names() == ["posts", "users"]


def test_each_service_has_a_redis_password_of_its_own(vault: Vault) -> None:
    assert vault.redis_password("users") != vault.redis_password("posts")
    assert vault.redis_password("users") == vault.redis_password("users")
    vault.redis_password(REDIS_OPERATOR)
    assert vault.redis_names() == ["posts", "users"]


def test_lost_secret_is_made_again(vault: Vault) -> None:
    old = vault.consul_token("users")
    vault.consul_token_file("users").write_text("")
    assert vault.consul_token("users") not in {"", old}


def test_keys_have_the_length_their_readers_want(vault: Vault) -> None:
    assert len(base64.b64decode(vault.gossip_key())) == 32
    assert len(base64.urlsafe_b64decode(vault.key_encryption_file().read_text())) == 32


def test_auth_learns_digests_of_all_services_ever_known(vault: Vault) -> None:
    vault.write_clients(["users", "posts"])
    known = json.loads(vault.write_clients(["hello"]).read_text())
    assert sorted(known) == ["hello", "posts", "users"]
    secret = vault.service_secret_file("users").read_text().strip()
    assert known["users"] == hashlib.sha256(secret.encode()).hexdigest()


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "x"
    write_private(file, "old")
    with pytest.raises(UnicodeEncodeError):
        write_private(file, "\udcff")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]
