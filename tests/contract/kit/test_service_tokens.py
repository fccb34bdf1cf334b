"""A service's own token and auth's keys, found through Consul at a real instance of auth."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from tests.contract.kit.running import TOKEN_PROGRAM, running
from tests.support.eventually import eventually
from tests.support.instances import RunningInstance, instance
from tests.support.matrix import one_always
from tests.support.servers import ConsulServer, consul
from tests.support.signer import signer

SECRET = "the secret of hello"


@pytest.fixture(scope="module")
def agent() -> Iterator[ConsulServer]:
    with consul() as server:
        yield server


@pytest.fixture(scope="module")
def running_auth(agent: ConsulServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningInstance]:
    folder = tmp_path_factory.mktemp("auth")
    clients, kek = folder / "clients.json", folder / "kek"
    clients.write_text(json.dumps({"hello": hashlib.sha256(SECRET.encode()).hexdigest()}))
    kek.write_bytes(Fernet.generate_key())
    env = {
        "CONSUL_HTTP_ADDR": agent.address,
        "AUTH_CLIENTS_FILE": str(clients),
        "AUTH_KEK_FILE": str(kek),
        "AUTH_KEY_PUBLISH_S": "0",
    }
    with instance("auth", folder, env) as one:
        yield one


@pytest.fixture
def auth(running_auth: RunningInstance) -> RunningInstance:
    """It runs, whatever the test before has done to it."""
    if not running_auth.process.running:
        running_auth.start()
    return running_auth


@pytest.mark.parametrize("kind", one_always("gthread", "gevent"))
def test_call_to_a_peer_carries_a_token_of_auth_that_the_peer_verifies(
    agent: ConsulServer, auth: RunningInstance, tmp_path: Path, kind: str
) -> None:
    env = {"CONSUL_HTTP_ADDR": agent.address, "WORKER_CLASS": kind, "SERVICE_CLIENT_SECRET": SECRET}
    with running(tmp_path, program=TOKEN_PROGRAM, **env) as hello:
        answer = eventually(
            lambda: (a := hello.get("/api/hello/as-service")).status_code == 200 and a, 15, every_s=0.2
        )
        assert answer.json() == {"subject": "service:hello"}
        auth.kill()
        assert hello.get("/api/hello/as-service").json() == {"subject": "service:hello"}


def test_wrong_secret_gives_no_token_and_the_peer_refuses(
    agent: ConsulServer, auth: RunningInstance, tmp_path: Path
) -> None:
    with running(
        tmp_path, program=TOKEN_PROGRAM, CONSUL_HTTP_ADDR=agent.address, SERVICE_CLIENT_SECRET="wrong"
    ) as hello:

        def refused() -> str | None:
            answer = hello.get("/api/hello/as-service")
            detail: str = answer.json()["detail"]
            return detail if answer.status_code == 401 else None

        assert eventually(refused, 15, every_s=0.2) == "A bearer token is needed."
        assert "service token not renewed" in hello.events()


def test_without_auth_a_token_cannot_be_checked_and_that_is_503(
    agent: ConsulServer, auth: RunningInstance, tmp_path: Path
) -> None:
    token = auth.call(
        "POST",
        "/api/auth/token",
        json={"grant_type": "client_credentials", "client_id": "hello", "client_secret": SECRET},
    ).json()["access_token"]
    auth.kill()
    with running(tmp_path, program=TOKEN_PROGRAM, CONSUL_HTTP_ADDR=agent.address) as hello:
        answer = hello.get("/internal/hello/caller", headers={"Authorization": f"Bearer {token}"})
        assert answer.status_code == 503
        assert answer.headers["Retry-After"] == "1"
        auth.start()
        eventually(
            lambda: hello.get("/internal/hello/caller", headers={"Authorization": f"Bearer {token}"}).ok, 20
        )


@pytest.mark.parametrize("kind", ["gthread", "gevent"])
def test_instance_that_is_ready_has_auths_keys(tmp_path: Path, kind: str) -> None:
    with contextlib.ExitStack() as stack:
        with signer() as keys:
            env = {"AUTH_JWKS_URL": keys.url, "WORKER_CLASS": kind}
            hello = stack.enter_context(running(tmp_path, program=TOKEN_PROGRAM, **env))
        answer = hello.get("/api/hello/me", headers={"Authorization": f"Bearer {keys.token('u7')}"})
    assert answer.json() == {"subject": "u7"}
