"""products: the catalogue. Everyone reads it, mostly from the edge's cache; administrators write it."""

from __future__ import annotations

from typing import Any

from flask import Response
from pydantic import BaseModel
from sqlalchemy.exc import IntegrityError

from services.kit import Problem, create_service, kit, require_scope, stale_if_error
from services.kit.text import now_us
from services.kit.web.paging import page_of
from services.kit.web.resources import NOTHING, body_of, conditional, found, found_unchanged, read
from services.products import store
from services.products.answers import ProductAnswer, ProductsAnswer
from services.products.domain import MAX_AGE_S, NewProduct, ProductChange, ProductQuery

# No Vary and no cookie with it: HAProxy's cache keeps the answer only then. Ref: its manual, "cache limitation".
READ = f"public, max-age={MAX_AGE_S}, s-maxage={MAX_AGE_S}"

app = create_service(
    "products",
    paths=["/api/products"],
    auth="read-public",
    balance="roundrobin",
    domain="business",
    edge_cache=True,
    models_metadata=store.Base.metadata,
    calls=[],
)


class ProductPath(BaseModel):
    product_id: str


def sku_taken(sku: str | None) -> Problem:
    return Problem(409, "SKU taken", f"Another product has the SKU {sku}.")


@app.get("/api/products", responses=read(ProductsAnswer))
@stale_if_error(scope="public")
def list_products(query: ProductQuery) -> Response:
    """By category, price range in a currency, and words (all of them, in name, description or SKU)."""
    with kit().db.session(read_only=True) as session:
        products = store.list_products(session, query)
    return conditional(page_of(products, query, query.keys), READ)


@app.post("/api/products", responses={201: ProductAnswer})
@require_scope("admin")
def create_product(body: NewProduct) -> tuple[dict[str, Any], int, dict[str, str]]:
    """A SKU stands for one product: a second one is 409."""
    try:
        with kit().db.session() as session:
            product = store.create_product(session, body, now_us())
    except IntegrityError:
        raise sku_taken(body.sku) from None
    headers = {"Location": f"/api/products/{product.id}", "Cache-Control": "no-store"}
    return body_of(product), 201, headers


@app.get("/api/products/<id:product_id>", responses=read(ProductAnswer))
@stale_if_error(scope="public")
def get_product(path: ProductPath) -> Response:
    with kit().db.session(read_only=True) as session:
        product = found(store.find_product(session, path.product_id), "product")
    return conditional(body_of(product), READ)


@app.patch("/api/products/<id:product_id>", responses={200: ProductAnswer})
@require_scope("admin")
def change_product(path: ProductPath, body: ProductChange) -> Response:
    """With `If-Match`, only the state that was read (else 412)."""
    try:
        with kit().db.session() as session:
            product = found_unchanged(store.find_product(session, path.product_id, hold=True), "product")
            changed = store.change_product(session, product, body, now_us())
    except IntegrityError:
        raise sku_taken(body.sku) from None
    return conditional(body_of(changed), "no-store")


@app.delete("/api/products/<id:product_id>", responses=NOTHING)
@require_scope("admin")
def delete_product(path: ProductPath) -> tuple[str, int]:
    """With `If-Match`, only the state that was read (else 412)."""
    with kit().db.session() as session:
        product = found_unchanged(store.find_product(session, path.product_id, hold=True), "product")
        store.delete_product(session, product)
    kit().stale.forget(f"/api/products/{product.id}")
    return "", 204
