"""auth when what it needs is away, comes late, or changes: users down, keys rotated, a bad environment."""

from __future__ import annotations

import contextlib
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jwt
import pytest
from cryptography.fernet import Fernet

from tests.integration.identity import Identity, problem
from tests.support.databases import Backend
from tests.support.eventually import eventually
from tests.support.instances import RunningInstance, instance
from tests.support.matrix import one_always

pytestmark = pytest.mark.shares("identity")


def kid(token: str) -> str:
    return str(jwt.get_unverified_header(token)["kid"])


def published(on: RunningInstance) -> list[str]:
    answer = on.call("GET", "/api/auth/.well-known/jwks.json")
    assert answer.status_code == 200
    return [key["kid"] for key in answer.json()["keys"]]


def test_both_instances_agreed_on_the_first_key(world: Identity) -> None:
    assert len(published(world.auth[0])) == 1
    assert published(world.auth[0]) == published(world.auth[1])
    person = world.person()
    tokens = [world.login(person.email, on=on).json()["access_token"] for on in (0, 1)]
    assert {kid(token) for token in tokens} == set(published(world.auth[0]))


@pytest.mark.long
def test_instances_started_at_the_same_time_on_an_empty_database_agree(
    world: Identity, backend: Backend, tmp_path: Path
) -> None:
    env = {**world.env, **backend.env("auth"), "DATA_DIR": str(tmp_path), "CONSUL_HTTP_ADDR": "127.0.0.1:1"}
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(3) as pool:
        contexts = [instance("auth", tmp_path, env) for _ in range(3)]
        running = list(pool.map(stack.enter_context, contexts))
        with ThreadPoolExecutor(3) as asking:
            keys = list(asking.map(published, running))
    assert len(keys[0]) == 1
    assert keys[0] == keys[1] == keys[2]


def test_a_rotation_is_published_before_it_signs_and_old_tokens_stay_good(world: Identity) -> None:
    admin = world.admin()
    old = kid(admin.access)
    answer = world.auth[0].call("POST", "/api/auth/keys/rotate", token=admin.access)
    assert answer.status_code == 201, answer.text
    new = answer.json()["data"]["kid"]
    eventually(lambda: {old, new} <= set(published(world.auth[1])), within_s=1.5)
    assert kid(world.login(admin.email, on=1).json()["access_token"]) == old, "published, not used yet"
    again = world.auth[1].call("POST", "/api/auth/keys/rotate", token=admin.access)
    assert (again.status_code, again.json()["data"]["kid"]) == (200, new)
    for on in (0, 1):
        eventually(lambda on=on: kid(world.login(admin.email, on=on).json()["access_token"]) == new, 5)
    fresh = world.login(admin.email).json()["access_token"]
    assert {old, new} <= set(published(world.auth[0]))
    for token in (admin.access, fresh):
        eventually(
            lambda token=token: world.users[0].call("GET", "/api/users/me", token=token).status_code == 200,
            within_s=8,
        )
        assert world.auth[1].call("GET", "/api/auth/api-keys", token=token).status_code == 200


def test_rotation_by_command_is_taken_up_by_running_instances(world: Identity) -> None:
    done = world.command("rotate")
    assert done.returncode == 0, done.stderr
    new = done.stdout.split()[2].rstrip(",") if done.stdout.startswith("new key") else done.stdout.split()[2]
    eventually(lambda: all(any(new.startswith(k) for k in published(on)) for on in world.auth), within_s=5)


def test_rotation_is_for_administrators(world: Identity) -> None:
    before = published(world.auth[0])
    problem(world.auth[0].call("POST", "/api/auth/keys/rotate", token=world.person().access), 403)
    problem(world.auth[0].call("POST", "/api/auth/keys/rotate"), 401)
    problem(world.auth[0].call("POST", "/api/auth/keys/rotate", token=world.service_token("posts")), 403)
    # The test before may have left a rotation under way, in the end of which old keys go.
    assert set(published(world.auth[0])) <= set(before), "a new key"


def test_the_key_set_may_be_cached_for_less_than_a_key_is_published_ahead(world: Identity) -> None:
    caching = world.auth[0].call("GET", "/api/auth/.well-known/jwks.json").headers["Cache-Control"]
    assert caching == "no-cache", "with keys published 2 s ahead"


def test_registration_without_users_leaves_nothing_and_works_afterwards(world: Identity) -> None:
    email = f"{uuid.uuid4().hex}@example.com"
    with world.away(world.users):
        for _ in range(2):
            answer = world.register(email)
            problem(answer, 503)
            assert int(answer.headers["Retry-After"]) >= 1
        problem(world.login(email), 401)
    answer = eventually(
        lambda: (a := world.register(email)).status_code == 201 and a, within_s=15, every_s=0.3
    )
    token = world.login(email).json()["access_token"]
    me = world.users[0].call("GET", "/api/users/me", token=token)
    assert me.json()["data"]["id"] == answer.json()["user"]["id"]
    problem(world.register(email), 409)


def test_a_restarted_auth_signs_with_the_same_key(world: Identity) -> None:
    before = published(world.auth[1])
    world.auth[1].kill()
    world.auth[1].start()
    assert set(published(world.auth[1])) <= set(before) | set(published(world.auth[0]))
    assert published(world.auth[1])[0] == published(world.auth[0])[0]


@pytest.mark.parametrize("kek", one_always("malformed", "missing", ""))
def test_a_bad_key_encryption_key_is_one_clear_line(world: Identity, tmp_path: Path, kek: str) -> None:
    file = tmp_path / "kek"
    if kek == "malformed":
        file.write_text("not a key")
    done = world.command("rotate", AUTH_KEK_FILE=str(file) if kek else "")
    assert done.returncode == 1
    assert "cannot start" in done.stderr
    assert "auth_kek_file" in done.stderr.lower()
    assert "Traceback" not in done.stderr


def test_an_instance_that_could_not_sign_does_not_start(world: Identity, tmp_path: Path) -> None:
    file = tmp_path / "kek"
    file.write_bytes(Fernet.generate_key())
    done = world.command(AUTH_KEK_FILE=str(file))
    assert done.returncode == 1
    assert "AUTH_KEK_FILE is not the one" in done.stderr
