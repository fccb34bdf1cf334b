"""What the tests of analytics let happen: events with times of their own, and how they get into the broker."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from services.auth.events import UserCreated
from services.kit.events.event import Event, wrap
from services.kit.text import now_us
from services.posts.events import CommentCreated, CommentDeleted, PostDeleted, PostPublished
from services.users.events import UserDeleted
from tests.contract.events.rig import connect

DAY = datetime(2026, 3, 1, tzinfo=UTC)


def at(minutes: float) -> datetime:
    return DAY + timedelta(minutes=minutes)


def user(name: str, when: datetime = DAY) -> UserCreated:
    return UserCreated(userId=name, email="a@b.co", firstName="A", lastName="B", createdAt=when)


def user_gone(name: str, when: datetime = DAY) -> UserDeleted:
    return UserDeleted(userId=name, deletedAt=when)


def post(name: str, when: datetime = DAY, *, author: str = "ada", tags: Iterable[str] = ()) -> PostPublished:
    return PostPublished(postId=name, authorId=author, title="t", tags=tuple(tags), publishedAt=when)


def post_gone(name: str, when: datetime = DAY) -> PostDeleted:
    return PostDeleted(postId=name, authorId="ada", deletedAt=when)


def comment(of: str, when: datetime = DAY) -> CommentCreated:
    return CommentCreated(
        commentId="c", postId=of, postAuthorId="ada", authorId="bob", content="x", createdAt=when
    )


def comment_gone(of: str, when: datetime = DAY, *, replies: int = 0) -> CommentDeleted:
    return CommentDeleted(commentId="c", postId=of, authorId="bob", replies=replies, deletedAt=when)


class Teller:
    """Stands for auth, users and posts at the broker: what they tell, in the sequence in which it is given."""

    def __init__(self, url: str) -> None:
        self._streams = connect(url, "teller")

    def tell(self, *events: Event) -> list[tuple[str, str]]:
        """Each once; returns what has been sent, to be sent again."""
        sent = [(event.PRODUCER, wrap(event, now_us()).to_json()) for event in events]
        self.send(sent)
        return sent

    def send(self, messages: Iterable[tuple[str, str]]) -> None:
        for producer, body in messages:
            self._streams.publish(producer, [body])
