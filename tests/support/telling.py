"""auth, users and posts as far as others hear of them: their events, by their own outboxes and relays, over a real broker."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from redis import Redis
from sqlalchemy import MetaData
from sqlalchemy.engine import make_url

from services.auth.events import UserCreated
from services.kit.db.session import Database
from services.kit.events.event import Event
from services.kit.events.publisher import Publisher
from services.kit.events.redis_streams import RedisStreams
from services.kit.events.tables import event_tables
from services.posts.events import CommentCreated, CommentDeleted, PostDeleted, PostPublished
from services.users.events import UserDeleted

PRODUCERS = ("auth", "users", "posts")


def now() -> datetime:
    return datetime.now(UTC)


def new_id() -> str:
    return uuid.uuid4().hex


class Teller:
    """What has happened in these services, with ids of its own where none are given."""

    def __init__(self, publishers: dict[str, tuple[Database, Publisher]]) -> None:
        self._publishers = publishers

    def tell(self, *events: Event) -> None:
        """Each in a transaction of its own."""
        for event in events:
            db, publisher = self._publishers[event.PRODUCER]
            with db.session():
                publisher.publish(event)

    def unsent(self) -> int:
        return sum(publisher.backlog().length for _, publisher in self._publishers.values())

    def user(self, user_id: str | None = None, *, email: str | None = None, first_name: str = "Ada") -> str:
        """An account is opened; returns its id, which begins its address."""
        user_id = user_id or new_id()
        email = email or f"{user_id}@example.com"
        self.tell(
            UserCreated(
                userId=user_id, email=email, firstName=first_name, lastName="Lovelace", createdAt=now()
            )
        )
        return user_id

    def user_gone(self, user_id: str) -> None:
        self.tell(UserDeleted(userId=user_id, deletedAt=now()))

    def post(self, author_id: str, *, mentions: Sequence[str] = (), title: str = "A post") -> str:
        post_id = new_id()
        self.tell(
            PostPublished(
                postId=post_id, authorId=author_id, title=title, mentions=tuple(mentions), publishedAt=now()
            )
        )
        return post_id

    def post_gone(self, post_id: str, author_id: str) -> None:
        self.tell(PostDeleted(postId=post_id, authorId=author_id, deletedAt=now()))

    def comment(
        self,
        post_id: str,
        post_author_id: str,
        author_id: str,
        content: str = "Well said.",
        *,
        parent_author_id: str | None = None,
        mentions: Sequence[str] = (),
    ) -> str:
        comment_id = new_id()
        self.tell(
            CommentCreated(
                commentId=comment_id,
                postId=post_id,
                postAuthorId=post_author_id,
                authorId=author_id,
                parentAuthorId=parent_author_id,
                content=content,
                mentions=tuple(mentions),
                createdAt=now(),
            )
        )
        return comment_id

    def comment_gone(self, comment_id: str, post_id: str, author_id: str) -> None:
        self.tell(CommentDeleted(commentId=comment_id, postId=post_id, authorId=author_id, deletedAt=now()))


@contextlib.contextmanager
def teller(folder: Path, broker_url: str) -> Iterator[Teller]:
    """The three services, each with an SQLite file in `folder`, and their relays."""
    publishers = {}
    with contextlib.ExitStack() as stack:
        for name in PRODUCERS:
            metadata = MetaData()
            tables = event_tables(metadata)
            db = Database(make_url(f"sqlite:///{folder / f'tells-{name}.db'}"), metadata=metadata)
            db.migrate()
            stack.callback(db.dispose)
            redis = Redis.from_url(broker_url, socket_timeout=3, socket_connect_timeout=3)
            publisher = Publisher(db, tables, name, f"{name}-test", RedisStreams(redis, f"{name}-test"))
            publisher.loop.start()
            stack.callback(publisher.loop.join, 5)
            stack.callback(publisher.loop.stop)
            publishers[name] = (db, publisher)
        yield Teller(publishers)
