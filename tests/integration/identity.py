"""What the tests of auth and users share: Consul, Redis, keys and secrets, and real instances of both services."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
from cryptography.fernet import Fernet

from tests.support.instances import ROOT, RunningInstance, instance
from tests.support.servers import ConsulServer, RedisServer, consul, redis

PASSWORD = "correct horse battery"
# Cheap enough to hash hundreds of times in a test; what a real hash costs is tested apart.
CHEAP_HASH = {"AUTH_ARGON2_MEMORY_KIB": "64", "AUTH_ARGON2_TIME": "1", "AUTH_ARGON2_LANES": "1"}


@dataclass
class Person:
    """A registered user, and the tokens of the last login."""

    id: str
    email: str
    access: str = ""
    refresh: str = ""


@dataclass
class Identity:
    """auth and users on `folder`, two instances each. `env` is what a further instance needs."""

    consul: ConsulServer
    cache: RedisServer
    state: RedisServer
    folder: Path
    env: dict[str, str]
    auth: list[RunningInstance] = field(default_factory=list)
    users: list[RunningInstance] = field(default_factory=list)
    databases: Mapping[str, str] = field(default_factory=dict)
    root: Person | None = None

    def register(self, email: str | None = None, instance: RunningInstance | None = None, **body: Any) -> Any:
        """The answer to a registration; each has an address of its own."""
        email = email or f"{uuid.uuid4().hex[:12]}@example.com"
        sent = {"email": email, "password": PASSWORD, "firstName": "Ada", "lastName": "Lovelace", **body}
        return (instance or self.auth[0]).call("POST", "/api/auth/register", json=sent)

    def register_at_once(self, email: str, times: int) -> list[int]:
        """The statuses, in order, of so many registrations of one address at the same moment, at both instances."""
        body = {"email": email, "password": PASSWORD, "firstName": "A", "lastName": "B"}

        def register(number: int) -> int:
            url = f"{self.auth[number % 2].url}/api/auth/register"
            return requests.post(url, json=body, timeout=15).status_code

        with ThreadPoolExecutor(times) as pool:
            return sorted(pool.map(register, range(times)))

    def login(self, email: str, password: str = PASSWORD, source: str | None = None, on: int = 0) -> Any:
        return self.auth[on].call(
            "POST",
            "/api/auth/login",
            json={"email": email, "password": password},
            headers={"X-Forwarded-For": source} if source else None,
        )

    def person(self) -> Person:
        """A new user, logged in."""
        answer = self.register()
        assert answer.status_code == 201, answer.text
        user = answer.json()["user"]
        return self.again(Person(user["id"], user["email"]))

    def again(self, person: Person) -> Person:
        """Log in (again)."""
        answer = self.login(person.email)
        assert answer.status_code == 200, answer.text
        person.access, person.refresh = answer.json()["access_token"], answer.json()["refresh_token"]
        return person

    def admin(self) -> Person:
        """The administrator, made once by the command that `make seed` uses, and logged in again."""
        if self.root is None:
            self.root = self.person()
            done = self.command("grant-admin", self.root.email)
            assert done.returncode == 0, done.stderr
        return self.again(Person(self.root.id, self.root.email))

    @contextlib.contextmanager
    def away(self, instances: list[RunningInstance]) -> Iterator[None]:
        """Killed for as long as the context lasts."""
        for each in instances:
            each.kill()
        try:
            yield
        finally:
            for each in instances:
                each.start()

    def command(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        """`python -m services.auth …` beside the running instances."""
        variables = {**os.environ, **self.env, **env, "DATA_DIR": str(self.folder), "PYTHONPATH": str(ROOT)}
        if "auth" in self.databases:
            variables["DATABASE_URL"] = self.databases["auth"]
        return subprocess.run(
            [sys.executable, "-m", "services.auth", *words],
            env=variables,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def service_token(self, name: str) -> str:
        body = {"grant_type": "client_credentials", "client_id": name, "client_secret": f"secret-of-{name}"}
        answer = self.auth[0].call("POST", "/api/auth/token", json=body)
        assert answer.status_code == 200, answer.text
        token: str = answer.json()["access_token"]
        return token

    def further(self, service: str, **env: str) -> contextlib.AbstractContextManager[RunningInstance]:
        """One more instance on the same data."""
        database = {"DATABASE_URL": self.databases[service]} if service in self.databases else {}
        return instance(service, self.folder, {**self.env, **database, **env})


def secrets(folder: Path) -> dict[str, str]:
    """Key-encryption key and clients' secrets of this world, as environment variables."""
    kek, clients = folder / "kek", folder / "clients.json"
    kek.write_bytes(Fernet.generate_key())
    names = ("users", "posts", "notifications", "hello")
    clients.write_text(json.dumps({n: hashlib.sha256(f"secret-of-{n}".encode()).hexdigest() for n in names}))
    return {"AUTH_KEK_FILE": str(kek), "AUTH_CLIENTS_FILE": str(clients)}


@contextlib.contextmanager
def identity(folder: Path, databases: Mapping[str, str] | None = None, **env: str) -> Iterator[Identity]:
    """Everything, ready to answer. `databases` are URLs by service; without one it keeps an SQLite file in `folder`."""
    with contextlib.ExitStack() as stack:
        agent = stack.enter_context(consul())
        cache, state = stack.enter_context(redis()), stack.enter_context(redis())
        variables = {
            "CONSUL_HTTP_ADDR": agent.address,
            "REDIS_CACHE_URL": cache.url,
            "REDIS_STATE_URL": state.url,
            "SERVICE_CLIENT_SECRET": "secret-of-users",
            **secrets(folder),
            **CHEAP_HASH,
            **env,
        }
        world = Identity(agent, cache, state, folder, variables, databases=databases or {})
        for _ in range(2):
            world.auth.append(stack.enter_context(world.further("auth")))
            world.users.append(stack.enter_context(world.further("users")))
        try:
            yield world
        finally:
            # How an instance leaves is tested with the kit; here it would only take time, four times.
            for each in (*world.auth, *world.users):
                each.kill()


def problem(answer: requests.Response, status: int) -> dict[str, Any]:
    """The problem object of an answer that must be this error."""
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"].startswith("application/problem+json")
    body: dict[str, Any] = answer.json()
    assert body["status"] == status
    return body
