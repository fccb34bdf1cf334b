"""What auth's endpoints take and answer: pydantic models, which also make the OpenAPI document."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from services.auth.domain import (
    EMAIL_PATTERN,
    MAX_EMAIL_CHARS,
    MAX_PASSWORD_BYTES,
    MIN_PASSWORD_CHARS,
    check_email,
    check_password,
)
from services.kit.text import ID_PATTERN, LINE, Name, described, one_line

Email = Annotated[
    str,
    Field(max_length=320),
    AfterValidator(check_email),
    described(pattern=EMAIL_PATTERN, maxLength=MAX_EMAIL_CHARS),
]
# No character takes more than four bytes.
NewPassword = Annotated[
    str,
    Field(max_length=MAX_PASSWORD_BYTES),
    AfterValidator(check_password),
    described(minLength=MIN_PASSWORD_CHARS, maxLength=MAX_PASSWORD_BYTES // 4),
]
# What is looked up must be text that every database takes: PostgreSQL has no NUL.
Secret = Annotated[str, Field(min_length=1, max_length=512), AfterValidator(one_line), LINE]
Scope = Literal["user", "admin"]


class Request(BaseModel):
    """A body of which every member is known."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class Register(Request):
    email: Email
    password: NewPassword
    firstName: Name  # noqa: N815 - the wire's spelling
    lastName: Name  # noqa: N815


class Login(Request):
    """An existing password is only compared: rules for new ones do not apply, its size is bounded."""

    email: Annotated[str, Field(max_length=320), AfterValidator(one_line), LINE]
    password: Annotated[str, Field(max_length=MAX_PASSWORD_BYTES)]


class Refresh(Request):
    refresh_token: Secret


class TokenRequest(BaseModel):
    """One of the grants; `grant_type` says which members belong to it."""

    model_config = ConfigDict(hide_input_in_errors=True)

    grant_type: Literal["api_key", "client_credentials"]
    api_key: Secret | None = None
    client_id: Annotated[str, Field(max_length=63)] | None = None
    client_secret: Secret | None = None


class NewApiKey(Request):
    name: Name
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=2)] | None = None
    expiresInDays: Annotated[int, Field(ge=1, le=3650)] | None = None  # noqa: N815


class AccountPath(BaseModel):
    account_id: Annotated[str, Field(pattern=f"^{ID_PATTERN}$")]


class ApiKeyPath(BaseModel):
    key_id: Annotated[str, Field(max_length=64), AfterValidator(one_line), LINE]


class Opened(BaseModel):
    """An account that has just been opened."""

    id: str
    email: str
    firstName: str  # noqa: N815
    lastName: str  # noqa: N815


class OpenedAnswer(BaseModel):
    user: Opened


class AccessToken(BaseModel):
    """As OAuth 2 answers it; `expires_in` is in seconds."""

    access_token: str
    token_type: Literal["Bearer"]
    expires_in: int
    scope: str


class TokenPair(AccessToken):
    refresh_token: str


class ApiKeyShown(BaseModel):
    id: str
    name: str
    prefix: str
    scopes: list[Scope]
    createdAt: datetime  # noqa: N815
    expiresAt: datetime | None  # noqa: N815
    lastUsedAt: datetime | None  # noqa: N815


class NewApiKeyShown(ApiKeyShown):
    """`key` is in this answer alone."""

    key: str


class ApiKeysAnswer(BaseModel):
    data: list[ApiKeyShown]


class SessionOwner(BaseModel):
    id: str
    email: str


class SessionAnswer(BaseModel):
    """The session itself is in the cookie. `expires_in` is in seconds."""

    user: SessionOwner
    expires_in: int


class Jwk(BaseModel):
    kty: Literal["RSA"]
    use: Literal["sig"]
    alg: Literal["RS256"]
    kid: str
    n: str
    e: str


class Jwks(BaseModel):
    keys: list[Jwk]


class Rotation(BaseModel):
    """`activeFrom` is Unix time in seconds."""

    kid: str
    activeFrom: float  # noqa: N815


class Revoked(BaseModel):
    """Tokens of `subject` issued at `before` or earlier are void; `until` then the last of them has expired. Unix time in seconds."""

    subject: str
    before: int
    until: int


class RevocationsAnswer(BaseModel):
    revocations: list[Revoked]
