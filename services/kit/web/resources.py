"""What every view does with the things of its service."""

from __future__ import annotations

from typing import Any, TypeVar

from services.kit.web.paging import Shown
from services.kit.web.problems import Problem

T = TypeVar("T")


def found(thing: T | None, kind: str) -> T:
    """The thing itself. Raises Problem 404 where there is none."""
    if thing is None:
        raise Problem(404, detail=f"There is no such {kind}.")
    return thing


def body_of(thing: Shown) -> dict[str, Any]:
    """The body of an answer that is one thing."""
    return {"data": thing.to_json()}
