"""What notifications takes from its environment on top of what every service does. Times in seconds."""

from __future__ import annotations

from email.headerregistry import Address
from email.utils import parseaddr
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, model_validator

from services.kit import ServiceSettings

# Scheme of SMTP_URL → the port where it names none. Plain `smtp` is for a server on this machine or in a network of ours.
SMTP_PORTS = {"smtp": 25, "smtp+starttls": 587, "smtps": 465}


def check_smtp_url(url: str) -> str:
    """`smtp://host:25`, `smtp+starttls://host:587` or `smtps://host:465`. Raises ValueError."""
    parts = urlsplit(url)
    if parts.scheme not in SMTP_PORTS or not parts.hostname or parts.path.strip("/") or parts.username:
        raise ValueError(f"must be one of {', '.join(f'{scheme}://host:port' for scheme in SMTP_PORTS)}")
    _ = parts.port  # raises for what is no port
    return url


def sender_of(text: str) -> Address:
    """The address in `Name <local@domain>`. Raises ValueError."""
    name, address = parseaddr(text)
    local, _, domain = address.rpartition("@")
    if not local or not domain or not address.isascii():
        raise ValueError("must be an address such as Breakwater <no-reply@example.com>")
    return Address(name, local, domain)


def check_sender(text: str) -> str:
    sender_of(text)
    return text


class NotificationSettings(ServiceSettings):
    """A channel without its setting (`SMTP_URL`, `VAPID_KEY`, `SMS_FILE`) is off: nothing is noted for it."""

    smtp_url: Annotated[str, AfterValidator(check_smtp_url)] | None = None
    smtp_username: str | None = None
    smtp_password: SecretStr | None = None
    # The authorities whose certificates count; by default the system's.
    smtp_ca_file: Path | None = None
    # For each answer of the server, and for the last one, before which it may look at the mail; all of a mail may take
    # `delivery_lease_s`.
    smtp_timeout_s: float = Field(default=10.0, gt=0, le=300)
    smtp_answer_timeout_s: float = Field(default=45.0, gt=0, le=600)
    mail_from: Annotated[str, AfterValidator(check_sender)] = "Breakwater <no-reply@breakwater.example>"

    # The private key of Web Push, 32 bytes in base64url.
    vapid_key: SecretStr | None = None
    push_timeout_s: float = Field(default=5.0, gt=0, le=60)
    # For tests alone: endpoints at private addresses, at any port, by plain HTTP.
    push_allow_private: bool = False

    # The built-in sender writes messages there, and sends none.
    sms_file: Path | None = None

    # For how long a delivery is one instance's: as much later another one takes over from a killed one.
    delivery_lease_s: float = Field(default=60.0, ge=0.5, le=600)

    @model_validator(mode="after")
    def _password_under_tls(self) -> Self:
        if self.smtp_username and (self.smtp_url or "").startswith("smtp:"):
            raise ValueError(
                "SMTP_USERNAME needs smtps:// or smtp+starttls://: a password does not go in the clear"
            )
        return self
