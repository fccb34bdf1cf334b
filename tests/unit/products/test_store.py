"""The catalogue on a real database, as its migrations make it."""

from __future__ import annotations

from services.kit.db.session import Database
from services.products import store
from services.products.domain import NewProduct

NEW = NewProduct(sku="a", name="n", category="c", price=1, currency="EUR")


def test_number_of_a_deleted_product_is_not_used_again(db: Database) -> None:
    with db.session() as session:
        first = store.create_product(session, NEW, 1)
        store.delete_product(session, first)
        assert store.create_product(session, NEW, 1).number > first.number
