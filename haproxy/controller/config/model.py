"""What the edge should look like, in values that have passed `discovery.contract`: nothing here needs escaping."""

from __future__ import annotations

from dataclasses import dataclass, field

from discovery.model import Route


@dataclass(frozen=True, slots=True)
class Server:
    """One member of a backend. `name` is the instance id (with a node suffix where two nodes use the same id)."""

    name: str
    address: str
    port: int
    weight: int = 100
    backup: bool = False


@dataclass(frozen=True, slots=True)
class Backend:
    """One accepted route and the instances that may serve it. HAProxy's backend is named `svc_<service>`."""

    route: Route
    servers: tuple[Server, ...] = ()

    @property
    def name(self) -> str:
        return f"svc_{self.route.service}"


@dataclass(frozen=True, slots=True)
class VerifyKey:
    """A public key of the issuer: `kid` of `[A-Za-z0-9_-]{1,64}`, `pem_path` absolute, PEM SubjectPublicKeyInfo, RSA.

    `pem` is what the file holds, and is written there again should it be lost; empty for a file of another origin.
    """

    kid: str
    pem_path: str
    pem: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class EdgeState:
    """Everything that a configuration is rendered from, beside the settings. Sorted by service and server name."""

    backends: tuple[Backend, ...] = ()
    keys: tuple[VerifyKey, ...] = ()
