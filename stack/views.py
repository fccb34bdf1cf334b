"""How Consul and HAProxy see the fleet, and whether a service answers through the edge."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from haproxy.controller.runtime.observed import ObservedServer
from haproxy.controller.runtime.socket import Runtime
from stack import http

BACKEND_PREFIX = "svc_"
# What a process found out by itself is not marked.
_CAUSES = {"hand": " by hand", "shared": " (shared)"}


def consul_view(address: str, token: str) -> dict[str, str]:
    """Instance id → passing, warning, critical or maintenance, of every registered service but Consul's own.

    Raises OSError when Consul does not answer.
    """
    answer = http.call(address, "GET", "/v1/health/state/any", headers={"X-Consul-Token": token}, timeout_s=3)
    if answer.status_code != 200:
        raise ConnectionError(f"Consul answers {answer.status_code}")
    order = ["passing", "warning", "critical", "maintenance"]
    worst: dict[str, str] = {}
    for check in answer.json():
        instance = check["ServiceID"]
        if instance:
            maintenance = check["CheckID"].startswith("_service_maintenance:")
            status = "maintenance" if maintenance else check["Status"]
            worst[instance] = max(worst.get(instance, "passing"), status, key=order.index)
    return worst


def edge_view(socket_path: Path) -> dict[str, ObservedServer]:
    """Server name → HAProxy's view, for the servers of all services' backends. Raises Unreachable."""
    found: dict[str, ObservedServer] = {}
    with Runtime(socket_path).session() as session:
        for backend in session.backends():
            if backend.startswith(BACKEND_PREFIX):
                found |= session.servers(backend) or {}
    return found


def is_up(server: ObservedServer | None) -> bool:
    return server is not None and server.serves


def answered_by(edge: str, path: str, headers: Mapping[str, str]) -> str | None:
    """The id of the instance that answered this path at the edge (`host:port`); None when the edge itself did, or nothing."""
    try:
        answer = http.call(edge, "GET", path, headers=headers, timeout_s=5)
    except OSError:
        return None
    return answer.headers.get("X-Served-By")


def edge_answers(edge: str) -> str:
    """In words, whether the edge answers for itself (`host:port`)."""
    try:
        answer = http.call(edge, "GET", "/health/ready", timeout_s=3)
    except OSError as error:
        return f"does not answer ({error})"
    return "ready" if answer.status_code == 200 else f"answers /health/ready with {answer.status_code}"


def instance_ready(service: str, port: int) -> bool:
    """Whether the instance itself says that it may take traffic: Consul's and HAProxy's word may be of the one before it."""
    try:
        answer = http.call(f"127.0.0.1:{port}", "GET", "/health/ready", timeout_s=2)
    except OSError:
        return False
    return answer.status_code == 200 and answer.headers.get("X-Service") == service


def open_breakers(port: int) -> list[str] | None:
    """The upstreams of which this instance has a breaker that is not closed; None when the instance does not answer.

    Gateways also report what caused it: an operator (`by hand`), or another process of the group (`shared`).
    """
    try:
        answer = http.call(f"127.0.0.1:{port}", "GET", "/metrics", timeout_s=1)
    except OSError:
        return None
    text = answer.text
    causes = {
        upstream: _CAUSES[cause]
        for cause, upstream in re.findall(
            r'^gateway_breaker_cause\{cause="(\w+)",upstream="([^"]*)"\} 1', text, re.MULTILINE
        )
        if cause in _CAUSES
    }
    return [
        f"{upstream} {'open' if level == '2' else 'half-open'}{causes.get(upstream, '')}"
        for upstream, level in re.findall(
            r'^service_upstream_breaker\{upstream="([^"]*)"\} ([12])', text, re.MULTILINE
        )
    ]
