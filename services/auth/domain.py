"""The rules of identity: what an e-mail, a password and a scope may be, and what a caller's source is. No I/O."""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MIN_PASSWORD_CHARS = 8
# Argon2 takes any length; a bound keeps a request from buying hashing work with a large body.
MAX_PASSWORD_BYTES = 1024
MAX_EMAIL_CHARS = 254  # RFC 5321, section 4.5.3.1.3 less the angle brackets
SCOPES = ("user", "admin", "service")

# ASCII on purpose: case folding is then exact, and no look-alike letter makes a second account of one address.
_LOCAL = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*")
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")

# The same for the OpenAPI document, but for a last part that begins with a digit.
EMAIL_PATTERN = rf"^(?=[^@]{{1,64}}@){_LOCAL.pattern}@({_LABEL.pattern}\.)+(?=[A-Za-z]){_LABEL.pattern}$"


def check_email(value: str) -> str:
    """The address as it was given, without the space around it. Raises ValueError with a reason that can be shown."""
    email = value.strip()
    local, at, host = email.rpartition("@")
    if not at or len(email) > MAX_EMAIL_CHARS or len(local) > 64 or not _LOCAL.fullmatch(local):
        raise ValueError("is not an e-mail address")
    labels = host.split(".")
    if len(labels) < 2 or not all(_LABEL.fullmatch(label) for label in labels) or labels[-1].isdigit():
        raise ValueError("is not an e-mail address: the part after @ must be a domain name")
    return email


def email_key(email: str) -> str:
    """What makes two addresses the same account: the whole address in lower case."""
    return email.strip().lower()


def check_password(value: str) -> str:
    """A new password in NFKC (RFC 8265), so that one typed on another keyboard still fits. Raises ValueError."""
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise ValueError("must be Unicode text") from None
    if size > MAX_PASSWORD_BYTES:
        raise ValueError(f"must be at most {MAX_PASSWORD_BYTES} bytes long")
    password = unicodedata.normalize("NFKC", value)
    if len(password) < MIN_PASSWORD_CHARS:
        raise ValueError(f"must be at least {MIN_PASSWORD_CHARS} characters long")
    if len(password.encode()) > MAX_PASSWORD_BYTES:
        raise ValueError(f"must be at most {MAX_PASSWORD_BYTES} bytes long")
    return password


def narrow(asked: Iterable[str] | None, held: Iterable[str]) -> tuple[str, ...]:
    """The scopes of `asked` that are held, in the fixed order of SCOPES; all of the held ones when nothing was asked."""
    owned = set(held)
    wanted = owned if asked is None else set(asked) & owned
    return tuple(scope for scope in SCOPES if scope in wanted)


def source_of(client: str | None) -> str:
    """The network that a client's address stands for, as one string: what guesses are counted by.

    An IPv6 source is its /48, the smallest block that one customer may always have.
    """
    address = _parse(client)
    if address is None:
        return "unknown"
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, 48), strict=False))
    return str(address)


def _parse(text: str | None) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text or "")
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped
    return address


@dataclass(frozen=True, slots=True)
class KeyTimes:
    """One signing key's place in time. `active_from` is Unix time in seconds; `generation` counts rotations from 1."""

    kid: str
    generation: int
    active_from: float


@dataclass(frozen=True, slots=True)
class KeySchedule:
    """Which key signs now, which one is published ahead of its use, and which ones are still accepted."""

    active: KeyTimes
    next: KeyTimes | None
    retired: tuple[KeyTimes, ...]
    expired: tuple[KeyTimes, ...]

    @property
    def published(self) -> tuple[KeyTimes, ...]:
        """What belongs into the JWKS, the signing one first."""
        return (self.active, *((self.next,) if self.next else ()), *self.retired)


def schedule(keys: Sequence[KeyTimes], now: float, overlap_s: float) -> KeySchedule | None:
    """Place keys in time, or None when there are none.

    Nothing is ever switched: every instance reads the same times and comes to the same answer, so there is no moment
    at which one still signs with a key that another has withdrawn. A key is retired when its successor becomes active,
    and stays published for `overlap_s` (the longest life of a token, and a margin for clocks) after that.
    """
    ordered = sorted(keys, key=lambda key: key.generation)
    if not ordered:
        return None
    started = [key for key in ordered if key.active_from <= now]
    active = started[-1] if started else ordered[0]
    waiting = [key for key in ordered if key.generation > active.generation]
    retired: list[KeyTimes] = []
    expired: list[KeyTimes] = []
    for key, successor in zip(ordered, ordered[1:], strict=False):
        if key.generation < active.generation:
            (retired if now < successor.active_from + overlap_s else expired).append(key)
    return KeySchedule(
        active=active,
        next=waiting[0] if waiting else None,
        retired=tuple(retired),
        expired=tuple(expired),
    )
