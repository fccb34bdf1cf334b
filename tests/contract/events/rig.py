"""Two services with databases of their own and a real broker between them: `posts` publishes, `stats` counts what it hears."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import BigInteger, Column, MetaData, String, Table, func, insert, select
from sqlalchemy.engine import URL, make_url
from sqlalchemy.orm import Session

from services.kit.db.portable import NUMBER
from services.kit.db.session import Database
from services.kit.events.brokers import broker_of
from services.kit.events.consumer import Consumer
from services.kit.events.event import Event
from services.kit.events.publisher import Publisher
from services.kit.events.tables import Tables, event_tables
from services.kit.events.transport import Transport
from services.kit.settings import ServiceSettings


class PostPublished(Event, type="post.published.v1", producer="posts", subject="postId"):
    postId: str  # noqa: N815 - the wire's spelling
    number: int


class UserDeleted(Event, type="user.deleted.v1", producer="users", subject="userId"):
    userId: str  # noqa: N815


def schema() -> tuple[MetaData, Tables, Table]:
    """The tables of events, and `effects`: a row for each event that has had its effect, in their sequence."""
    metadata = MetaData()
    tables = event_tables(metadata)
    return metadata, tables, effects_table(metadata)


def effects_table(metadata: MetaData) -> Table:
    return Table(
        "effects",
        metadata,
        Column("at", NUMBER, primary_key=True, autoincrement=True),
        Column("subject", String(64)),
        Column("number", BigInteger),
    )


def database(url: URL) -> tuple[Database, Tables, Table]:
    metadata, tables, effects = schema()
    db = Database(url, metadata=metadata)
    db.migrate()
    return db, tables, effects


@dataclass
class Producer:
    """One instance of posts."""

    db: Database
    publisher: Publisher
    transport: Transport

    def publish(self, subject: str, *numbers: int) -> None:
        """All in one transaction."""
        with self.db.session():
            for number in numbers:
                self.publisher.publish(PostPublished(postId=subject, number=number))

    def unsent(self) -> int:
        return self.publisher.backlog().length


@dataclass
class Stats:
    """One instance of stats. What `refuses` names fails so often."""

    db: Database
    effects: Table
    consumer: Consumer
    transport: Transport
    refuses: dict[tuple[str, int], int] = field(default_factory=dict)
    tried: list[tuple[str, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.consumer.consumes(PostPublished)(self.note)

    def note(self, event: PostPublished, session: Session) -> None:
        key = (event.postId, event.number)
        self.tried.append(key)
        session.execute(insert(self.effects).values(subject=event.postId, number=event.number))
        if self.refuses.get(key, 0):
            self.refuses[key] -= 1
            raise ValueError("refused")

    def seen(self) -> list[tuple[str, int]]:
        """Subjects and numbers, in the sequence of their effects."""
        columns = self.effects.c
        with self.db.session(read_only=True) as session:
            rows = session.execute(select(columns.subject, columns.number).order_by(columns.at))
            return [(row.subject, row.number) for row in rows]

    def count(self) -> int:
        with self.db.session(read_only=True) as session:
            return int(session.scalar(select(func.count()).select_from(self.effects)) or 0)

    @contextmanager
    def running(self) -> Iterator[None]:
        for loop in self.consumer.loops:
            loop.start()
        try:
            yield
        finally:
            self.consumer.stop(5)


def producer(db: Database, tables: Tables, transport: Transport, name: str = "posts-1") -> Producer:
    return Producer(db, Publisher(db, tables, "posts", name, transport), transport)


def stats(db: Database, tables: Tables, effects: Table, transport: Transport, **more: Any) -> Stats:
    return Stats(db, effects, Consumer(db, tables, "stats", transport, **more), transport)


def connect(url: str, instance: str) -> Transport:
    """As a service does that has this EVENTS_URL."""
    found = broker_of(ServiceSettings.model_validate({"events_url": url}), instance)
    assert found is not None
    return found


@contextmanager
def relaying(*producers: Producer) -> Iterator[None]:
    for each in producers:
        each.publisher.loop.start()
    try:
        yield
    finally:
        for each in producers:
            each.publisher.loop.stop()
        for each in producers:
            each.publisher.loop.join(5)


def file(folder: Path, name: str) -> URL:
    return make_url(f"sqlite:///{folder / name}.db")


def in_order(seen: list[tuple[str, int]]) -> bool:
    """Whether the numbers of each subject grow."""
    last: dict[str, int] = {}
    for subject, number in seen:
        if number <= last.get(subject, 0):
            return False
        last[subject] = number
    return True
