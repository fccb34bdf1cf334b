"""The shapes of Consul's JSON, read strictly: any other shape than the documented one raises ConsulMalformed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Annotated, Any, TypeVar

import msgspec

from discovery.contract import registration_meta
from discovery.errors import ConsulMalformed
from discovery.model import (
    DEFAULT_WEIGHT,
    MAX_WEIGHT,
    GrpcCheck,
    HttpCheck,
    Instance,
    Registration,
    Status,
)

NODE_MAINTENANCE = "_node_maintenance"
SERVICE_MAINTENANCE = "_service_maintenance:"
MAX_SHARED_METAS = 20_000
T = TypeVar("T")
_MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class CheckState(msgspec.Struct, frozen=True, rename="pascal"):
    """One check of /v1/health/state. `service` is empty for a check of the node itself."""

    node: str
    check_id: str = msgspec.field(name="CheckID")
    service: str = msgspec.field(name="ServiceName")
    status: str
    modify_index: int


# One instance in an answer of /v1/health/service.


class _Node(msgspec.Struct, rename="pascal"):
    node: Annotated[str, msgspec.Meta(min_length=1)]
    address: str


class _Weights(msgspec.Struct, rename="pascal"):
    passing: int = 1


class _Service(msgspec.Struct, rename="pascal"):
    id: Annotated[str, msgspec.Meta(min_length=1)] = msgspec.field(name="ID")
    service: str
    address: str
    port: int
    meta: dict[str, str] | None = None
    create_index: int = 0
    weights: _Weights | None = None
    kind: str | None = None


class _Check(msgspec.Struct, rename="pascal"):
    check_id: str = msgspec.field(name="CheckID")
    status: str


class _Entry(msgspec.Struct, rename="pascal"):
    node: _Node
    service: _Service
    checks: list[_Check] | None


_ENTRIES = msgspec.json.Decoder(list[_Entry])


def registration_body(registration: Registration, status: Status) -> dict[str, Any]:
    """What /v1/agent/service/register takes. Raises ContractError where the registration breaks the contract."""
    body: dict[str, Any] = {
        "ID": registration.id,
        "Name": registration.name,
        "Address": registration.address,
        "Port": registration.port,
        "Meta": registration_meta(registration),
        "Tags": list(registration.tags),
        "Weights": {"Passing": registration.weight, "Warning": 1},
    }
    if registration.check is not None:
        body["Check"] = _check(registration, registration.check, status)
    return body


def parse_instances(service: str, body: bytes) -> tuple[Instance, ...]:
    """The instances in an answer of /v1/health/service, sorted by key. Raises ConsulMalformed if any is broken.

    Consul asks for names without regard to case: those of `myapp` come along with those of `MyApp`, and are left out.
    """
    try:
        entries = _ENTRIES.decode(body)
    except _MALFORMED as error:
        raise ConsulMalformed(f"{service}: {error}"[:200]) from error
    found = [_instance(entry) for entry in entries if entry.service.service == service]
    # 1 is also Consul's default: it counts as a weight only where another instance of the service has a greater one.
    if not any(each.weight > 1 for each in found if "edge-weight" not in each.meta):
        found = [
            each if each.weight == DEFAULT_WEIGHT else replace(each, weight=DEFAULT_WEIGHT) for each in found
        ]
    return tuple(sorted(found, key=lambda instance: instance.key))


def _instance(entry: _Entry) -> Instance:
    record = entry.service
    status, maintenance = _health(entry.checks or ())
    return Instance(
        service=record.service,
        id=record.id,
        node=entry.node.node,
        address=record.address or entry.node.address,
        port=record.port,
        status=status,
        maintenance=maintenance,
        meta=_shared_meta(record.meta or {}),
        create_index=record.create_index,
        # Any number, within the bounds of `edge-weight`.
        weight=min(max(record.weights.passing, 1), MAX_WEIGHT) if record.weights else 1,
        kind=record.kind or "",
    )


def _health(checks: Sequence[_Check]) -> tuple[Status, bool]:
    """The worst status of the checks, and whether one of them is maintenance (which says nothing about health)."""
    ids = [check.check_id for check in checks]
    kept = [id_ == NODE_MAINTENANCE or id_.startswith(SERVICE_MAINTENANCE) for id_ in ids]
    statuses = {check.status for check, out in zip(checks, kept, strict=True) if not out}
    worst: Status = "passing"
    if statuses - {"passing"}:
        worst = "warning" if statuses <= {"passing", "warning"} else "critical"
    return worst, any(kept)


_metas: dict[tuple[tuple[str, str], ...], Mapping[str, str]] = {}


def _shared_meta(meta: Mapping[str, str]) -> Mapping[str, str]:
    """One mapping for all instances with the same metadata: ten thousand instances share a few hundred."""
    key = tuple(sorted(meta.items()))
    if len(_metas) > MAX_SHARED_METAS:  # only ever reached by metadata that differs in every instance
        _metas.clear()
    return _metas.setdefault(key, MappingProxyType(dict(key)))


def _check(registration: Registration, check: HttpCheck | GrpcCheck, status: Status) -> dict[str, Any]:
    host = f"[{registration.address}]" if ":" in registration.address else registration.address
    at = f"{host}:{registration.port}"
    return {
        "Name": "ready",
        **(
            {"HTTP": f"http://{at}{check.path}"}
            if isinstance(check, HttpCheck)
            else {"GRPC": f"{at}/{check.service}"}
        ),
        "Interval": f"{int(check.interval_s * 1000)}ms",
        "Timeout": f"{int(check.timeout_s * 1000)}ms",
        "DeregisterCriticalServiceAfter": f"{int(check.deregister_after_s * 1000)}ms",
        "Status": status,
    }


def read_index(value: str | bytes | None) -> int:
    try:
        return int(value or b"")
    except ValueError:
        raise ConsulMalformed(f"X-Consul-Index is {value!r}") from None


def read_as(shape: type[T], data: object) -> T:
    """What JSON was parsed to, as a shape of these or Python's. Raises ConsulMalformed."""
    try:
        return msgspec.convert(data, shape)
    except _MALFORMED as error:
        raise ConsulMalformed(str(error)[:200]) from error
