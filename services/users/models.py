"""The tables of users. Portable types only; times are Unix microseconds, so that a cursor can hold one exactly."""

from __future__ import annotations

from sqlalchemy import BigInteger, Index, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from services.kit.db.outbox import Owing


class Base(DeclarativeBase):
    pass


class UserRow(Base):
    """One account. `post_count_version` is the version that posts gave its last count: an older one changes nothing."""

    __tablename__ = "users"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    email: Mapped[str] = mapped_column(String(254))
    email_key: Mapped[str] = mapped_column(String(254), unique=True)
    username: Mapped[str] = mapped_column(String(30), unique=True)
    first_name: Mapped[str] = mapped_column(String(100))
    last_name: Mapped[str] = mapped_column(String(100))
    post_count: Mapped[int] = mapped_column(BigInteger, default=0)
    post_count_version: Mapped[int] = mapped_column(BigInteger, default=0)
    version: Mapped[int] = mapped_column(BigInteger, default=1)
    created_us: Mapped[int] = mapped_column(BigInteger)
    updated_us: Mapped[int] = mapped_column(BigInteger)

    __table_args__ = (Index("ix_users_created", "created_us", "id"),)


class OutboxRow(Owing, Base):
    """Accounts that are gone here and whose credentials auth has still to remove."""
