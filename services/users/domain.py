"""The rules of profiles: usernames, and who may see whom. No I/O."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from services.kit.text import iso

MAX_EMAIL_CHARS = 254
# What of a profile its owner may show to others; nothing of it until then.
Showable = Literal["firstName", "lastName", "postCount", "createdAt"]
SHOWABLE: tuple[Showable, ...] = get_args(Showable)
MAX_USERNAME_CHARS = 30
USERNAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{1,28}[a-z0-9])", re.ASCII)
_NOT_USERNAME = re.compile(r"[^a-z0-9]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class User:
    """One account with its profile. `created_us` and `updated_us` are Unix time in microseconds.

    `version` grows by one with every change of anything else in it.
    """

    id: str
    email: str
    username: str
    first_name: str
    last_name: str
    post_count: int
    shown: tuple[str, ...]
    version: int
    created_us: int
    updated_us: int

    def to_json(self) -> dict[str, Any]:
        """The shape in which the account leaves the service."""
        return {
            "id": self.id,
            "email": self.email,
            "username": self.username,
            "firstName": self.first_name,
            "lastName": self.last_name,
            "postCount": self.post_count,
            "shown": list(self.shown),
            "createdAt": iso(self.created_us),
            "updatedAt": iso(self.updated_us),
        }


@dataclass(frozen=True, slots=True)
class Profile:
    """What others see of an account: its user name, and what its owner shows."""

    user: User

    def to_json(self) -> dict[str, Any]:
        whole = self.user.to_json()
        return {
            name: whole[name]
            for name in ("id", "username", *SHOWABLE)
            if name not in SHOWABLE or name in self.user.shown
        }


def check_username(value: str) -> str:
    """A chosen username: 3–30 of a–z, 0–9, `.`, `_`, `-`, in lower case. Raises ValueError."""
    if not USERNAME.fullmatch(value):
        raise ValueError(
            f"must be 3 to {MAX_USERNAME_CHARS} of a-z, 0-9, . _ and -, and start and end with a letter or digit"
        )
    return value


def usernames(email: str, user_id: str) -> Iterator[str]:
    """Usernames for a new account, best first: the part before the @, then with more and more of a digest of the id.

    Ends with one that only the same id can have taken. The digest keeps the id itself out of a public name.
    """
    base = _NOT_USERNAME.sub("-", email.partition("@")[0].lower()).strip("-")[:21].strip("-") or "user"
    digest = hashlib.sha256(user_id.encode()).hexdigest()
    if len(base) >= 3:
        yield base
    yield f"{base}-{digest[:4]}"
    yield f"{base}-{digest[:8]}"
    yield digest[:MAX_USERNAME_CHARS]


def may_read(user_id: str, subject: str | None, scopes: frozenset[str]) -> bool:
    """A user reads the own account, administrators and services read all.

    The answer does not depend on whether the account exists: no caller learns that by asking.
    """
    return subject == user_id or not scopes.isdisjoint({"admin", "service"})


def may_change(user_id: str, subject: str | None, scopes: frozenset[str]) -> bool:
    """A user changes the own account, administrators change all."""
    return subject == user_id or "admin" in scopes
