"""What all tables of posts share."""

from __future__ import annotations

from sqlalchemy import BigInteger, Integer
from sqlalchemy.orm import DeclarativeBase

# SQLite numbers rows by itself only in a column of exactly the type INTEGER.
NUMBER = BigInteger().with_variant(Integer(), "sqlite")


class Base(DeclarativeBase):
    pass
