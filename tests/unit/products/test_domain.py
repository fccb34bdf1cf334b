"""Products: what is taken, what is refused, and how lists are ordered."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from services.kit.web.paging import BadCursor, page_of
from services.products.domain import (
    CURRENCIES,
    MAX_PRICE,
    SHAPES,
    NewProduct,
    Product,
    ProductChange,
    ProductQuery,
)

GOOD = {"sku": "ab-1", "name": " Chair ", "category": "Garden-Chairs", "price": 1999, "currency": "eur"}


def product(number: int = 1, name: str = "n", price: int = 1, currency: str = "EUR") -> Product:
    return Product(number, "i", "S", name, "", "c", price, currency, 0, 0, 1)


def test_codes_are_upper_case_and_categories_lower() -> None:
    new = NewProduct.model_validate(GOOD)
    assert (new.sku, new.name, new.category, new.currency) == ("AB-1", "Chair", "garden-chairs", "EUR")


@pytest.mark.parametrize(
    "wrong",
    [
        {"price": 19.99},
        {"price": 20.0},
        {"price": "1999"},
        {"price": True},
        {"price": -1},
        {"price": MAX_PRICE + 1},
        {"price": None},
        {"currency": "EURO"},
        {"currency": "XXX"},
        {"currency": "DEM"},
        {"currency": "E R"},
        {"currency": ""},
        {"sku": ""},
        {"sku": "a b"},
        {"sku": "../x"},
        {"sku": "x" * 41},
        {"name": ""},
        {"name": "x" * 121},
        {"name": "a\nb"},
        {"description": "x" * 4001},
        {"description": "\ud800"},
        {"category": "a/b"},
    ],
)
def test_bad_products_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        NewProduct.model_validate({**GOOD, **wrong})


def test_currencies_are_iso_4217() -> None:
    assert {"EUR", "USD", "JPY", "CHF", "KWD", "GBP"} <= CURRENCIES
    assert not {"XXX", "XTS", "XAU", "DEM"} & CURRENCIES
    assert all(len(code) == 3 and code.isupper() for code in CURRENCIES)


def test_change_takes_part_of_a_product_but_no_currency_without_price() -> None:
    assert ProductChange.model_validate({"price": 5}).values() == {"price": 5}
    assert ProductChange.model_validate({"description": ""}).values() == {"description": ""}
    for body in ({}, {"price": None}, {"currency": "USD"}, {"id": "x"}):
        with pytest.raises(ValidationError):
            ProductChange.model_validate(body)


def test_price_range_needs_a_currency_and_an_order() -> None:
    assert (
        ProductQuery.model_validate({"minPrice": "5", "maxPrice": "5", "currency": "eur"}).currency == "EUR"
    )
    for query in (
        {"minPrice": "5"},
        {"maxPrice": "5"},
        {"minPrice": "6", "maxPrice": "5", "currency": "EUR"},
        {"minPrice": "-1", "currency": "EUR"},
        {"sort": "id;drop"},
    ):
        with pytest.raises(ValidationError):
            ProductQuery.model_validate(query)


@pytest.mark.parametrize("sort", ["newest", "name", "-name", "price", "-price"])
def test_cursor_comes_back_with_the_keys_of_its_row(sort: str) -> None:
    first = ProductQuery.model_validate({"sort": sort})
    cursor = page_of([product(7, "Stühle", 42)] * 2, first.model_copy(update={"limit": 1}), first.keys)
    cursor = cursor["page"]["nextCursor"]
    keys = ProductQuery.model_validate({"sort": sort, "cursor": cursor}).after(*SHAPES[sort.lstrip("-")])
    assert keys == {"newest": (7,), "name": ("Stühle", 7), "price": ("EUR", 42, 7)}[sort.lstrip("-")]


def test_cursor_of_another_list_is_refused() -> None:
    first = ProductQuery.model_validate({"sort": "name", "limit": 1})
    cursor = page_of([product()] * 2, first, first.keys)["page"]["nextCursor"]
    for query in ({"sort": "-name"}, {"sort": "price"}, {"sort": "name", "q": "x"}, {"category": "c"}):
        with pytest.raises(BadCursor):
            ProductQuery.model_validate({**query, "cursor": cursor}).after(str, int)
