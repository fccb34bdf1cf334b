"""Full-text search of a table on either database: FTS5 kept by triggers, or a generated tsvector with a GIN index.

Searching means: every word of the query occurs, as a whole word, in one of the indexed columns; case does not
count. Words are never read as operators, so no query text is a syntax error. (FTS5 folds accents, PostgreSQL's
`simple` configuration does not.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, column, func, literal_column, select, table, text

MAX_WORDS = 16


def create_search(op: Any, name: str, columns: Sequence[str]) -> None:
    """In a migration: index `columns` of the table `name`, whose integer primary key is called `number`."""
    if op.get_bind().dialect.name == "postgresql":
        # By ICU, since a database made in the C locale folds the case of ASCII letters only.
        joined = " || ' ' || ".join(columns)
        op.execute(
            f"ALTER TABLE {name} ADD COLUMN search tsvector "
            f"GENERATED ALWAYS AS (to_tsvector('simple', lower(({joined}) COLLATE \"und-x-icu\"))) STORED"
        )
        op.execute(f"CREATE INDEX {name}_search ON {name} USING gin (search)")
        return
    listed = ", ".join(columns)
    new, old = (", ".join(f"{row}.{c}" for c in columns) for row in ("new", "old"))
    # Names come from the migration's own text, never from outside.
    add = f"INSERT INTO {name}_search (rowid, {listed}) VALUES (new.number, {new});"  # noqa: S608
    remove = (
        f"INSERT INTO {name}_search ({name}_search, rowid, {listed}) VALUES ('delete', old.number, {old});"  # noqa: S608
    )
    op.execute(
        f"CREATE VIRTUAL TABLE {name}_search USING fts5({listed}, content='{name}', content_rowid='number', "
        "tokenize='unicode61 remove_diacritics 2')"
    )
    op.execute(f"CREATE TRIGGER {name}_search_add AFTER INSERT ON {name} BEGIN {add} END")
    op.execute(f"CREATE TRIGGER {name}_search_remove AFTER DELETE ON {name} BEGIN {remove} END")
    op.execute(
        f"CREATE TRIGGER {name}_search_change AFTER UPDATE OF {listed} ON {name} BEGIN {remove} {add} END"
    )


def drop_search(op: Any, name: str) -> None:
    """In a migration: undo `create_search`; before the table itself goes."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute(f"ALTER TABLE {name} DROP COLUMN search")
        return
    for trigger in ("add", "remove", "change"):
        op.execute(f"DROP TRIGGER {name}_search_{trigger}")
    op.execute(f"DROP TABLE {name}_search")


def fts5_query(words: str) -> str:
    """The words as FTS5 phrases that must all occur. A quoted phrase has no operators; FTS5 drops empty ones."""
    chunks = words.replace("\0", " ").split()[:MAX_WORDS]
    # The empty query is a syntax error, the empty phrase finds nothing.
    return " ".join('"' + chunk.replace('"', '""') + '"' for chunk in chunks or [""])


def matches(dialect: str, name: str, words: str) -> ColumnElement[bool]:
    """The WHERE clause that keeps the rows of `name` in which all the words occur. Words without a letter match none."""
    if dialect == "postgresql":
        limited = " ".join(words.replace("\0", " ").lower().split()[:MAX_WORDS])
        return literal_column(f"{name}.search").bool_op("@@")(func.plainto_tsquery("simple", limited))
    index = table(f"{name}_search", column("rowid"))
    found = text(f"{name}_search MATCH :fts_words").bindparams(fts_words=fts5_query(words))  # noqa: S608
    return literal_column(f"{name}.number").in_(select(index.c.rowid).where(found))
