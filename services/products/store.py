"""The catalogue in the database. Every function works inside the session of its caller."""

from __future__ import annotations

import uuid
from dataclasses import fields

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Integer,
    String,
    Text,
    delete,
    insert,
    literal,
    select,
    tuple_,
    update,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from services.kit.db.fulltext import matches
from services.kit.db.portable import NUMBER, write
from services.products.domain import SHAPES, NewProduct, Product, ProductChange, ProductQuery


class Base(DeclarativeBase):
    pass


class ProductRow(Base):
    __tablename__ = "products"
    number: Mapped[int] = mapped_column(NUMBER, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(32), unique=True)
    sku: Mapped[str] = mapped_column(String(40), unique=True)
    name: Mapped[str] = mapped_column(String(120))
    description: Mapped[str] = mapped_column(Text)
    category: Mapped[str] = mapped_column(String(40))
    price: Mapped[int] = mapped_column(BigInteger)
    currency: Mapped[str] = mapped_column(String(3))
    created_us: Mapped[int] = mapped_column(BigInteger)
    updated_us: Mapped[int] = mapped_column(BigInteger)
    version: Mapped[int] = mapped_column(Integer)


# Columns in the order of Product's fields: rows become products without an ORM object between them.
_COLUMNS = tuple(getattr(ProductRow, field.name) for field in fields(Product))

_ORDERS: dict[str, tuple[ColumnElement[object], ...]] = {
    "newest": (ProductRow.number,),  # type: ignore[dict-item]
    "name": (ProductRow.name, ProductRow.number),  # type: ignore[dict-item]
    "price": (ProductRow.currency, ProductRow.price, ProductRow.number),  # type: ignore[dict-item]
}


def create_product(session: Session, new: NewProduct, now_us: int) -> Product:
    """Raises IntegrityError when the SKU is taken."""
    values = {"id": uuid.uuid4().hex, "created_us": now_us, "updated_us": now_us, "version": 1}
    made = session.execute(insert(ProductRow).values(**values, **new.model_dump()).returning(*_COLUMNS))
    return Product(*made.one())


def find_product(session: Session, product_id: str, *, hold: bool = False) -> Product | None:
    """With `hold` no other transaction changes it until this one ends."""
    query = select(*_COLUMNS).where(ProductRow.id == product_id)
    row = session.execute(query.with_for_update() if hold else query).first()
    return Product(*row) if row else None


def list_products(session: Session, query: ProductQuery) -> list[Product]:
    """One product more than a page holds, if there are so many. Raises BadCursor."""
    wanted = select(*_COLUMNS)
    if query.category is not None:
        wanted = wanted.where(ProductRow.category == query.category)
    if query.currency is not None:
        wanted = wanted.where(ProductRow.currency == query.currency)
    if query.minPrice is not None:
        wanted = wanted.where(ProductRow.price >= query.minPrice)
    if query.maxPrice is not None:
        wanted = wanted.where(ProductRow.price <= query.maxPrice)
    if query.q:
        wanted = wanted.where(matches(session.get_bind().dialect.name, "products", query.q))
    columns = _ORDERS[query.sort.lstrip("-")]
    falling = query.sort in ("newest", "-name", "-price")
    after = query.after(*SHAPES[query.sort.lstrip("-")])
    if after is not None:
        row, last = tuple_(*columns), tuple_(*(literal(key) for key in after))
        wanted = wanted.where(row < last if falling else row > last)
    ordered = wanted.order_by(*(c.desc() if falling else c.asc() for c in columns))
    return [Product(*row) for row in session.execute(ordered.limit(query.limit + 1))]


def change_product(session: Session, product: Product, change: ProductChange, now_us: int) -> Product:
    """Write the change of a product that is held. Raises IntegrityError when another product has the SKU."""
    changed = update(ProductRow).where(ProductRow.number == product.number)
    values = {**change.values(), "updated_us": now_us, "version": product.version + 1}
    row = session.execute(
        changed.values(**values).returning(*_COLUMNS).execution_options(synchronize_session=False)
    )
    return Product(*row.one())


def delete_product(session: Session, product: Product) -> None:
    write(session, delete(ProductRow).where(ProductRow.number == product.number))
