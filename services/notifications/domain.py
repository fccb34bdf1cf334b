"""What a notification is, which kinds and channels there are, and what each says. No I/O."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from services.kit.text import iso

Kind = Literal["welcome", "comment", "reply", "mention"]
Channel = Literal["app", "email", "push", "sms"]
KINDS: tuple[Kind, ...] = get_args(Kind)
CHANNELS: tuple[Channel, ...] = get_args(Channel)
# Where a person has said nothing.
ON_BY_DEFAULT = frozenset({"app", "email", "push"})

MAX_TITLE = 200
MAX_BODY = 500
# Of one text: who names more than that, names nobody in particular.
MAX_MENTIONS = 20
_USERNAME = re.compile(r"[a-z0-9._-]{3,30}", re.ASCII)
# Control characters, lone surrogates, unassigned, and what separates lines: none belongs into one line of text.
_NOT_IN_A_LINE = frozenset({"Cc", "Cs", "Cn", "Zl", "Zp"})


def one_line(text: str, limit: int = MAX_TITLE) -> str:
    """The text as a line of at most `limit` characters, whatever is in it: fit for a header."""
    kept = "".join(" " if unicodedata.category(c) in _NOT_IN_A_LINE else c for c in text)
    return _short(" ".join(kept.split()), limit)


def excerpt(text: str) -> str:
    """The beginning of what somebody wrote, with its line breaks, and without other control characters."""
    kept = "".join(
        c for c in text.replace("\r\n", "\n") if c in "\n\t" or unicodedata.category(c) not in {"Cc", "Cs"}
    )
    return _short(kept.strip(), MAX_BODY)


def _short(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def usernames(mentions: Iterable[str]) -> list[str]:
    """Those mentions that can be user names, each once, and not without end."""
    names = dict.fromkeys(name.lower() for name in mentions)
    return [name for name in names if _USERNAME.fullmatch(name)][:MAX_MENTIONS]


NOBODY = ""


@dataclass(frozen=True, slots=True)
class New:
    """What is to be told to one person. `about` is what happened: a person hears of it once.

    `actor_id` is who did it, `post_id` where: people may have silenced either.
    """

    user_id: str
    kind: Kind
    about: str
    title: str
    body: str
    actor_id: str | None = None
    post_id: str | None = None


def welcome(user_id: str, first_name: str) -> New:
    title = one_line(f"Welcome, {first_name}!")
    return New(
        user_id, "welcome", f"user:{user_id}", title, "Your account is open. It is good to have you here."
    )


def by_comment(user_id: str, kind: Kind, comment_id: str, post_id: str, actor_id: str, content: str) -> New:
    """A comment on the person's post, an answer to the person's comment, or one that names the person."""
    titles: dict[Kind, str] = {
        "comment": "New comment on your post",
        "reply": "New answer to your comment",
        "mention": "You were mentioned in a comment",
    }
    return New(user_id, kind, f"comment:{comment_id}", titles[kind], excerpt(content), actor_id, post_id)


def by_post(user_id: str, post_id: str, actor_id: str, title: str) -> New:
    """A post that names the person."""
    return New(
        user_id,
        "mention",
        f"post:{post_id}",
        "You were mentioned in a post",
        excerpt(title),
        actor_id,
        post_id,
    )


@dataclass(frozen=True, slots=True)
class Notification:
    """One notification of one person. Times are microseconds since 1970 (UTC); `number` orders the list."""

    number: int
    id: str
    user_id: str
    kind: Kind
    title: str
    body: str
    actor_id: str | None
    post_id: str | None
    read_us: int | None
    created_us: int

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "kind": self.kind,
            "title": self.title,
            "body": self.body,
            "actorId": self.actor_id,
            "postId": self.post_id,
            "readAt": iso(self.read_us) if self.read_us is not None else None,
            "createdAt": iso(self.created_us),
        }


@dataclass(frozen=True, slots=True)
class Person:
    """Where a person can be reached."""

    id: str
    email: str | None
    first_name: str
    last_name: str
    phone: str | None


@dataclass(frozen=True, slots=True)
class Subscription:
    """A browser that takes pushes, as the Push API describes it (`p256dh`, `auth`: base64url)."""

    id: str
    endpoint: str
    p256dh: str
    auth: str
    created_us: int

    def to_json(self) -> dict[str, Any]:
        return {"id": self.id, "endpoint": self.endpoint, "createdAt": iso(self.created_us)}


@dataclass(frozen=True, slots=True)
class Silenced:
    """A person or a post of which a person wants to hear nothing."""

    other_id: str
    created_us: int

    def to_json(self) -> dict[str, Any]:
        return {"id": self.other_id, "createdAt": iso(self.created_us)}


def retry_s(attempts: int, chance: float) -> float:
    """The pause after the n-th failed attempt: full jitter over 2 s, doubled each time, 15 minutes at most."""
    return chance * min(900.0, 2.0 * 2.0 ** min(attempts - 1, 20))
