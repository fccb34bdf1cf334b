"""What products answers, for its OpenAPI document."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel

from services.kit.web.resources import Many, One


class ProductShown(BaseModel):
    """`price` is in minor units of `currency`."""

    id: str
    sku: str
    name: str
    description: str
    category: str
    price: int
    currency: str
    createdAt: datetime
    updatedAt: datetime
    version: int


ProductAnswer, ProductsAnswer = One[ProductShown], Many[ProductShown]
