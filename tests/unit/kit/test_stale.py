"""What of a view's answers is kept, under which name, and that a request never waits for it. A real Redis, a real thread."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

import pytest
from flask import Response, request, stream_with_context
from flask.testing import FlaskClient
from redis import Redis

from services.kit import Problem, ServiceSettings, create_service, require_scope, stale_if_error
from services.kit import stale_if_error as decorate
from services.kit.auth.verifier import Identity
from services.kit.container import BACKGROUND_TIMEOUT_S, Kit
from services.kit.redis_client import connect
from services.kit.stale import stored_form
from services.kit.stale.decorator import StaleAnswers
from services.kit.stale.writer import MAX_WAITING, Keep, StaleQueue
from tests.support.eventually import eventually, time_scale
from tests.support.servers import RedisServer

TOKENS = {
    "ann": Identity("ann", frozenset({"user"}), time.time() + 900),
    "ann-admin": Identity("ann", frozenset({"user", "admin"}), time.time() + 900),
    "bob": Identity("bob", frozenset({"user"}), time.time() + 900),
}
BASE = "/api/things"


class Verifier:
    """In the place of the kit's: which token is whose is not what is tested here."""

    def verify(self, token: str, within_s: float) -> Identity:
        return TOKENS[token.removesuffix(".x.x")]


class Service:
    """A service whose views do what the test says."""

    def __init__(self, url: str | None) -> None:
        self.app = create_service(
            "things", paths=[BASE], auth="public", settings=ServiceSettings(redis_cache_url=url)
        )
        self.kit: Kit = self.app.extensions["kit"]
        self.kit.tokens = Verifier()
        redis = connect(url, None, timeout_s=BACKGROUND_TIMEOUT_S, connections=4)
        self.queue = StaleQueue(redis, outcomes=self.kit.metrics.stale) if redis else None
        self.kit.stale = StaleAnswers("things", self.queue)
        self.answer: Any = {"n": 1}

        def view(**_: Any) -> Any:
            return self.answer() if callable(self.answer) else self.answer

        for path, scope in (
            ("open", "public"),
            ("mine", "subject"),
            ("leaky", "public"),
            ("many/<n>", "public"),
        ):
            endpoint = stale_if_error(stale_s=60, scope=scope)(_copy(view))  # type: ignore[arg-type]
            if path in ("mine", "leaky"):
                endpoint = require_scope("user")(endpoint)
            self.app.add_url_rule(f"{BASE}/{path}", endpoint=path, view_func=endpoint)
        self.app.add_url_rule(
            f"{BASE}/open", endpoint="write", view_func=lambda: "", methods=["DELETE", "POST"]
        )
        self.client: FlaskClient = self.app.test_client()

    def get(self, path: str, who: str | None = None, **headers: str) -> Any:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if who:
            sent["Authorization"] = f"Bearer {who}.x.x"
        return self.client.get(f"{BASE}/{path}", headers=sent)

    def settled(self) -> None:
        eventually(self.queue.idle, 5, 0.005)

    def counted(self, outcome: str) -> float | None:
        return self.kit.metrics.registry.get_sample_value("service_stale_answers_total", {"outcome": outcome})


def _copy(view: Any) -> Any:
    def own(**arguments: Any) -> Any:
        return view(**arguments)

    return own


@pytest.fixture
def service(redis: Redis, redis_server: RedisServer) -> Service:
    return Service(redis_server.url)


def kept(
    redis: Redis, path: str, query: str = "", subject: str | None = None
) -> tuple[dict[str, Any], bytes] | None:
    """What stands under the name that the gateway reads, made from what the gateway knows."""
    name = stored_form.stale_name("things", stored_form.plain_path(f"{BASE}/{path}"), query, subject)
    assert name is not None
    data = redis.hget(name.key, name.slot)
    return stored_form.unseal(name.whole, data) if data is not None else None  # type: ignore[arg-type]


def test_good_answer_is_kept_with_what_a_reader_needs(service: Service, redis: Redis) -> None:
    before = time.time()
    service.answer = lambda: Response(
        b"body", headers={"Content-Type": "text/x", "ETag": '"1"', "X-Own": "no", "Cache-Control": "public"}
    )
    assert service.get("open").data == b"body"
    service.settled()
    head, body = kept(redis, "open") or pytest.fail("nothing kept")
    assert body == b"body"
    assert before <= head["at"] <= time.time()
    assert head["stale_s"] == 60
    assert dict(map(tuple, head["headers"])) == {"Content-Type": "text/x", "ETag": '"1"'}
    name = stored_form.stale_name("things", f"{BASE}/open", "", None)
    assert name is not None
    assert 0 < redis.pttl(name.key) <= 60_000


def test_a_views_own_304_leaves_what_is_kept(service: Service, redis: Redis) -> None:
    service.answer = lambda: Response(b"body", headers={"ETag": '"1"'})
    service.get("open")
    service.settled()
    service.answer = lambda: Response(status=304, headers={"ETag": '"1"'})
    assert service.get("open").status_code == 304
    service.settled()
    head, body = kept(redis, "open") or pytest.fail("nothing kept")
    assert (head["status"], body) == (200, b"body")


def test_subject_scope_keeps_each_callers_answer_under_its_own_name(service: Service, redis: Redis) -> None:
    service.answer = lambda: {"for": request.headers["Authorization"]}
    service.get("mine", "ann")
    service.get("mine", "bob")
    service.settled()
    for who in ("ann", "bob"):
        found = kept(redis, "mine", subject=who)
        assert found is not None
        assert who.encode() in found[1]
        assert found[0]["scopes"] == ["user"]
    assert kept(redis, "mine") is None


def test_query_is_the_same_in_any_order_and_spelling_and_others_are_others(
    service: Service, redis: Redis
) -> None:
    service.answer = lambda: {"a": request.args.getlist("a"), "b": request.args.get("b")}
    service.get("open?b=x%20y&a=1&a=2")
    service.settled()
    assert kept(redis, "open", "a=1&a=2&b=x+y") is not None
    assert kept(redis, "open", "a=2&a=1&b=x+y") is None
    assert kept(redis, "open", "a=1&a=2") is None
    assert kept(redis, "open") is None


@pytest.mark.parametrize(
    "headers",
    [
        {"Set-Cookie": "a=b"},
        {"Cache-Control": "no-store"},
        {"Cache-Control": "private, no-cache"},
        {"Vary": "Cookie"},
        {"Vary": "*"},
        {"Vary": "Accept-Encoding, Authorization"},
        {"Content-Encoding": "gzip"},
    ],
)
def test_answer_that_is_not_for_every_caller_is_not_kept(
    service: Service, redis: Redis, headers: dict[str, str]
) -> None:
    service.answer = lambda: Response(b"x", headers=headers)
    assert service.get("open").status_code == 200
    service.settled()
    assert kept(redis, "open") is None


def test_private_answer_is_kept_for_its_subject(service: Service, redis: Redis) -> None:
    service.answer = lambda: Response(b"x", headers={"Cache-Control": "private, no-cache"})
    service.get("mine", "ann")
    service.settled()
    assert kept(redis, "mine", subject="ann") is not None


def test_view_that_asks_for_a_token_never_makes_a_public_answer(service: Service, redis: Redis) -> None:
    assert service.get("leaky", "ann").status_code == 200
    service.settled()
    assert redis.keys("stale:*") == []


@pytest.mark.parametrize("header", ["Cookie", "X_Api_Key"])
def test_answer_to_a_cookie_or_a_key_is_not_kept_for_every_caller(
    service: Service, redis: Redis, header: str
) -> None:
    service.client = service.app.test_client(use_cookies=False)  # else it sends those of its own jar
    assert service.get("open", **{header: "user=ann"}).status_code == 200
    service.settled()
    assert redis.keys("stale:*") == []


@pytest.mark.parametrize("answer", ["stream", "large", "error", "created"])
def test_streams_large_bodies_and_other_statuses_are_not_kept(
    service: Service, redis: Redis, answer: str
) -> None:
    made = {
        "stream": lambda: Response(stream_with_context(iter([b"a", b"b"]))),
        "large": lambda: Response(bytes(256 * 1024 + 1)),
        "error": lambda: ({"no": "luck"}, 500),
        "created": lambda: ({"new": True}, 201),
    }
    service.answer = made[answer]
    service.get("open")
    service.settled()
    assert kept(redis, "open") is None


@pytest.mark.parametrize("status", [403, 404, 410])
def test_what_is_gone_or_forbidden_is_not_kept_any_longer(
    service: Service, redis: Redis, status: int
) -> None:
    service.get("mine", "ann")
    service.get("mine", "bob")
    service.settled()
    assert kept(redis, "mine", subject="ann") is not None

    def gone() -> Any:
        raise Problem(status)

    service.answer = gone
    assert service.get("mine", "ann").status_code == status
    service.settled()
    assert kept(redis, "mine", subject="ann") is None
    assert kept(redis, "mine", subject="bob") is not None


def test_failure_of_the_service_leaves_the_last_good_answer(service: Service, redis: Redis) -> None:
    service.get("open")
    service.answer = ({"broken": True}, 503)
    service.get("open")
    service.settled()
    assert kept(redis, "open") is not None


def test_forgotten_path_and_subject_stay_so_for_answers_already_on_their_way(
    service: Service, redis: Redis
) -> None:
    service.get("open")
    service.get("open?q=1")
    service.get("mine", "ann")
    service.settled()
    service.kit.stale.forget(f"{BASE}/open")
    service.kit.stale.forget_subject("ann")
    service.settled()
    # As another instance would that read the row a moment before it went.
    service.get("open")
    service.get("mine", "ann")
    service.settled()
    assert kept(redis, "open") is None
    assert kept(redis, "open", "q=1") is None
    assert kept(redis, "mine", subject="ann") is None


@pytest.mark.parametrize(("path", "who"), [("open", None), ("mine", "ann")])
def test_reader_that_has_it_already_still_gets_304_and_the_answer_is_kept(
    service: Service, redis: Redis, path: str, who: str | None
) -> None:
    def conditional() -> Response:
        answer = Response(b"whole", headers={"ETag": '"1"', "Cache-Control": "public, no-cache"})
        return answer.make_conditional(request)

    service.answer = conditional
    first = service.get(path, who, If_None_Match='"1"')
    assert (first.status_code, first.data, first.headers["ETag"]) == (304, b"", '"1"')
    service.settled()
    found = kept(redis, path, subject=who)
    assert found is not None
    assert found[1] == b"whole"


def test_write_tells_the_gateways_which_paths_hold_no_more(service: Service, redis: Redis) -> None:
    with redis.pubsub(ignore_subscribe_messages=True) as heard:
        heard.subscribe(stored_form.changed_channel("things"))
        assert heard.get_message(timeout=2) is None
        service.client.delete(f"{BASE}/open")
        service.client.post(f"{BASE}/missing")
        message = eventually(lambda: heard.get_message(timeout=0.1), 5)
    change = stored_form.read_change(message["data"])
    assert change == stored_form.Change(f"{BASE}/open", prefix=True)
    service.settled()
    versions = redis.hgetall(stored_form.versions_key("things"))
    assert list(versions) == [stored_form.bucket(f"{BASE}/open", prefix=True).encode()]


def test_same_answer_is_not_written_again_at_once_and_another_is(service: Service, redis: Redis) -> None:
    for _ in range(5):
        service.get("open")
        service.settled()
    assert service.counted("stored") == 1
    service.answer = {"n": 2}
    service.get("open")
    service.settled()
    found = kept(redis, "open")
    assert found is not None
    assert found[1] == b'{"n":2}\n'


def test_random_queries_displace_neither_memory_nor_the_plain_list(service: Service, redis: Redis) -> None:
    service.get("open")
    for number in range(3 * stored_form.SLOTS):
        service.get(f"open?q={number}")
    service.settled()
    assert kept(redis, "open") is not None
    assert redis.hlen(stored_form.public_key("things", f"{BASE}/open")) <= stored_form.SLOTS


def test_hung_redis_slows_no_request_drops_are_counted_and_removals_come_later(
    redis: Redis, redis_server: RedisServer
) -> None:
    service = Service(redis_server.url)
    service.get("mine", "ann")
    service.settled()
    redis_server.process.signal(signal.SIGSTOP)
    try:
        service.kit.stale.forget_subject("ann")
        times = []
        for number in range(MAX_WAITING + 50):
            began = time.perf_counter()
            service.get(f"many/{number}")
            times.append(time.perf_counter() - began)
        assert sorted(times)[int(len(times) * 0.99)] < 0.05 * time_scale()
        assert (service.counted("dropped") or 0) > 0
    finally:
        redis_server.process.signal(signal.SIGCONT)
    eventually(lambda: kept(redis, "mine", subject="ann") is None, 10)
    eventually(service.queue.idle, 10)
    service.get("many/after")
    eventually(lambda: kept(redis, "many/after") is not None, 5)


def test_key_of_another_type_is_replaced(service: Service, redis: Redis) -> None:
    redis.set(stored_form.public_key("things", f"{BASE}/open"), "garbage")
    redis.set(stored_form.versions_key("things"), "garbage")
    service.get("open")
    service.client.delete(f"{BASE}/open")
    service.settled()
    service.answer = {"n": 2}
    service.get("open")
    service.settled()
    assert kept(redis, "open") is not None


def test_service_without_redis_answers_as_ever() -> None:
    before = set(threading.enumerate())
    service = Service(None)
    assert service.get("open").json == {"n": 1}
    service.kit.stale.forget(f"{BASE}/open")
    assert set(threading.enumerate()) <= before, "nothing is to be written, and no thread waits for it"


class Stuck:
    """A Redis that takes nothing until it is released."""

    def __init__(self) -> None:
        self.release = threading.Event()

    def pipeline(self, **_: Any) -> Any:
        self.release.wait(60)
        raise ConnectionError


def test_waiting_answers_are_bounded_by_bytes() -> None:
    stuck = Stuck()
    queue = StaleQueue(stuck)  # type: ignore[arg-type]
    accepted = 0
    for number in range(100):
        name = stored_form.stale_name("things", f"/{number}", "", None)
        assert name is not None
        accepted += queue.put(Keep(name, {}, bytes(256 * 1024), 60))
    assert accepted == 64
    again = stored_form.stale_name("things", "/0", "", None)
    assert again is not None
    assert queue.put(Keep(again, {}, bytes(256 * 1024), 60))
    stuck.release.set()


@pytest.mark.parametrize(("stale_s", "scope"), [(0, "public"), (60, "all"), (1e9, "subject")])
def test_senseless_declaration_is_refused(stale_s: float, scope: Any) -> None:
    with pytest.raises(ValueError, match="no stale answer"):
        decorate(stale_s=stale_s, scope=scope)
