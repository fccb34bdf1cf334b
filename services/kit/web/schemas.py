"""The shapes of answers that every service has, for the OpenAPI document. They describe what goes out, and are not run."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from pydantic import BaseModel

T = TypeVar("T")


class One(BaseModel, Generic[T]):
    """A single thing."""

    data: T


class PageInfo(BaseModel):
    """`nextCursor` is the `cursor` of the next page; null on the last one."""

    limit: int
    nextCursor: str | None  # noqa: N815 - the wire's spelling


class Many(BaseModel, Generic[T]):
    """A page of a list."""

    data: list[T]
    page: PageInfo


NOTHING: dict[Any, Any] = {204: None}


def read(model: type[BaseModel]) -> dict[Any, Any]:
    """What a conditional GET answers: the thing, or 304 for a reader that has it."""
    return {200: model, 304: None}
