"""The catalogue's tables on a real database file."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy.orm import Session

from services.products import store
from services.products.domain import NewProduct

NEW = NewProduct(sku="a", name="n", category="c", price=1, currency="EUR")


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[sa.Engine]:
    engine = sa.create_engine(f"sqlite:///{tmp_path}/products.db")
    with engine.begin() as connection, Operations.context(MigrationContext.configure(connection)):
        import_module("services.products.migrations.versions.0001_products").upgrade()
    yield engine
    engine.dispose()


def test_migration_makes_what_the_models_say_and_can_be_undone(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        drift = compare_metadata(context, store.Base.metadata)
        # The models name no indexes, and know nothing of the search index and its tables.
        drift = [d for d in drift if d[0] not in ("remove_table", "remove_index", "remove_constraint")]
        assert drift == []
        with Operations.context(MigrationContext.configure(connection)):
            import_module("services.products.migrations.versions.0001_products").downgrade()
        assert sa.inspect(connection).get_table_names() == []


def test_number_of_a_deleted_product_is_not_used_again(engine: sa.Engine) -> None:
    with Session(engine) as session, session.begin():
        first = store.create_product(session, NEW, 1)
        store.delete_product(session, first)
        assert store.create_product(session, NEW, 1).number > first.number
