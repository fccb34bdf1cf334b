"""The tables of events in a service's own database. A migration makes them: `create_event_tables(op)`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, Column, Index, Integer, MetaData, String, Table, Text

from services.kit.db.portable import NUMBER


@dataclass(frozen=True, slots=True)
class Tables:
    """`published`: events of this service, numbered in the order of each subject; `sent_us` null: not with the broker yet.
    `relay`: the one row that says which instance hands them over, and until when. `consumed`: ids of events that have had their
    effect here, or are in `parked`: those that failed, and those of the same subject behind them.

    All times are Unix microseconds.
    """

    published: Table
    relay: Table
    consumed: Table
    parked: Table


def event_tables(metadata: MetaData) -> Tables:
    """The tables, as part of the metadata."""
    if "events_published" in metadata.tables:
        return Tables(
            *(metadata.tables[f"events_{each}"] for each in ("published", "relay", "consumed", "parked"))
        )
    return Tables(
        Table(
            "events_published",
            metadata,
            Column("number", NUMBER, primary_key=True, autoincrement=True),
            Column("subject", String(128), nullable=False),
            Column("body", Text, nullable=False),
            Column("created_us", BigInteger, nullable=False),
            Column("sent_us", BigInteger),
            Index("ix_events_published_sent_us", "sent_us", "number"),
        ),
        Table(
            "events_relay",
            metadata,
            Column("number", Integer, primary_key=True, autoincrement=False),
            Column("holder", String(128), nullable=False),
            Column("until_us", BigInteger, nullable=False),
        ),
        Table(
            "events_consumed",
            metadata,
            Column("id", String(64), primary_key=True),
            Column("at_us", BigInteger, nullable=False, index=True),
        ),
        Table(
            "events_parked",
            metadata,
            Column("number", NUMBER, primary_key=True, autoincrement=True),
            Column("subject", String(256), nullable=False, index=True),
            Column("body", Text, nullable=False),
            Column("attempts", Integer, nullable=False),
            Column("due_us", BigInteger, nullable=False),
        ),
    )


def create_event_tables(op: Any) -> None:
    """In a migration: make them."""
    metadata = MetaData()
    event_tables(metadata)
    metadata.create_all(op.get_bind())


def drop_event_tables(op: Any) -> None:
    """In a migration that is undone."""
    metadata = MetaData()
    event_tables(metadata)
    metadata.drop_all(op.get_bind())
