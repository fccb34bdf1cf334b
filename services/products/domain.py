"""What a product is, how the catalogue may be asked, and in what order it comes. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, StringConstraints, model_validator

from services.kit.text import PROSE, SOME_LINE, Words, described, iso, one_line, prose
from services.kit.web.paging import Key, Page
from services.kit.web.resources import ChangeBody

# A hundred million units of a currency with four decimals still fits; the database column holds 64 bits.
MAX_PRICE = 10**12
# Long enough for the edge's cache to carry a hot product, short enough that a price change does not come late.
MAX_AGE_S = 5

# ISO 4217, list one: what is in use as money, without funds, metals and test codes.
_CODES = """
    AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BGN BHD BIF BMD BND BOB BRL BSD BTN BWP BYN BZD CAD CDF CHF
    CLP CNY COP CRC CUP CVE CZK DJF DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GNF GTQ GYD HKD HNL
    HTG HUF IDR ILS INR IQD IRR ISK JMD JOD JPY KES KGS KHR KMF KPW KRW KWD KYD KZT LAK LBP LKR LRD LSL LYD MAD
    MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MYR MZN NAD NGN NIO NOK NPR NZD OMR PAB PEN PGK PHP PKR PLN PYG
    QAR RON RSD RUB RWF SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TND TOP TRY TTD
    TWD TZS UAH UGX USD UYU UZS VED VES VND VUV WST XAF XCD XCG XOF XPF YER ZAR ZMW ZWG
"""
CURRENCIES = frozenset(_CODES.split())

Sort = Literal["newest", "name", "-name", "price", "-price"]


def check_currency(code: str) -> str:
    """An ISO 4217 code in upper case. Raises ValueError."""
    if code not in CURRENCIES:
        raise ValueError("is not an ISO 4217 currency code in use")
    return code


Name = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=120),
    AfterValidator(one_line),
    SOME_LINE,
]
Description = Annotated[
    str, StringConstraints(strip_whitespace=True, max_length=4_000), AfterValidator(prose), PROSE
]
Sku = Annotated[
    str,
    StringConstraints(strip_whitespace=True, to_upper=True, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,39}$"),
]
Category = Annotated[
    str, StringConstraints(strip_whitespace=True, to_lower=True, pattern=r"^[A-Za-z0-9][A-Za-z0-9-]{0,39}$")
]
Currency = Annotated[
    str,
    StringConstraints(strip_whitespace=True, to_upper=True, min_length=3, max_length=3),
    AfterValidator(check_currency),
    described(enum=sorted(CURRENCIES)),
]
# Strict: a price of 9.99 or "999" is a mistake about the unit, not a number to be rounded.
Price = Annotated[int, Field(ge=0, le=MAX_PRICE, strict=True)]
PriceBound = Annotated[int, Field(ge=0, le=MAX_PRICE)]


class NewProduct(BaseModel):
    """Body of POST /api/products. `price` is in minor units of `currency`: 1999 EUR is 19.99 €, 1999 JPY is 1999 ¥."""

    sku: Sku
    name: Name
    description: Description = ""
    category: Category
    price: Price
    currency: Currency


class ProductChange(ChangeBody):
    """Body of PATCH /api/products/<id>."""

    sku: Sku | None = None
    name: Name | None = None
    description: Description | None = None
    category: Category | None = None
    price: Price | None = None
    currency: Currency | None = None

    @model_validator(mode="after")
    def _priced(self) -> ProductChange:
        if self.currency is not None and self.price is None:
            raise ValueError("a new currency needs its price")
        return self


class ProductQuery(Page):
    """Query of GET /api/products: the filters are joined by *and*; a price range is one of a currency."""

    category: Category | None = None
    currency: Currency | None = None
    minPrice: PriceBound | None = None
    maxPrice: PriceBound | None = None
    q: Words | None = None
    sort: Sort = "newest"

    @model_validator(mode="after")
    def _comparable(self) -> ProductQuery:
        if (self.minPrice is not None or self.maxPrice is not None) and self.currency is None:
            raise ValueError("a price range needs a currency: 500 JPY and 500 EUR do not compare")
        if self.minPrice is not None and self.maxPrice is not None and self.minPrice > self.maxPrice:
            raise ValueError("minPrice is above maxPrice")
        return self

    def keys(self, product: Product) -> tuple[Key, ...]:
        """Where the product stands in this order."""
        return sort_keys(product, self.sort)


# The columns of each order, all in one direction; the number makes it total. Prices are ordered within a currency.
SHAPES: dict[str, tuple[type[int] | type[str], ...]] = {
    "newest": (int,),
    "name": (str, int),
    "price": (str, int, int),
}


@dataclass(frozen=True, slots=True)
class Product:
    """One product. Times are microseconds since 1970 (UTC)."""

    number: int
    id: str
    sku: str
    name: str
    description: str
    category: str
    price: int
    currency: str
    created_us: int
    updated_us: int
    version: int

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "sku": self.sku,
            "name": self.name,
            "description": self.description,
            "category": self.category,
            "price": self.price,
            "currency": self.currency,
            "createdAt": iso(self.created_us),
            "updatedAt": iso(self.updated_us),
            "version": self.version,
        }


def sort_keys(product: Product, sort: Sort) -> tuple[Key, ...]:
    """Where the product stands in this order."""
    kind = sort.lstrip("-")
    if kind == "name":
        return (product.name, product.number)
    if kind == "price":
        return (product.currency, product.price, product.number)
    return (product.number,)
