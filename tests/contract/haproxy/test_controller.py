"""The controller against a real Consul and a real HAProxy: changes at run time, ownership, and verdicts."""

from __future__ import annotations

import io
import re
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from rich.console import Console

from discovery.contract import instance_name
from haproxy.controller.loop.plan_command import look, show
from haproxy.controller.runtime.socket import Runtime, command
from tests.contract.haproxy.rig import Edge, Program, edge, public
from tests.support.eventually import eventually
from tests.support.load import Load, Plan
from tests.support.matrix import one_always

HOLD_S = 2.0


@pytest.fixture(scope="module")
def running() -> Iterator[Edge]:
    with edge(EDGE_SYNC_S="2", EDGE_DRAIN_S="2", EDGE_HOLD_S=str(HOLD_S)) as made:
        yield made


def test_instances_come_and_go_and_all_of_them_without_a_reload(running: Edge) -> None:
    one, _ = running.fleet("come")
    before = running.reloads()
    running.instance("come", "come-3")
    running.serves("/api/come", {"come-1", "come-2", "come-3"})
    running.deregister("come-1")
    running.serves("/api/come", {"come-2", "come-3"})
    eventually(lambda: set(running.servers("come")) == {"come-2", "come-3"}, 3)
    running.deregister("come-2")
    running.deregister("come-3")
    running.serves("/api/come", {"503"})
    assert running.get("/api/nowhere")[0] == 404
    # Under a name that it had before.
    running.register("come", "come-1", one.port, public("come"))
    running.serves("/api/come", {"come-1"})
    assert running.reloads() == before


def test_weight_backup_and_address_change_without_a_reload(running: Edge) -> None:
    one, other = running.fleet("edit")
    before = running.reloads()
    running.register("edit", "edit-1", one.port, public("edit", weight="7"))
    eventually(lambda: running.servers("edit")["edit-1"].weight == 7, 3)
    running.register("edit", "edit-1", one.port, public("edit", backup="true"))
    running.serves("/api/edit", {"edit-2"})
    # Under its own name, or under that of its place where HAProxy would not let the former go at once.
    eventually(
        lambda: {n.partition(":")[0]: s.backup for n, s in running.servers("edit").items()}["edit-1"], 3
    )
    running.register("edit", "edit-2", one.port, public("edit"))
    eventually(lambda: {each.port for each in running.servers("edit").values()} == {one.port}, 3)
    running.serves("/api/edit", {"edit-1"})
    assert other.seen > 0
    assert running.reloads() == before


def test_instance_that_comes_back_at_another_port_is_all_that_is_asked_under_load(running: Edge) -> None:
    """Although the program at the old port lives on, and its connections are in use without a break."""
    old = running.instance("moves", "moves-1")
    running.serves("/api/moves", {"moves-1"})
    before = running.reloads()
    with Load(Plan(running.settings.edge_http_port, ("/api/moves",), rate_per_s=None)) as load:
        eventually(lambda: old.seen > 50, 5)
        new = running.instance("moves", "moves-1")
        eventually(lambda: new.seen > 50, 5)
        seen, asked = old.seen, new.seen
        eventually(lambda: new.seen > asked + 200, 10)
        assert old.seen == seen
    assert not load.report().failures(), load.report().summary()
    assert running.reloads() == before


def test_check_states_and_maintenance_are_followed(running: Edge) -> None:
    running.fleet("check")
    running.check("check-1", "fail")
    running.serves("/api/check", {"check-2"})
    running.check("check-1", "warn")
    running.serves("/api/check", {"check-1", "check-2"})
    running.consul.call("PUT", "/v1/agent/service/maintenance/check-2?enable=true")
    running.serves("/api/check", {"check-1"})
    running.consul.call("PUT", "/v1/agent/service/maintenance/check-2?enable=false")
    running.serves("/api/check", {"check-1", "check-2"})


def test_request_under_way_is_finished_on_an_instance_that_leaves(running: Edge) -> None:
    leaving, other = running.fleet("under")
    leaving.slow_s = other.slow_s = 1.5
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(running.get, "/api/under/slow") for _ in range(4)]
        eventually(lambda: running.servers("under")["under-1"].sessions > 0, 2)
        running.deregister("under-1")
        eventually(lambda: running.servers("under")["under-1"].mode == "drain", 2)
        leaving.ready = False  # as an instance does that shuts down
    answers = [call.result() for call in calls]
    assert [status for status, _ in answers] == [200] * 4
    assert "under-1" in {name for _, name in answers}
    eventually(lambda: set(running.servers("under")) == {"under-2"}, 3)


def test_request_that_never_ends_holds_an_instance_no_longer_than_the_bound(running: Edge) -> None:
    for program in running.fleet("stuck"):
        program.slow_s = 8.0
    for _ in range(4):
        threading.Thread(target=lambda: running.get("/api/stuck/slow", 20), daemon=True).start()
    eventually(lambda: running.servers("stuck")["stuck-1"].sessions > 0, 2)
    running.deregister("stuck-1")
    eventually(lambda: set(running.servers("stuck")) == {"stuck-2"}, 6)


def test_drift_is_mended_by_the_full_sync(running: Edge) -> None:
    running.fleet("drift")
    with Runtime(running.settings.runtime_socket).session() as session:
        session.send(command("set", "server", "svc_drift/drift-1", "state", "maint"))
        session.send(command("set", "server", "svc_drift/drift-2", "weight", "3"))
        session.send(command("add", "server", "svc_drift/foreign", "127.0.0.1:1"))
        session.send(command("enable", "server", "svc_drift/foreign"))

    def mended() -> bool:
        servers = running.servers("drift")
        return set(servers) == {"drift-1", "drift-2"} and all(
            s.mode == "ready" and s.weight == 100 for s in servers.values()
        )

    eventually(mended, 6)


# -- ownership, validation, verdicts


def test_later_claim_is_refused_and_both_owners_are_told(running: Edge) -> None:
    running.fleet("mine")
    running.instance(
        "rogue", "rogue-1", {"edge-path": "/api/mine,/api/mine/login,/api/rogue", "edge-auth": "public"}
    )
    running.serves("/api/rogue", {"rogue-1"})
    assert running.answers("/api/mine") == {"mine-1", "mine-2"}
    assert running.answers("/api/mine/login") == {"mine-1", "mine-2"}
    eventually(lambda: running.verdict("rogue")["state"] == "partly", 5)
    told = running.verdict("rogue")
    assert (told["accepted"], told["paths"]) == (True, ["/api/rogue"])
    assert [refusal["path"] for refusal in told["refused"]] == ["/api/mine", "/api/mine/login"]
    assert "mine" in told["refused"][0]["reason"]
    eventually(lambda: running.verdict("mine")["state"] == "accepted", 5)
    assert running.metric('breakwater_controller_rejections_total{reason="owner"}') >= 2


def test_pin_hands_a_prefix_over_and_malformed_pins_change_nothing(running: Edge) -> None:
    running.fleet("lent")
    running.instance("heir", "heir-1", {"edge-path": "/api/lent", "edge-auth": "public"})
    eventually(lambda: running.verdict("heir")["state"] == "rejected", 5)
    running.put("edge/policy/owners", {"/api/lent": "heir"})
    running.serves("/api/lent", {"heir-1"})
    running.put("edge/policy/owners", ["not", "pins"])
    eventually(lambda: running.metric('breakwater_controller_errors_total{what="pins"}') > 0, 5)
    assert running.answers("/api/lent") == {"heir-1"}
    running.put("edge/policy/owners", {})
    time.sleep(0.3)
    assert running.answers("/api/lent") == {"heir-1"}, "held by now"


# The field that is refused; what of the metadata, and what else of a registration is bad.
HOSTILE: dict[str, tuple[str, dict[str, str], dict[str, str]]] = {
    "bad-balance": ("edge-balance", {"edge-balance": "roundrobin\nprogram x\n  command /bin/true"}, {}),
    "bad-check": ("edge-check", {"edge-check": "/x; shutdown frontend edge"}, {}),
    "bad-path": ("edge-path", {"edge-path": "/api/%[env(HOME)]"}, {}),
    "bad-quote": ("edge-path", {"edge-path": '/api/"quoted"'}, {}),
    "bad-timeout": ("edge-timeout", {"edge-timeout": "'30'"}, {}),
    "bad-weight": ("edge-weight", {"edge-weight": "1 backup"}, {}),
    "bad-socket": ("address", {}, {"address": "unix@/tmp/evil.sock"}),
    "bad-network": ("address", {}, {"address": "10.1.2.3"}),
    "bad-name": ("address", {}, {"address": "no-such-name.invalid"}),
    "bad-line": ("address", {}, {"address": "127.0.0.1\nserver x"}),
    "x;show env " * 12: ("id", {}, {}),
    "bad-port": ("port", {}, {"port": "control"}),
}


def test_hostile_registrations_are_refused_alone_and_reported(running: Edge) -> None:
    running.instance("hostile", "good")
    running.serves("/api/hostile", {"good"})
    for name, (_, bad, where) in HOSTILE.items():
        port = running.consul.http_port if "port" in where else 1
        running.register(
            "hostile", name, port, public("hostile") | bad, address=where.get("address", "127.0.0.1")
        )
    expected = {name[:100]: field for name, (field, _, _) in HOSTILE.items()}

    def rejected() -> dict[str, str]:
        return {one["id"]: one["field"] for one in running.verdict("hostile")["rejected_instances"]}

    eventually(lambda: rejected() == expected, 10)
    assert running.verdict("hostile")["state"] == "partly"
    assert set(running.servers("hostile")) == {"good"}
    assert running.answers("/api/hostile") == {"good"}
    assert not re.search(r"^\s*program\b", running.settings.config_path.read_text(), re.MULTILINE)
    for name in HOSTILE:
        running.deregister(name)
    eventually(lambda: running.verdict("hostile")["state"] == "accepted", 5)


def test_service_with_a_name_that_is_none_is_told_and_harms_nobody(running: Edge) -> None:
    running.register("_bad", "bad-name", 1, public("badname"))
    assert eventually(lambda: running.verdict("_bad"), 5)["state"] == "rejected"
    assert running.get("/api/badname")[0] == 404


def test_verdict_of_a_service_that_has_gone_is_removed(running: Edge) -> None:
    running.instance("brief", "brief-1")
    eventually(lambda: running.verdict("brief"), 5)
    running.deregister("brief-1")
    eventually(lambda: "edge/status/edge/brief" not in running.verdict_keys(), 5)


def test_plan_shows_what_would_be_done_beside_the_running_controller(running: Edge) -> None:
    running.fleet("shown")

    def planned() -> str:
        out = io.StringIO()
        show(look(running.settings), Console(file=out, width=200))
        return out.getvalue()

    eventually(lambda: "In step" in planned(), 20)
    running.controller.signal(signal.SIGSTOP)
    try:
        running.deregister("shown-1")
        eventually(lambda: "set server svc_shown/shown-1 state drain" in planned(), 10)
    finally:
        running.controller.signal(signal.SIGCONT)


def test_age_and_latency_are_measured(running: Edge) -> None:
    assert running.metric("breakwater_controller_view_age_seconds", -1) >= 0
    assert running.metric("breakwater_controller_change_to_applied_seconds_count") > 0
    assert running.metric('breakwater_controller_commands_total{command="add server",outcome="ok"}') > 0
    assert running.metric('breakwater_controller_commands_total{command="add server",outcome="refused"}') == 0


@pytest.mark.parametrize(
    "id_", one_always("a b;c/d'\"%[env(X)]", "host:app:9095", "_nomad-task-1", "é" * 64, "x" * 128)
)
def test_instance_of_any_printable_id_is_served_under_a_name_that_haproxy_takes(
    running: Edge, id_: str
) -> None:
    program = Program("odd", "odd")
    running.programs.append(program)
    running.register("odd", id_, program.port, public("odd"))
    running.serves("/api/odd", {"odd"})
    eventually(lambda: running.verdict("odd")["state"] == "accepted", 5)
    assert list(running.servers("odd")) == [instance_name(id_)]
    running.deregister(id_)
    running.serves("/api/odd", {"503"})


def test_services_of_any_name_that_consul_takes_are_served_and_share_nothing_by_case(running: Edge) -> None:
    names = ["MyApp", "myapp", "go.micro.srv.greeter", "my_app", "edge_breakers", "Gateway-business"]
    for number, name in enumerate(names):
        paths = {"edge-path": f"/api/named-{number}"}
        running.instance(name, f"{name}-{number}", public(name) | paths)
    for number, name in enumerate(names):
        running.serves(f"/api/named-{number}", {f"{name}-{number}"})
        eventually(lambda name=name: running.verdict(name)["state"] == "accepted", 5)  # type: ignore[misc]
    running.deregister("myapp-1")
    running.serves("/api/named-1", {"503"})
    assert running.answers("/api/named-0") == {"MyApp-0"}


@pytest.mark.parametrize("kind", one_always("connect-proxy", "mesh-gateway"))
def test_part_of_a_mesh_never_gets_the_route_that_it_inherits(running: Edge, kind: str) -> None:
    """Although it is there first."""
    name = f"{kind}-of"
    body = {"Name": f"{name}-proxy", "ID": f"{name}-proxy-1", "Address": "127.0.0.1", "Port": 1, "Kind": kind}
    if kind == "connect-proxy":
        body["Proxy"] = {"DestinationServiceName": name}
    running.consul.call("PUT", "/v1/agent/service/register", {**body, "Meta": public(name)})
    eventually(lambda: running.verdict(f"{name}-proxy")["state"] == "rejected", 5)
    running.instance(name, f"{name}-1")
    running.serves(f"/api/{name}", {f"{name}-1"})
    eventually(lambda: running.verdict(name)["state"] == "accepted", 5)
    running.deregister(f"{name}-proxy-1")


def test_weights_of_consul_count_where_the_metadata_names_none(running: Edge) -> None:
    programs = running.fleet("weigh")
    assert {each.weight for each in running.servers("weigh").values()} == {100}
    for number, weight in ((1, 9), (2, 4000)):
        body = {"Name": "weigh", "ID": f"weigh-{number}", "Address": "127.0.0.1", "Meta": public("weigh")}
        body |= {"Port": programs[number - 1].port, "Weights": {"Passing": weight, "Warning": 1}}
        running.consul.call("PUT", "/v1/agent/service/register", body)
    eventually(
        lambda: {n: s.weight for n, s in running.servers("weigh").items()} == {"weigh-1": 9, "weigh-2": 256},
        5,
    )


def test_instance_at_a_host_name_is_served_where_that_leads(running: Edge) -> None:
    program = Program("byname", "byname-1")
    running.programs.append(program)
    running.register("byname", "byname-1", program.port, public("byname"), address="localhost")
    running.serves("/api/byname", {"byname-1"})
    assert [each.address for each in running.servers("byname").values()] == ["127.0.0.1"]


def test_unchecked_instance_gets_nothing_where_another_service_was_first(running: Edge) -> None:
    held = running.instance("held", "held-1")
    running.serves("/api/held", {"held-1"})
    running.register("squat", "squat-1", held.port, public("squat") | {"edge-check-identity": "off"})
    told = eventually(lambda: running.verdict("squat"), 5)
    assert told["rejected_instances"] == [
        {
            "id": "squat-1",
            "field": "address",
            "reason": f"127.0.0.1:{held.port} is held by held, which had it first: not served",
        }
    ]
    running.serves("/api/squat", {"503"})
    assert held.seen > 0
    # A restart does not lose the place to it; in the end it is free, without a reload, and without waiting for the full sync.
    before = running.reloads()
    running.deregister("held-1")
    running.serves("/api/held", {"503"})
    running.register("held", "held-1", held.port, public("held"))
    running.serves("/api/held", {"held-1"})
    assert running.answers("/api/squat", 1) == {"503"}
    running.deregister("held-1")
    eventually(lambda: running.answers("/api/squat", 1) == {"held-1"}, HOLD_S + 2.5)
    assert running.reloads() == before


@pytest.mark.long
def test_route_that_flaps_waits_with_its_reloads_and_keeps_nobody_else_waiting(running: Edge) -> None:
    flap, turn = running.instance("flap", "flap-1"), 0
    running.serves("/api/flap", {"flap-1"})

    def put_off() -> bool:
        """Another route each time, until the controller says that it waits longer than it must."""
        nonlocal turn
        turn += 1
        running.register("flap", "flap-1", flap.port, public("flap", timeout=str(1 + turn)))
        return re.search(r'"wait_s": ?4\.0', running.log) is not None

    eventually(put_off, 20, every_s=0.2)
    reloads = 'breakwater_controller_reloads_total{reason="routes"}'
    before = running.metric(reloads)
    since = time.monotonic()
    while time.monotonic() - since < 2.5:
        put_off()
        time.sleep(0.2)
    assert running.metric(reloads) == before
    assert running.verdict("flap")["state"] == "pending"
    assert "waits for a reload" in running.verdict("flap")["reasons"][0]
    running.serves("/api/flap", {"flap-1"})
    running.instance("beside", "beside-1")
    running.serves("/api/beside", {"beside-1"}, 1.5)
    eventually(lambda: running.metric(reloads) == before + 1, 2)
    eventually(lambda: running.verdict("flap")["state"] == "accepted", 5)


def test_service_that_flaps_is_told_and_logged_once_a_second(running: Edge) -> None:
    flap = running.instance("restless", "restless-1")
    eventually(lambda: running.verdict("restless")["state"] == "accepted", 5)
    before, since, times = running.log, time.monotonic(), set()
    count = 0
    while time.monotonic() - since < 2:
        count += 1
        bad = {"edge-weight": "0"} if count % 2 else {}
        running.register("restless", "restless-1", flap.port, public("restless", weight=str(count)) | bad)
        times.add(running.verdict("restless")["time"])
    seconds = time.monotonic() - since
    lines = running.log.removeprefix(before)
    assert count > 20
    assert len(times) <= seconds + 2
    assert len(re.findall(r'"verdict".*restless|restless.*"verdict"', lines)) <= seconds + 2
    running.register("restless", "restless-1", flap.port, public("restless"))
    eventually(lambda: running.verdict("restless")["state"] == "accepted", 5)
