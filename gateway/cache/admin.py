"""`PURGE <own>/cache`: deletes by hand what gateways have stored of any service, also of one in the direct lane."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import structlog
from pydantic import BaseModel, Field

from services.kit import ServiceApp, current, require_scope
from services.kit.web.problems import busy

if TYPE_CHECKING:
    from gateway.cache.cache import AnswerCache

log = structlog.get_logger(__name__)


class Which(BaseModel):
    """`path` as in a request; `prefix`: also all below it."""

    service: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]
    path: Annotated[str, Field(pattern=r"^/[!-~]*$", max_length=2048)]
    prefix: bool = False


def install(app: ServiceApp, own: str, cache: Callable[[], AnswerCache | None]) -> None:
    """Add the view to an application that has not started yet, below its own path; `cache` is there once it has."""

    @require_scope("admin")
    def purge(query: Which) -> Any:
        found = cache()
        if found is None:
            raise busy("The gateway is starting.")
        everywhere = found.purge(query.service, query.path, prefix=query.prefix)
        log.info(
            "purged",
            service=query.service,
            path=query.path[:200],
            prefix=query.prefix,
            subject=current().subject,
        )
        body = {"purged": query.path, "prefix": query.prefix, "everywhere": everywhere}
        return body, 200, {"Cache-Control": "no-store"}

    view = app.create_view_func(purge, None, None, None, Which, None, None, None)
    app.add_url_rule(f"{own}/cache", endpoint="cache:purge", view_func=view, methods=["PURGE"])
