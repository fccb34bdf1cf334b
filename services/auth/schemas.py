"""What auth's endpoints take and answer: pydantic models, which also make the OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from services.auth.domain import MAX_PASSWORD_BYTES, check_email, check_password
from services.kit.names import check_name
from services.kit.text import one_line

Email = Annotated[str, Field(max_length=320), AfterValidator(check_email)]
NewPassword = Annotated[str, Field(max_length=MAX_PASSWORD_BYTES), AfterValidator(check_password)]
Name = Annotated[str, Field(max_length=400), AfterValidator(check_name)]
# What is looked up must be text that every database takes: PostgreSQL has no NUL.
Secret = Annotated[str, Field(min_length=1, max_length=512), AfterValidator(one_line)]
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

    email: Annotated[str, Field(max_length=320), AfterValidator(one_line)]
    password: Annotated[str, Field(max_length=MAX_PASSWORD_BYTES)]


class Refresh(Request):
    refresh_token: Secret


class TokenRequest(BaseModel):
    """One of the grants; which members belong to it is told by `grant_type`."""

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
    account_id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class ApiKeyPath(BaseModel):
    key_id: Annotated[str, Field(max_length=64), AfterValidator(one_line)]
