"""The bodies of HAProxy's own answers: RFC 9457 problems, or OpenAI error objects where the path asks for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import jinja2

from haproxy.controller.config.files import write_if_changed

OPENAI_PREFIXES = ("/v1", "/chat")
LATE = "late.lua"
_ERRORS = Path(__file__).resolve().parents[2] / "errors"
_TEMPLATE = _ERRORS / "problem.json.j2"


@dataclass(frozen=True, slots=True)
class Page:
    """One status. `code` and `openai_type` are for the OpenAI error object; `detail` must need no escaping in JSON."""

    status: int
    title: str
    detail: str
    code: str
    openai_type: str = "invalid_request_error"
    retry_after_s: int | None = None

    @property
    def file_name(self) -> str:
        return f"{self.status}.json"


_PAGES = (
    Page(
        400,
        "Bad Request",
        "The request is malformed, or holds something that the edge does not pass on.",
        "bad_request",
    ),
    Page(401, "Unauthorized", "A valid access token is needed.", "invalid_token", "authentication_error"),
    Page(
        403,
        "Forbidden",
        "The name of a header holds something other than letters, digits and hyphens, such as an underscore.",
        "forbidden",
        "permission_error",
    ),
    Page(404, "Not Found", "No service owns this path.", "not_found"),
    Page(405, "Method Not Allowed", "The edge does not pass this method on.", "method_not_allowed"),
    Page(407, "Proxy Authentication Required", "The edge is no open proxy.", "proxy_authentication_required"),
    Page(408, "Request Timeout", "The request did not arrive in time.", "request_timeout"),
    Page(410, "Gone", "This is no longer here.", "gone"),
    Page(413, "Content Too Large", "The request is larger than the edge allows.", "content_too_large"),
    Page(425, "Too Early", "Send the request again once the handshake is complete.", "too_early"),
    Page(
        429,
        "Too Many Requests",
        "Too many requests in the last ten seconds.",
        "rate_limit_exceeded",
        "rate_limit_error",
        10,
    ),
    Page(
        500,
        "Internal Server Error",
        "The edge failed to process the request.",
        "internal_error",
        "server_error",
    ),
    Page(501, "Not Implemented", "The edge does not know how to do this.", "not_implemented", "server_error"),
    Page(
        502,
        "Bad Gateway",
        "The instance gave no usable answer; the request may have run.",
        "bad_gateway",
        "server_error",
    ),
    Page(
        503,
        "Service Unavailable",
        "No live instance can take the request.",
        "service_unavailable",
        "server_error",
        1,
    ),
    Page(
        504,
        "Gateway Timeout",
        "The instance did not answer in time; the request may have run.",
        "gateway_timeout",
        "server_error",
    ),
)


def pages() -> tuple[Page, ...]:
    """Every status that HAProxy 2.6 can make, but 200."""
    return _PAGES


def write_pages(directory: Path) -> None:
    """Write the bodies, one log-format file a status, and `late.lua`.

    HAProxy reads them when it reads its configuration.
    """
    write_if_changed(directory / LATE, (_ERRORS / LATE).read_bytes())
    for page in _PAGES:
        write_if_changed(directory / page.file_name, _body(page).encode())


def late_page() -> str:
    """The body of 504, a log-format."""
    return next(_body(page) for page in _PAGES if page.status == 504)


def _body(page: Page) -> str:
    template = jinja2.Template(_TEMPLATE.read_text(), undefined=jinja2.StrictUndefined)
    text: str = template.render(
        status=page.status,
        title=page.title,
        detail=page.detail,
        code=page.code,
        openai_type=page.openai_type,
        type="about:blank",
    )
    return text
