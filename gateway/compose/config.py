"""What a domain composes, declared in one TOML file: read, checked as a whole, or refused with the place of each mistake."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from discovery.contract import check_name
from discovery.errors import ContractError
from discovery.model import Domain
from gateway.cache import PartPolicy
from gateway.compose.jsonpart import Shape
from gateway.compose.template import RoutePath, TargetPath

FOLDER = Path(__file__).parent
MIB = 1024 * 1024
SUBJECT = "subject"
MAX_PARTS = 16

_MEMBER = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,39}")
_HEADER = re.compile(r"[A-Za-z0-9-]{1,60}")
# Set by us for every part, of one connection, or a question about the whole answer and not about a part of it.
_OWN_HEADERS = re.compile(
    r"authorization|cookie|host|connection|keep-alive|te|trailer|transfer-encoding|upgrade|proxy-.*|content-.*|range"
    r"|if-.*|accept|accept-encoding|forwarded|x-forwarded.*|x-auth-.*|x-edge-.*|x-request-id|x-deadline-ms|traceparent"
)


class DeclarationError(ValueError):
    """A declaration that cannot be used. `problems` has a line for each mistake: file, route, key, and what is wrong."""

    def __init__(self, file: Path, problems: Iterable[str]) -> None:
        self.file = file
        self.problems = [f"{file.name}: {problem}" for problem in problems]
        super().__init__("\n".join(self.problems))


def _service(value: str) -> str:
    try:
        return check_name(value)
    except ContractError as error:
        raise ValueError(error.reason) from None


def _passable(name: str) -> str:
    if not _HEADER.fullmatch(name) or _OWN_HEADERS.fullmatch(name.lower()):
        raise ValueError("is no header that can be passed on")
    return name.lower()


class _Declared(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Part(_Declared):
    """One member of the answer. `share` is the part of the route's timeout that it may take.

    `take` names the member of the service's answer that is meant, `expect` its JSON type. `fallback`: the last good
    answer, or (`empty`) an empty array or object, else nothing. `headers` of the request are passed on, `Authorization`
    always is. An answer longer than `max_bytes` is not used.
    """

    service: Annotated[str, AfterValidator(_service)]
    path: Annotated[str, Field(max_length=300)]
    required: bool = False
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    take: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,39}$")] | None = None
    expect: Shape = "any"
    fallback: Literal["none", "last-good", "empty"] = "none"
    cache: PartPolicy | None = None
    hedge: bool = False
    headers: Annotated[tuple[Annotated[str, AfterValidator(_passable)], ...], Field(strict=False)] = ()
    max_bytes: Annotated[int, Field(ge=1, le=8 * MIB)] = MIB

    @model_validator(mode="after")
    def _check(self) -> Self:
        _ = self.target
        if self.fallback == "empty" and self.expect == "any":
            raise ValueError('fallback "empty" needs to know what is expected: an object or an array')
        if self.cache is not None and self.headers:
            raise ValueError("what is kept is the same for all: headers cannot be passed on with cache")
        return self

    @cached_property
    def target(self) -> TargetPath:
        """`path`, to be filled. Raises ValueError."""
        return TargetPath(self.path)


class Route(_Declared):
    """One composed path. `placeholders` has the pattern of each placeholder in `path`, for the whole decoded segment.

    `auth` `token`: without a valid token the answer is 401, and parts may use `<subject>`; else the parts' services decide.
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,39}$")]
    path: Annotated[str, Field(max_length=300)]
    methods: Annotated[
        tuple[Literal["GET", "HEAD"], ...], Field(strict=False, min_length=1, max_length=2)
    ] = ("GET", "HEAD")
    auth: Literal["services", "token"] = "services"
    timeout_s: Annotated[float, Field(gt=0, le=30)] = 3.0
    placeholders: dict[str, str] = Field(default_factory=dict)
    parts: Annotated[dict[str, Part], Field(min_length=1, max_length=MAX_PARTS)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        _ = self.template
        known = {*self.placeholders, *([SUBJECT] if self.auth == "token" else [])}
        if SUBJECT in self.placeholders:
            raise ValueError(f"<{SUBJECT}> is the token's subject, and cannot stand in a route's path")
        for name, part in self.parts.items():
            if not _MEMBER.fullmatch(name):
                raise ValueError(f"part {name!r}: no name for a member: letters, digits and _")
            unknown = [each for each in part.target.names if each not in known]
            if unknown:
                raise ValueError(f"part {name}: path: <{unknown[0]}> is not known to the route")
        return self

    @cached_property
    def template(self) -> RoutePath:
        """`path`, to be matched. Raises ValueError."""
        return RoutePath(self.path, self.placeholders)


class Health(_Declared):
    """The fleet's health. `expected` services count as down when there is no instance of them at all."""

    path: Annotated[str, Field(pattern=r"^/[a-z0-9/-]+$")]
    expected: Annotated[tuple[Annotated[str, AfterValidator(_service)], ...], Field(strict=False)] = ()
    timeout_s: Annotated[float, Field(gt=0, le=5)] = 1.0
    remember_s: Annotated[float, Field(ge=0.1, le=60)] = 1.0


class Declaration(_Declared):
    """All of a domain's file."""

    health: Health | None = None
    route: Annotated[tuple[Route, ...], Field(strict=False)] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        for what, values in (
            ("name", [route.name for route in self.route]),
            ("path", [route.template.key for route in self.route]),
        ):
            twice = sorted({value for value in values if values.count(value) > 1})
            if twice:
                raise ValueError(f"two routes with the {what} {twice[0]!r}")
        if self.health is not None and any(
            route.template.match(self.health.path) is not None for route in self.route
        ):
            raise ValueError(f"health.path {self.health.path!r} is a route's as well")
        return self

    @property
    def fixed_paths(self) -> list[str]:
        """The paths without placeholders."""
        fixed = [route.path for route in self.route if not route.template.names]
        return fixed if self.health is None else [self.health.path, *fixed]


def load(domain: Domain, folder: Path = FOLDER) -> Declaration:
    """The declaration of a domain, `<folder>/<domain>.toml`. Raises DeclarationError; nothing of a wrong file is used."""
    file = folder / f"{domain}.toml"
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DeclarationError(file, [f"cannot be read: {error.strerror}"]) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DeclarationError(file, [f"no TOML: {error}"]) from None
    try:
        return Declaration.model_validate(content)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False)
        raise DeclarationError(
            file, [_place(content, each["loc"], each["msg"]) for each in problems]
        ) from None


def _place(content: dict[str, Any], loc: tuple[int | str, ...], message: str) -> str:
    """A mistake in the words of the file: `route overview: parts.posts.share: …`."""
    place, rest = [], list(loc)
    if len(rest) > 1 and rest[0] == "route" and isinstance(rest[1], int):
        entry = content["route"][rest[1]]
        name = entry.get("name") if isinstance(entry, dict) else None
        place.append(f"route {name or rest[1] + 1}")
        rest = rest[2:]
    if rest:
        place.append(".".join(str(each) for each in rest))
    return ": ".join([*place, message.removeprefix("Value error, ")])
