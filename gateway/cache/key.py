"""Under which names answers are stored.

What is asked for (`Base`), what the answer depends on (`Spec`, as the answer itself says), and the two together (`Variant`), in which
a caller's own answers carry its identity. A variant is a tuple: in this process it is the key; in Redis its digest is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import NamedTuple

from gateway.model import Incoming
from services.kit.auth.verifier import Identity
from services.kit.stale.stored_form import digest

_ENCODINGS = frozenset({"gzip", "br", "deflate", "zstd", "identity", "*"})
_REFUSED = re.compile(r";\s*q=0(?:\.0*)?\s*$")


class Base(NamedTuple):
    """`rest` is what else the answer may depend on without saying so: where the client thinks it is."""

    service: str
    path: str
    query: str
    rest: tuple[str, ...]


class Spec(NamedTuple):
    """On which headers of the request the answer depends; `own`: it is for its asker alone."""

    vary: tuple[str, ...]
    own: bool

    def text(self) -> str:
        return ",".join((*self.vary, "+own" if self.own else "+all"))


# Where an answer that has not been seen yet is looked for. Those without credentials also wait for one load of it.
GUESS = Spec((), False)
MAX_SPEC_CHARS = 400
_PLACE = ("x-forwarded-host", "x-forwarded-proto", "x-forwarded-prefix")


def read_spec(data: bytes) -> Spec | None:
    """A spec from its text; None for anything else."""
    if len(data) > MAX_SPEC_CHARS or not data.isascii():
        return None
    *vary, audience = data.decode().split(",")
    if audience not in ("+own", "+all") or not all(vary):
        return None
    return Spec(tuple(vary), audience == "+own")


class Variant(NamedTuple):
    """One stored answer. `audience` is empty in what is for every caller."""

    base: Base
    vary: tuple[str, ...]
    values: tuple[str, ...]
    audience: str

    @property
    def size(self) -> int:
        """Bytes of memory, roughly."""
        base = len(self.base.path) + len(self.base.query) + sum(map(len, self.base.rest))
        return 2 * (base + sum(map(len, self.values)) + len(self.audience)) + 1000

    def text(self) -> str:
        """All of it in one text, sealed with the answer."""
        return json.dumps(self)


def base_of(incoming: Incoming) -> Base:
    headers = incoming.headers
    # Services build links from these: one client's lie must not reach another.
    host = (incoming.host, *(headers.get(name, "") for name in _PLACE))
    return Base(incoming.service, incoming.path, incoming.query, host)


def base_of_part(service: str, target: str, scope: str) -> Base:
    path, _, query = target.partition("?")
    return Base(service, path, query, ("part", scope))


def variant_of(base: Base, spec: Spec, headers: Mapping[str, str], audience: str | None) -> Variant | None:
    """The variant that a request with these headers takes; None when it is a caller's own, and no caller is known."""
    if spec.own:
        if audience is None:
            return None
    else:
        audience = ""
    if not spec.vary:
        return Variant(base, (), (), audience)
    values = tuple(_normal(name, headers.get(name)) for name in spec.vary)
    return Variant(base, spec.vary, values, audience)


def audience(identity: Identity | None) -> str | None:
    """The caller that an own answer is for: the subject of the verified token, with its scopes. None where no token proves one."""
    if identity is None:
        return None
    return json.dumps([identity.subject, identity.by_key, *sorted(identity.scopes)])


def _normal(name: str, value: str | None) -> str:
    if value is None:
        return "-"
    if name == "accept-encoding":
        known = {
            part.partition(";")[0].strip().lower() for part in value.split(",") if not _REFUSED.search(part)
        }
        return "+" + ",".join(sorted(known & _ENCODINGS))
    return "+" + " ".join(value.split())


class Names:
    """The keys of one group in Redis."""

    def __init__(self, domain: str) -> None:
        self._prefix = f"gateway:{domain}:c"

    def spec(self, base: Base) -> str:
        return f"{self._prefix}:s:{digest(json.dumps(base))}"

    def entry(self, text: str) -> str:
        """`text` is the variant's."""
        return f"{self._prefix}:a:{digest(text)}"

    def lease(self, text: str) -> str:
        return f"{self._prefix}:l:{digest(text)}"
