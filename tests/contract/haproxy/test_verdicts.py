"""Verdicts in a real Consul's KV: each key on its own, whatever a service is called."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from structlog.testing import capture_logs

from discovery.admission.rules import Admission
from discovery.consul.api import ConsulApi
from discovery.model import Route
from haproxy.controller.consul.verdicts import VerdictWriter
from haproxy.controller.loop.steady import Health
from haproxy.controller.metrics import Metrics
from haproxy.controller.wanted.election import Outcome
from tests.support.eventually import eventually
from tests.support.servers import ConsulServer, consul


def outcome(service: str) -> Outcome:
    route = Route(service, (f"/api/{service}",))
    return Outcome(Admission(service, route), route)


@pytest.fixture(scope="module")
def server() -> Iterator[ConsulServer]:
    with consul(acl=True) as started:
        yield started


@contextlib.contextmanager
def writing(server: ConsulServer, edge: str, token: str | None) -> Iterator[VerdictWriter]:
    api = ConsulApi(server.address, token)
    writer = VerdictWriter(api, edge, Metrics(), Health())
    writer.start()
    try:
        yield writer
    finally:
        writer.stop()
        api.close()


def keys(server: ConsulServer, edge: str) -> dict[str, int]:
    """Key → index of its last change."""
    found: Any = server.call("GET", f"/v1/kv/edge/status/{edge}/?recurse")
    return {item["Key"]: item["ModifyIndex"] for item in found or []}


def test_key_that_consul_refuses_keeps_no_other_waiting_and_is_told_once(server: ConsulServer) -> None:
    rules = 'key_prefix "edge/status/" { policy = "write" } key "edge/status/one/bad" { policy = "read" }'
    server.call("PUT", "/v1/acl/policy", {"Name": "most", "Rules": rules})
    made: Any = server.call("PUT", "/v1/acl/token", {"Policies": [{"Name": "most"}]})
    with capture_logs() as logs, writing(server, "one", made["SecretID"]) as writer:
        writer.submit({name: outcome(name) for name in ("a", "bad", "c", "zz")})
        wanted = {f"edge/status/one/{name}" for name in ("a", "c", "zz")}
        eventually(lambda: set(keys(server, "one")) == wanted, 5)
        writer.submit(dict.fromkeys(("a", "bad")) | {"late": outcome("late")})
        wanted = {f"edge/status/one/{name}" for name in ("c", "late", "zz")}
        eventually(lambda: set(keys(server, "one")) == wanted, 5)
    refused = [line for line in logs if line["event"] == "verdict refused by consul"]
    assert [line["key"] for line in refused] == ["edge/status/one/bad"]


def test_every_name_is_one_segment_of_a_key_that_is_written_once(server: ConsulServer) -> None:
    names = ["..", ".", "a b", "a/../b", "ä", "a%2F", "~", "x\ny", "MyApp", "go.micro.srv", "n" * 900]
    with writing(server, "two", server.token) as writer:
        writer.submit({name: outcome(name) for name in names})
        eventually(lambda: len(keys(server, "two")) == len(names), 5)
    before = keys(server, "two")
    assert all(key.startswith("edge/status/two/") and key.count("/") == 3 for key in before)
    assert {"edge/status/two/MyApp", "edge/status/two/go.micro.srv"} <= set(before)
    with writing(server, "two", server.token) as writer:
        writer.submit({name: outcome(name) for name in [*names, "last"]})
        eventually(lambda: "edge/status/two/last" in keys(server, "two"), 5)
    after = keys(server, "two")
    assert {key: after[key] for key in before} == before
