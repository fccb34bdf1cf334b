"""The bodies of HAProxy's own answers: RFC 9457 problems, or OpenAI error objects where the path asks for them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
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


_PAGES = tuple(Page(**row) for row in json.loads((_ERRORS / "pages.json").read_text()))


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
    text: str = template.render(asdict(page), type="about:blank")
    return text
