"""The catalogue in the database. Every function works inside the session of its caller."""

from __future__ import annotations

import uuid

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Integer,
    String,
    Text,
    delete,
    literal,
    select,
    tuple_,
    update,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from services.kit.fulltext import matches
from services.products.domain import NewProduct, Product, ProductChange, ProductQuery

NUMBER = BigInteger().with_variant(Integer(), "sqlite")


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

    def to_product(self) -> Product:
        return Product(
            self.number,
            self.id,
            self.sku,
            self.name,
            self.description,
            self.category,
            self.price,
            self.currency,
            self.created_us,
            self.updated_us,
            self.version,
        )


_ORDERS: dict[str, tuple[ColumnElement[object], ...]] = {
    "newest": (ProductRow.number,),  # type: ignore[dict-item]
    "name": (ProductRow.name, ProductRow.number),  # type: ignore[dict-item]
    "price": (ProductRow.currency, ProductRow.price, ProductRow.number),  # type: ignore[dict-item]
}


def create_product(session: Session, new: NewProduct, now_us: int) -> Product:
    """Raises IntegrityError when the SKU is taken."""
    row = ProductRow(id=uuid.uuid4().hex, created_us=now_us, updated_us=now_us, version=1, **new.model_dump())
    session.add(row)
    session.flush()
    return row.to_product()


def find_product(session: Session, product_id: str) -> Product | None:
    row = session.scalar(select(ProductRow).where(ProductRow.id == product_id))
    return row.to_product() if row else None


def list_products(session: Session, query: ProductQuery) -> list[Product]:
    """One product more than a page holds, if there are so many. Raises BadCursor."""
    wanted = select(ProductRow)
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
    after = query.after()
    if after is not None:
        row, last = tuple_(*columns), tuple_(*(literal(key) for key in after))
        wanted = wanted.where(row < last if falling else row > last)
    ordered = wanted.order_by(*(c.desc() if falling else c.asc() for c in columns))
    return [row.to_product() for row in session.scalars(ordered.limit(query.limit + 1))]


def change_product(session: Session, product: Product, change: ProductChange, now_us: int) -> Product | None:
    """Write the change if the product is still at the version that was read; None if not. Raises IntegrityError (SKU taken)."""
    done = session.execute(
        update(ProductRow)
        .where(ProductRow.number == product.number, ProductRow.version == product.version)
        .values(**change.values(), updated_us=now_us, version=product.version + 1)
        .execution_options(synchronize_session=False)
    )
    if done.rowcount != 1:  # type: ignore[attr-defined]
        return None
    session.expire_all()
    return find_product(session, product.id)


def delete_product(session: Session, product: Product) -> bool:
    """Delete the product if it is still at the version that was read."""
    done = session.execute(
        delete(ProductRow).where(ProductRow.number == product.number, ProductRow.version == product.version)
    )
    return done.rowcount == 1  # type: ignore[attr-defined]
