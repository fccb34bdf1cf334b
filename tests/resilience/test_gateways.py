"""The gateway lane while parts of the fleet are gone: whole services, a group of gateways, Redis."""

from __future__ import annotations

import contextlib
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
from redis.exceptions import RedisError, ResponseError

from tests.support.accounts import Account, ask
from tests.support.eventually import eventually, time_scale
from tests.support.fleet import Fleet, RedisName
from tests.support.load import Load, Plan, Report
from tests.support.matrix import long_on_processes, one_always
from tests.support.wire import Reply

pytestmark = pytest.mark.needs_stack

# Back in the direct lane after the first instance passes.
BACK_S = 2.0
# A fault of Redis may double the p99, and add this.
SLOWER_S = 0.05
CACHE: RedisName = "redis-cache"
ROUNDS = 3


@contextlib.contextmanager
def gone(fleet: Fleet, how: str, *services: str) -> Iterator[None]:
    """No instance of these services for as long as the context lasts: drained (`stopped`) or dead at once (`killed`)."""
    take = {"stopped": fleet.stop, "killed": fleet.crash}[how]
    try:
        for service in services:
            take(service)
        assert not any(member.pid for service in services for member in fleet.instances(service))
        yield
    finally:
        for service in services:
            fleet.start(service)


def remembered(fleet: Fleet, service: str) -> bool:
    """Whether a last good answer of the service is stored."""
    return bool(fleet.redis(CACHE, "KEYS", f"stale:{service}:[ps]:*"))


def assert_stale(reply: Reply, good: Reply) -> None:
    assert reply.status == 200, reply
    assert reply.headers["x-cache"] == "STALE"
    assert reply.headers["x-served-lane"] == "gateway"
    assert 0 <= int(reply.headers["x-stale-age"]) < 300
    assert json.loads(reply.body) == json.loads(good.body)


def problem(reply: Reply, status: int) -> dict[str, object]:
    """The members of a problem answer."""
    assert reply.status == status, reply
    assert reply.headers["content-type"].startswith("application/problem+json")
    found: dict[str, object] = json.loads(reply.body)
    assert found["status"] == status
    return found


def direct(reply: Reply) -> bool:
    return reply.status == 200 and reply.headers["x-served-lane"] == "direct"


class FirstReady:
    """Watches a service that is gone for the moment in which its first instance is ready again."""

    def __init__(self, fleet: Fleet, service: str) -> None:
        self._fleet = fleet
        self._members = fleet.instances(service)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        self._ready_s = 0.0

    def _watch(self) -> None:
        eventually(self._ready, 60, every_s=0.01)
        self._ready_s = time.monotonic()

    def _ready(self) -> bool:
        return any(self._fleet.ready(member) for member in self._members)

    def assert_served_in_time(self, ask_edge: Callable[[], Reply]) -> None:
        """The service itself answers at the edge again, and in time."""
        eventually(lambda: direct(ask_edge()), 30, every_s=0.01)
        served_s = time.monotonic()
        self._thread.join(60)
        assert served_s - self._ready_s < BACK_S * time_scale()


@long_on_processes
@pytest.mark.parametrize(
    ("how", "services"),
    # Another domain's gateways do not matter.
    one_always(("killed", ("users", "gateway-business")), ("stopped", ("users",))),
)
def test_without_users_the_owner_gets_the_last_good_answer(
    fleet: Fleet, account: Account, other_account: Account, how: str, services: tuple[str, ...]
) -> None:
    path = f"/api/users/{account.id}"
    good = account.ask("GET", path)
    assert direct(good)
    eventually(lambda: remembered(fleet, "users"), 5)
    other_account.token()
    with Load(Plan(fleet.edge_port, (path,), headers=account.headers(), rate_per_s=50)) as load:
        with gone(fleet, how, *services):
            gone_s = time.monotonic()
            back = FirstReady(fleet, "users")
            eventually(lambda: account.ask("GET", path).headers.get("x-cache") == "STALE", 5)
            assert_stale(account.ask("GET", path), good)
            assert_only_the_owner_sees_it(fleet, account, other_account)
            changed = account.ask("PATCH", path, {"firstName": "Somebody"})
            assert problem(changed, 503)["service"] == "users"
            assert "retry-after" in changed.headers
            time.sleep(1)
        back.assert_served_in_time(lambda: account.ask("GET", path))
    assert account.ask("GET", path).body == good.body, "a write was kept, or something else came back"
    assert_only_stale_in_between(load.report(), gone_s)


def assert_only_the_owner_sees_it(fleet: Fleet, account: Account, other: Account) -> None:
    path = f"/api/users/{account.id}"
    strange = other.ask("GET", path)
    assert strange.status in {403, 503}, strange
    assert account.email.encode() not in strange.body
    assert ask(fleet.edge_port, "GET", path).status == 401
    forged = {"Authorization": account.headers()["Authorization"][:-8] + "AAAAAAAA"}
    assert ask(fleet.edge_port, "GET", path, headers=forged).status == 401
    own = other.ask("GET", f"/api/users/{other.id}")
    assert own.status in {200, 503}
    assert account.email.encode() not in own.body


def assert_only_stale_in_between(report: Report, gone_s: float) -> None:
    """Every answer was good, but for the moment in which the last instances went."""
    assert {(a.lane, a.cache) for a in report.good()} >= {("gateway", "STALE")}
    late = [a for a in (*report.failures(), *report.cuts()) if a.due_s > gone_s + 0.5 * time_scale()]
    assert not late, report.summary()
    # On the way out and in, a gateway may know an instance that the edge does not: that answer is fresh.
    assert {a.cache for a in report.good() if a.lane == "gateway"} <= {"STALE", "BYPASS", "MISS"}


@long_on_processes
def test_without_posts_the_last_good_list_stands_in_and_nothing_is_written(
    fleet: Fleet, account: Account
) -> None:
    wanted = f"kept {uuid.uuid4().hex[:8]}"
    made = account.ask("POST", "/api/posts", {"title": wanted, "content": "text", "tags": []})
    assert made.status == 201
    good = ask(fleet.edge_port, "GET", "/api/posts")
    assert direct(good)
    assert wanted.encode() in good.body
    eventually(lambda: remembered(fleet, "posts"), 5)
    account.token()
    with gone(fleet, "killed", "posts"):
        back = FirstReady(fleet, "posts")
        eventually(lambda: ask(fleet.edge_port, "GET", "/api/posts").headers.get("x-cache") == "STALE", 5)
        assert_stale(ask(fleet.edge_port, "GET", "/api/posts"), good)
        lost = f"lost {uuid.uuid4().hex[:8]}"
        refused = account.ask("POST", "/api/posts", {"title": lost, "content": "text", "tags": []})
        said = problem(refused, 503)
        assert said["degraded"] is True
        assert (said["service"], said["layer"]) == ("posts", "gateway")
        assert "retry-after" in refused.headers
        unknown = ask(fleet.edge_port, "GET", f"/api/posts?tag={uuid.uuid4().hex}")
        assert problem(unknown, 503)["degraded"] is True
    back.assert_served_in_time(lambda: ask(fleet.edge_port, "GET", "/api/posts"))
    assert lost.encode() not in ask(fleet.edge_port, "GET", "/api/posts").body


# Group → a path that only its gateways answer.
GROUPS = {
    "gateway-identity": "/api/gateway/identity",
    "gateway-business": "/api/gateway/business",
    "gateway-ai": "/api/gateway/ai",
}


@long_on_processes
@pytest.mark.parametrize("victim", one_always("gateway-business", "gateway-identity"))
def test_killed_gateways_leave_the_other_groups_untouched(
    fleet: Fleet, account: Account, victim: str
) -> None:
    others = [path for group, path in GROUPS.items() if group != victim]
    plan = Plan(
        fleet.edge_port,
        (*others, f"/api/users/{account.id}", "/api/posts"),
        headers=account.headers(),
        rate_per_s=50,
    )
    with Load(plan) as load:
        time.sleep(0.5)
        with gone(fleet, "killed", victim):
            fault_s = time.monotonic()
            eventually(lambda: ask(fleet.edge_port, "GET", GROUPS[victim]).status == 503, 5)
            if victim == "gateway-business":
                composed = account.ask("GET", "/api/overview")
                assert problem(composed, 503)["layer"] == "edge"
                assert "retry-after" in composed.headers
            eventually(lambda: len(load.report().since(fault_s).good()) > 75, 10)
            end_s = time.monotonic()
    eventually(lambda: ask(fleet.edge_port, "GET", GROUPS[victim]).status == 200, 30)
    report = load.report()
    assert not report.failures(), report.summary()
    assert not report.cuts(), report.summary()
    meanwhile = report.since(fault_s, end_s)
    assert len(meanwhile.good()) > 50
    assert meanwhile.latency_s(0.99) < 0.25 * time_scale(), meanwhile.summary()


# -- Redis


@contextlib.contextmanager
def killed(fleet: Fleet) -> Iterator[None]:
    fleet.kill_server(CACHE)
    try:
        with pytest.raises(RedisError):
            fleet.redis(CACHE, "PING")
        yield
    finally:
        fleet.start_server(CACHE)
        eventually(lambda: fleet.redis(CACHE, "PING"), 15)


@contextlib.contextmanager
def hung(fleet: Fleet) -> Iterator[None]:
    with fleet.hang_server(CACHE):
        with pytest.raises(RedisError, match="Timeout"):
            fleet.redis(CACHE, "PING")
        yield


@contextlib.contextmanager
def full(fleet: Fleet) -> Iterator[None]:
    # The policy first, or everything would be evicted before nothing may be.
    with fleet.redis_config(CACHE, maxmemory_policy="noeviction", maxmemory="1"):
        with pytest.raises(ResponseError, match="maxmemory"):
            fleet.redis(CACHE, "SET", "test:full", "x")
        assert fleet.redis(CACHE, "PING")
        yield


@contextlib.contextmanager
def read_only(fleet: Fleet) -> Iterator[None]:
    with fleet.read_only_redis(CACHE):
        with pytest.raises(ResponseError, match="read only"):
            fleet.redis(CACHE, "SET", "test:read-only", "x")
        yield


FAULTS: dict[str, Callable[[Fleet], AbstractContextManager[None]]] = {
    "killed": killed,
    "hung": hung,
    "full": full,
    "read-only": read_only,
}


@pytest.fixture(scope="module")
def product(stack_fleet: Fleet, admin: Account) -> str:
    """The id of a product."""
    body = {
        "sku": uuid.uuid4().hex[:12].upper(),
        "name": "Lamp",
        "category": "light",
        "price": 1,
        "currency": "EUR",
    }
    made = admin.ask("POST", "/api/products", body)
    assert made.status == 201, made
    return str(json.loads(made.body)["data"]["id"])


class Expected:
    """Judges answers: the right user and product, under a name that the user has or, around its change, had."""

    def __init__(self, account: Account, product: str) -> None:
        self._account = account
        self._product = product
        self.composed, self.own = f"/api/{account.id}/{product}", f"/api/users/{account.id}"
        self.names: set[str] = {json.loads(account.ask("GET", self.own).body)["data"]["firstName"]}

    def __call__(self, path: str, body: bytes) -> bool:
        said = json.loads(body)
        if path == self.composed and said["product"]["id"] != self._product:
            return False
        user = said["user" if path == self.composed else "data"]
        return user["id"] == self._account.id and user["firstName"] in self.names

    def rename(self) -> None:
        """Change the user's name; from a moment after the answer, no reader may see the old one."""
        name = f"Ada {uuid.uuid4().hex[:6]}"
        self.names = {*self.names, name}
        assert self._account.ask("PATCH", self.own, {"firstName": name}).status == 200
        time.sleep(0.3)  # what was asked before the change is answered by now
        self.names = {name}


@pytest.mark.parametrize("fault", one_always("hung", "killed", "full", "read-only"))
def test_fault_of_redis_costs_milliseconds_and_no_answer(
    fleet: Fleet, account: Account, product: str, fault: str
) -> None:
    """No answer may be wrong, ever; as to time, something else on the machine may have slowed a round."""
    rounds = []
    for _ in range(ROUNDS):
        before, meanwhile = one_round(fleet, Expected(account, product), account, FAULTS[fault])
        rounds.append(f"{before.summary()}; with the fault {meanwhile.summary()}")
        if meanwhile.latency_s(0.99) <= 2 * before.latency_s(0.99) + SLOWER_S * time_scale():
            return
    raise AssertionError("\n".join(rounds))


def one_round(
    fleet: Fleet, expected: Expected, account: Account, fault: Callable[[Fleet], AbstractContextManager[None]]
) -> tuple[Report, Report]:
    """Load before and during the fault, with a change in the middle of it: what was asked before, and what with it."""
    paths = (expected.composed, expected.own)
    # Without Redis each of these is work for two services: few enough that a busy machine does not fall behind.
    plan = Plan(fleet.edge_port, paths, headers=account.headers(), rate_per_s=40, right=expected)
    with Load(plan) as load:
        time.sleep(1.5)
        fault_s = time.monotonic()
        with fault(fleet):
            expected.rename()
            time.sleep(2)
            end_s = time.monotonic()
        time.sleep(0.5)
    report = load.report()
    assert not report.failures(), report.summary()
    assert not report.cuts(), report.summary()
    meanwhile = report.since(fault_s, end_s)
    assert {a.lane for a in meanwhile.good()} == {"direct", "gateway"}
    return report.since(0, fault_s), meanwhile


@pytest.mark.parametrize("name", ["redis-cache", "redis-state"])
def test_services_and_gateways_ask_redis_for_nothing_that_is_not_theirs(
    fleet: Fleet, name: RedisName
) -> None:
    """Of all that this session's stack has done up to here."""
    assert fleet.redis(name, "ACL LOG") == []
    assert fleet.redis(name, "CLIENT LIST", "TYPE", "normal")
