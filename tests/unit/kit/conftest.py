"""Services made for a test, without a server around them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from services.kit import ServiceApp, ServiceSettings, create_service


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., ServiceApp]:
    """`make(name="hello", settings={…}, **options)`: an application that keeps its data in the test's folder."""

    def service(name: str = "hello", settings: dict[str, Any] | None = None, **options: Any) -> ServiceApp:
        values = ServiceSettings(data_dir=tmp_path, **(settings or {}))
        return create_service(name, settings=values, **{"paths": [f"/api/{name}"], **options})

    return service
