"""products: the catalogue. Everyone reads it, mostly from the edge's cache; administrators write it."""

from __future__ import annotations

import re
import time
from typing import Any

from flask import Response
from pydantic import BaseModel
from sqlalchemy.exc import IntegrityError

from services.kit import Problem, create_service, kit, require_scope, snapshot
from services.kit.web.conditional import conditional, require_match
from services.kit.web.paging import BadCursor, page_json
from services.kit.web.schemas import NOTHING, read
from services.products import store
from services.products.answers import ProductAnswer, ProductsAnswer
from services.products.domain import MAX_AGE_S, NewProduct, Product, ProductChange, ProductQuery

# No Vary and no cookie with it: HAProxy's cache keeps the answer only then. Ref: its manual, "cache limitation".
READ = f"public, max-age={MAX_AGE_S}, s-maxage={MAX_AGE_S}"
# How old the answer may be that a gateway gives while no instance is left.
LAST_GOOD_S = 3600.0
TRIES = 4
_ID = re.compile(r"[0-9a-f]{32}")

app = create_service(
    "products",
    paths=["/api/products"],
    auth="read-public",
    balance="roundrobin",
    domain="business",
    edge_cache=True,
    models_metadata=store.Base.metadata,
)


class ProductPath(BaseModel):
    product_id: str


def now_us() -> int:
    return int(time.time() * 1_000_000)


def body_of(product: Product) -> dict[str, Any]:
    return {"data": product.to_json()}


def found(product_id: str) -> Product:
    """The product. Raises Problem 404."""
    if _ID.fullmatch(product_id):
        with kit().db.session(read_only=True) as session:
            product = store.find_product(session, product_id)
        if product is not None:
            return product
    raise Problem(404, detail="There is no such product.")


def sku_taken(sku: str | None) -> Problem:
    return Problem(409, "SKU taken", f"Another product has the SKU {sku}.")


def raced() -> Problem:
    return Problem(409, detail="Others are changing this at the same moment: try again.")


@app.get("/api/products", responses=read(ProductsAnswer))
@snapshot(stale_s=LAST_GOOD_S, scope="public")
def list_products(query: ProductQuery) -> Response:
    """By category, price range in a currency, and words (all of them, in name, description or SKU)."""
    try:
        with kit().db.session(read_only=True) as session:
            products = store.list_products(session, query)
    except BadCursor as error:
        raise Problem(400, "Bad cursor", str(error)) from None
    shown = products[: query.limit]
    following = query.cursor_after(shown[-1]) if len(products) > query.limit else None
    return conditional(page_json([p.to_json() for p in shown], following, query.limit), READ)


@app.post("/api/products", responses={201: ProductAnswer})
@require_scope("admin")
def create_product(body: NewProduct) -> tuple[dict[str, Any], int, dict[str, str]]:
    """A SKU stands for one product: a second one is 409."""
    try:
        with kit().db.session() as session:
            product = store.create_product(session, body, now_us())
    except IntegrityError:
        raise sku_taken(body.sku) from None
    return (
        body_of(product),
        201,
        {"Location": f"/api/products/{product.id}", "Cache-Control": "no-store"},
    )


@app.get("/api/products/<product_id>", responses=read(ProductAnswer))
@snapshot(stale_s=LAST_GOOD_S, scope="public")
def get_product(path: ProductPath) -> Response:
    return conditional(body_of(found(path.product_id)), READ)


@app.patch("/api/products/<product_id>", responses={200: ProductAnswer})
@require_scope("admin")
def change_product(path: ProductPath, body: ProductChange) -> Response:
    """With `If-Match`, only the state that was read (else 412)."""
    for _ in range(TRIES):
        product = found(path.product_id)
        require_match(body_of(product))
        try:
            with kit().db.session() as session:
                changed = store.change_product(session, product, body, now_us())
        except IntegrityError:
            raise sku_taken(body.sku) from None
        if changed is not None:
            return conditional(body_of(changed), "no-store")
    raise raced()


@app.delete("/api/products/<product_id>", responses=NOTHING)
@require_scope("admin")
def delete_product(path: ProductPath) -> tuple[str, int]:
    """With `If-Match`, only the state that was read (else 412)."""
    for _ in range(TRIES):
        product = found(path.product_id)
        require_match(body_of(product))
        with kit().db.session() as session:
            gone = store.delete_product(session, product)
        if gone:
            kit().snapshots.forget(f"/api/products/{product.id}")
            return "", 204
    raise raced()
