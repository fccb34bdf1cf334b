"""The words of a search are words, on a real FTS5 index, whatever they hold."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations
from hypothesis import given, settings
from hypothesis import strategies as st

from services.kit.db.fulltext import create_search, drop_search, matches

ROWS = {
    1: ("Hello World", "quick brown fox"),
    2: ("Ünïcode", "the NOT operator; a-b AND c:d"),
    3: ("हिन्दी पाठ", "日本語 テキスト"),
}


@pytest.fixture(scope="module")
def db() -> Iterator[sa.Connection]:
    with sa.create_engine("sqlite://").connect() as connection:
        connection.execute(
            sa.text("CREATE TABLE docs (number INTEGER PRIMARY KEY, title TEXT, content TEXT)")
        )
        create_search(Operations(MigrationContext.configure(connection)), "docs", ["title", "content"])
        for number, row in ROWS.items():
            connection.execute(
                sa.text("INSERT INTO docs VALUES (:n, :t, :c)"), {"n": number, "t": row[0], "c": row[1]}
            )
        yield connection


def find(db: sa.Connection, words: str) -> list[int]:
    query = sa.select(sa.column("number")).select_from(sa.table("docs"))
    return list(db.scalars(query.where(matches("sqlite", "docs", words))))


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("hello", [1]),
        ("fox HELLO", [1]),
        ("hello operator", []),
        ("hel", []),
        ("unicode", [2]),
        ("NOT", [2]),
        ("a-b", [2]),
        ("c:d", [2]),
        ("title:hello", []),
        ("hello !!! ***", [1]),
        ("हिन्दी", [3]),
        ("日本語", [3]),
    ],
)
def test_every_word_must_occur(db: sa.Connection, words: str, found: list[int]) -> None:
    assert find(db, words) == found


@pytest.mark.parametrize(
    "words",
    [
        '"',
        '""',
        "'",
        "*",
        "^",
        "(",
        "NEAR(a b",
        "a OR",
        "AND",
        "hello*\x00",
        "!!!",
        "{title}: x",
        "-- ;",
        "\\",
    ],
)
def test_syntax_is_no_error_and_finds_nothing_else(db: sa.Connection, words: str) -> None:
    assert find(db, words) in ([], [1], [2])


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
def test_no_text_is_an_error(db: sa.Connection, words: str) -> None:
    find(db, words)


def test_index_follows_changes_and_can_be_dropped(db: sa.Connection) -> None:
    db.execute(sa.text("UPDATE docs SET title = 'Goodbye' WHERE number = 1"))
    assert (find(db, "hello"), find(db, "goodbye")) == ([], [1])
    db.execute(sa.text("DELETE FROM docs WHERE number = 1"))
    assert find(db, "goodbye") == []
    drop_search(Operations(MigrationContext.configure(db)), "docs")
    db.execute(sa.text("INSERT INTO docs VALUES (9, 'again', '')"))
