"""The shapes of Consul's JSON, read strictly: any other shape than the documented one raises ConsulMalformed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from discovery.contract import registration_meta
from discovery.errors import ConsulMalformed
from discovery.model import DEFAULT_WEIGHT, MAX_WEIGHT, HttpCheck, Instance, Registration, Status

NODE_MAINTENANCE = "_node_maintenance"
SERVICE_MAINTENANCE = "_service_maintenance:"
MAX_SHARED_METAS = 20_000
_STATUSES: dict[str, Status] = {"passing": "passing", "warning": "warning", "critical": "critical"}
_RANK: dict[Status, int] = {"passing": 0, "warning": 1, "critical": 2}


@dataclass(frozen=True, slots=True)
class CheckState:
    """One check of /v1/health/state. `service` is empty for a check of the node itself."""

    node: str
    check_id: str
    service: str
    status: str
    modify_index: int


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


def parse_instances(service: str, data: object) -> tuple[Instance, ...]:
    """The instances in an answer of /v1/health/service, sorted by key. Raises ConsulMalformed if any is broken.

    Consul asks for names without regard to case: those of `myapp` come along with those of `MyApp`, and are left out.
    """
    entries = [as_dict(entry) for entry in as_list(data)]
    found = [_instance(service, entry) for entry in entries if _name_in(entry) in (None, service)]
    # 1 is also Consul's default: it counts as a weight only where another instance of the service has a greater one.
    if not any(each.weight > 1 for each in found if "edge-weight" not in each.meta):
        found = [
            each if each.weight == DEFAULT_WEIGHT else replace(each, weight=DEFAULT_WEIGHT) for each in found
        ]
    return tuple(sorted(found, key=lambda instance: instance.key))


def _name_in(entry: dict[str, Any]) -> object:
    record = entry.get("Service")
    return record.get("Service") if isinstance(record, dict) else None


def _instance(service: str, entry: dict[str, Any]) -> Instance:
    try:
        node, record = entry["Node"], entry["Service"]
        status, maintenance = _health(entry["Checks"] or [])
        instance = Instance(
            service=service,
            id=record["ID"],
            node=node["Node"],
            address=record["Address"] or node["Address"],
            port=record["Port"],
            status=status,
            maintenance=maintenance,
            meta=_shared_meta(record.get("Meta") or {}),
            create_index=record.get("CreateIndex", 0),
            weight=_weight(record.get("Weights")),
            kind=str(record.get("Kind") or ""),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ConsulMalformed(f"{service}: an instance without {error}") from error
    texts = (instance.id, instance.node, instance.address)
    numbers = (instance.port, instance.create_index)
    if not all(isinstance(text, str) and text for text in texts) or any(type(n) is not int for n in numbers):
        raise ConsulMalformed(f"{service}: an instance with fields of the wrong type")
    return instance


def _weight(weights: object) -> int:
    """Consul's `Weights.Passing`, which is any number, within the bounds of `edge-weight`."""
    passing = weights.get("Passing") if isinstance(weights, dict) else None
    return min(max(passing, 1), MAX_WEIGHT) if type(passing) is int else 1


def _health(checks: Sequence[Mapping[str, Any]]) -> tuple[Status, bool]:
    """The worst status of the checks, and whether one of them is maintenance (which says nothing about health)."""
    worst: Status = "passing"
    maintenance = False
    for check in checks:
        check_id = check["CheckID"]
        if check_id == NODE_MAINTENANCE or check_id.startswith(SERVICE_MAINTENANCE):
            maintenance = True
            continue
        status = _STATUSES.get(check["Status"], "critical")
        if _RANK[status] > _RANK[worst]:
            worst = status
    return worst, maintenance


_metas: dict[tuple[tuple[str, str], ...], Mapping[str, str]] = {}


def _shared_meta(meta: Mapping[str, str]) -> Mapping[str, str]:
    """One mapping for all instances with the same metadata: ten thousand instances share a few hundred."""
    if not all(isinstance(key, str) and isinstance(value, str) for key, value in meta.items()):
        raise TypeError("metadata of strings")
    key = tuple(sorted(meta.items()))
    if len(_metas) > MAX_SHARED_METAS:  # only ever reached by metadata that differs in every instance
        _metas.clear()
    return _metas.setdefault(key, MappingProxyType(dict(key)))


def check_state(item: object) -> CheckState:
    check = as_dict(item)
    try:
        found = CheckState(
            node=check["Node"],
            check_id=check["CheckID"],
            service=check["ServiceName"],
            status=check["Status"],
            modify_index=check["ModifyIndex"],
        )
    except KeyError as error:
        raise ConsulMalformed(f"a check without {error}") from error
    texts = (found.node, found.check_id, found.service, found.status)
    if not all(isinstance(text, str) for text in texts):
        raise ConsulMalformed("a check with fields of the wrong type")
    return found


def _check(registration: Registration, check: HttpCheck, status: Status) -> dict[str, Any]:
    host = f"[{registration.address}]" if ":" in registration.address else registration.address
    return {
        "Name": "ready",
        "HTTP": f"http://{host}:{registration.port}{check.path}",
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


def read_json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ConsulMalformed(f"no JSON: {body[:80]!r}") from error


def as_dict(data: object) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise ConsulMalformed(f"expected an object, got {type(data).__name__}")
    return data


def as_list(data: object) -> list[Any]:
    if not isinstance(data, list):
        raise ConsulMalformed(f"expected a list, got {type(data).__name__}")
    return data
