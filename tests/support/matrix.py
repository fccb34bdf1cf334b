"""Cases of one promise: the first is run always, the others by `make test-long`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest


def long_on_processes(test: Callable[..., None]) -> Callable[..., None]:
    """Marks a fault that `make test-compose` makes on containers: on processes it is left to `make test-long`."""
    return test if os.environ.get("FLEET") == "containers" else pytest.mark.long(test)


def one_always(first: Any, *others: Any) -> list[Any]:
    """For `pytest.mark.parametrize`, where each case takes long and all go the same way."""
    return [first, *(pytest.param(*_several(one), marks=pytest.mark.long) for one in others)]


def _several(case: Any) -> tuple[Any, ...]:
    return case if isinstance(case, tuple) else (case,)
