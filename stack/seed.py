"""Demonstration data, sent through the edge as any client would send it; repeating it adds nothing."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import requests

from stack import http
from stack.errors import StackError
from stack.servers.vault import Vault, write_private

ADMIN = ("admin@example.com", "Grace", "Hopper")
PEOPLE = (
    ("ada@example.com", "Ada", "Lovelace"),
    ("alan@example.com", "Alan", "Turing"),
    ("katherine@example.com", "Katherine", "Johnson"),
)
PRODUCTS: tuple[dict[str, Any], ...] = (
    {"sku": "LAMP-1", "name": "Harbour lamp", "category": "light", "price": 4900, "currency": "EUR"},
    {"sku": "LAMP-2", "name": "Pier lantern", "category": "light", "price": 7900, "currency": "EUR"},
    {"sku": "ROPE-10", "name": "Mooring rope, 10 m", "category": "rope", "price": 2450, "currency": "EUR"},
    {"sku": "ROPE-30", "name": "Mooring rope, 30 m", "category": "rope", "price": 5990, "currency": "EUR"},
    {"sku": "BUOY-R", "name": "Buoy, red", "category": "buoy", "price": 12900, "currency": "EUR"},
    {"sku": "BUOY-G", "name": "Buoy, green", "category": "buoy", "price": 12900, "currency": "EUR"},
)
POSTS = (
    (0, "Notes on the engine", "It weaves algebraic patterns.", "engines"),
    (1, "Can machines wait?", "They can, with a timeout.", "machines"),
    (2, "Check the numbers", "Then check them once more.", "orbits"),
)
"""Author (a number among `PEOPLE`), title, content, tag."""


class Seed:
    """One run against a running stack. Raises StackError with the edge's answer when something is refused."""

    def __init__(
        self, edge: str, vault: Vault, auth: Mapping[str, str] | None, progress: Callable[[str], None]
    ) -> None:
        """`edge` is `host:port`; `auth` the environment of an instance of auth, None where it is this process's own."""
        self.edge = edge
        self.vault = vault
        self.auth = auth
        self.progress = progress

    def run(self) -> dict[str, int]:
        """What was new: counts of people, products and posts."""
        self.progress("people")
        passwords = self._passwords()
        people = sum(self._register(*person, password=passwords[person[0]]) for person in (ADMIN, *PEOPLE))
        self._grant_admin()
        self.progress("products")
        admin = self._login(ADMIN[0], passwords[ADMIN[0]])
        products = sum(self._create("/api/products", product, admin) for product in PRODUCTS)
        self.progress("posts")
        posts = 0
        for author, title, content, tag in POSTS:
            if not self._posted(title, tag):
                email = PEOPLE[author][0]
                post = {"title": title, "content": content, "tags": [tag, "demo"]}
                posts += self._create("/api/posts", post, self._login(email, passwords[email]))
        return {"new people": people, "new products": products, "new posts": posts}

    def _passwords(self) -> dict[str, str]:
        """E-mail address → password; made once, kept among the secrets."""
        file = self.vault.root / "people.json"
        known: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}
        for email, *_ in (ADMIN, *PEOPLE):
            known.setdefault(email, secrets.token_urlsafe(18))
        write_private(file, json.dumps(known, indent=2) + "\n")
        admin = {"email": ADMIN[0], "password": known[ADMIN[0]]}
        write_private(self.vault.admin_file, json.dumps(admin, indent=2) + "\n")
        return known

    def _register(self, email: str, first: str, last: str, *, password: str) -> bool:
        body = {"email": email, "password": password, "firstName": first, "lastName": last}
        return self._create("/api/auth/register", body, None)

    def _grant_admin(self) -> None:
        """The first administrator cannot be made through the edge: auth's own command works on its database."""
        argv = [sys.executable, "-m", "services.auth", "grant-admin", ADMIN[0]]
        done = subprocess.run(
            argv,
            env=self.auth,
            capture_output=True,
            text=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode:
            raise StackError(f"no administrator: {(done.stderr or done.stdout).strip()[-500:]}")

    def _login(self, email: str, password: str) -> str:
        answer = self._send("POST", "/api/auth/login", {"email": email, "password": password})
        if answer.status_code != 200:
            raise StackError(
                f"{email} cannot log in: {answer.status_code} {answer.content[:300]!r}",
                "an account of that name with another password? make clean starts afresh",
            )
        return str(answer.json()["access_token"])

    def _posted(self, title: str, tag: str) -> bool:
        answer = self._send("GET", f"/api/posts?tag={tag}")
        return any(one["title"] == title for one in answer.json()["data"])

    def _create(self, path: str, body: dict[str, Any], token: str | None) -> bool:
        """True when it was made, False when it is there already (409)."""
        answer = self._send("POST", path, body, token)
        if answer.status_code not in {201, 409}:
            raise StackError(f"POST {path}: {answer.status_code} {answer.content[:500]!r}")
        return answer.status_code == 201

    def _send(
        self, method: str, path: str, body: object = None, token: str | None = None
    ) -> requests.Response:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            return http.call(self.edge, method, path, body=body, headers=headers, timeout_s=10)
        except OSError as error:
            raise StackError(f"the edge does not answer: {error}", "make status") from error
