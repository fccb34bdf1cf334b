"""The table in which services kept what they owed others before there were events: for the migrations of that time."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Column, Integer, String, Text


def create_outbox(op: Any) -> None:
    """In a migration: make the table."""
    op.create_table(
        "outbox",
        Column("key", String(64), primary_key=True),
        Column("payload", Text, nullable=False),
        Column("due_us", BigInteger, nullable=False),
        Column("attempts", Integer, nullable=False),
    )
    op.create_index("ix_outbox_due_us", "outbox", ["due_us"])
