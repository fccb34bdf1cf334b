"""Verdicts in a real Consul's KV: each key on its own, whatever a service is called."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

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


@contextlib.contextmanager
def writing(server: ConsulServer, token: str | None = None) -> Iterator[VerdictWriter]:
    api = ConsulApi(server.address, token)
    writer = VerdictWriter(api, "edge", Metrics(), Health())
    writer.start()
    try:
        yield writer
    finally:
        writer.stop()
        api.close()


def keys(server: ConsulServer) -> dict[str, int]:
    """Key → index of its last change."""
    found: Any = server.call("GET", "/v1/kv/?recurse")
    return {item["Key"]: item["ModifyIndex"] for item in found or []}


def test_key_that_consul_refuses_keeps_no_other_waiting_and_is_told_once() -> None:
    rules = 'key_prefix "edge/status/" { policy = "write" } key "edge/status/edge/bad" { policy = "read" }'
    with consul(acl=True) as server:
        server.call("PUT", "/v1/acl/policy", {"Name": "most", "Rules": rules})
        made: Any = server.call("PUT", "/v1/acl/token", {"Policies": [{"Name": "most"}]})
        with capture_logs() as logs, writing(server, made["SecretID"]) as writer:
            writer.submit({name: outcome(name) for name in ("a", "bad", "c", "zz")})
            wanted = {f"edge/status/edge/{name}" for name in ("a", "c", "zz")}
            eventually(lambda: set(keys(server)) == wanted, 5)
            writer.submit(dict.fromkeys(("a", "bad")) | {"late": outcome("late")})
            wanted = {f"edge/status/edge/{name}" for name in ("c", "late", "zz")}
            eventually(lambda: set(keys(server)) == wanted, 5)
        refused = [line for line in logs if line["event"] == "verdict refused by consul"]
        assert [line["key"] for line in refused] == ["edge/status/edge/bad"]


def test_every_name_is_one_segment_of_a_key_that_is_written_once() -> None:
    names = ["..", ".", "a b", "a/../b", "ä", "a%2F", "~", "x\ny", "MyApp", "go.micro.srv", "n" * 900]
    with consul() as server:
        with writing(server) as writer:
            writer.submit({name: outcome(name) for name in names})
            eventually(lambda: len(keys(server)) == len(names), 5)
        before = keys(server)
        assert all(key.startswith("edge/status/edge/") and key.count("/") == 3 for key in before)
        assert {"edge/status/edge/MyApp", "edge/status/edge/go.micro.srv"} <= set(before)
        with writing(server) as writer:
            writer.submit({name: outcome(name) for name in [*names, "last"]})
            eventually(lambda: "edge/status/edge/last" in keys(server), 5)
        after = keys(server)
        assert {key: after[key] for key in before} == before
