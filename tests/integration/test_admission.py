"""What the edge refuses does not come in by a gateway: a real Consul, edge and gateway, and foreign programs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.contract.haproxy.rig import Edge, Program, edge
from tests.support.eventually import eventually
from tests.support.gateway_rig import Gateway, gateway_of


@dataclass
class Lanes:
    edge: Edge
    gateway: Gateway

    @contextlib.contextmanager
    def program(self, service: str, meta: dict[str, str]) -> Iterator[Program]:
        """An instance that says that it is of `service`, registered as its first."""
        program = Program(service, f"{service}-1")
        self.edge.programs.append(program)
        with self.registered(service, program.port, meta):
            yield program

    @contextlib.contextmanager
    def registered(self, service: str, port: int, meta: dict[str, str]) -> Iterator[str]:
        id_ = f"{service}-1"
        self.edge.register(service, id_, port, {"edge-path": f"/api/{service}", **meta})
        try:
            yield id_
        finally:
            self.edge.deregister(id_)

    def status(self, path: str) -> int:
        return self.edge.get(path)[0]


@pytest.fixture(scope="module")
def lanes() -> Iterator[Lanes]:
    with edge() as made:
        variables = {"CONSUL_HTTP_ADDR": made.consul.address, "AUTH_JWKS_URL": "http://127.0.0.1:1/jwks"}
        with gateway_of("business", made.folder, variables) as gateway:
            gateway.wait()
            eventually(lambda: made.get("/api/gateway/business")[0] == 200, 20)
            yield Lanes(made, gateway)


@pytest.mark.parametrize(
    ("name", "meta"),
    [
        ("plums", {"edge-check-identity": "off"}),
        ("figs", {"edge-strip": "true"}),
        ("dates", {"edge-lane": "gateway", "edge-check-identity": "off", "edge-strip": "true"}),
        ("limes", {"edge-lane": "gateway"}),
    ],
)
def test_whoever_registers_at_the_place_of_another_gets_none_of_its_answers(
    lanes: Lanes, name: str, meta: dict[str, str]
) -> None:
    with lanes.program(f"victim-{name}", {"edge-auth": "jwt"}) as victim:
        eventually(lambda: lanes.status(f"/api/victim-{name}") == 401, 10)
        with lanes.registered(name, victim.port, {"edge-auth": "public", **meta}):
            # The route is there, and its only instance is not its own.
            eventually(lambda: lanes.status(f"/api/{name}") == 503, 10)
            for _ in range(20):
                assert lanes.status(f"/api/{name}/secret") == 503
    assert victim.seen == 0


def test_the_gateways_lane_serves_one_that_says_its_name_and_a_foreign_one_that_need_not(
    lanes: Lanes,
) -> None:
    lane = {"edge-auth": "public", "edge-lane": "gateway"}
    with lanes.program("pears", lane):
        eventually(lambda: lanes.edge.get("/api/pears/1") == (200, "pears-1"), 10)
    with lanes.program("melons", {**lane, "edge-check-identity": "off"}) as foreign:
        foreign.service = "whatever"
        eventually(lambda: lanes.edge.get("/api/melons/1") == (200, "melons-1"), 10)


def test_the_gateways_lane_goes_where_a_host_name_leads(lanes: Lanes) -> None:
    meta = {"edge-path": "/api/named", "edge-auth": "public", "edge-lane": "gateway"}
    program = Program("named", "named-1")
    lanes.edge.programs.append(program)
    lanes.edge.register("named", "host:named:1", program.port, meta, address="localhost")
    eventually(lambda: lanes.edge.get("/api/named/1") == (200, "named-1"), 10)
