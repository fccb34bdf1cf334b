"""Two users, one cache: no caller gets what was made for another, whatever they ask for and in whatever order.

Two instances share a real Redis. The service names the caller (by token with its scopes, cookie, key) in every answer that is not
for all callers. Whatever comes back must name the caller that it is given to, or none.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis

from discovery.errors import ResponseLost
from gateway.cache import PartPolicy
from gateway.errors import Refused
from gateway.model import Answer, Incoming
from services.kit.auth.verifier import Identity
from services.kit.stale import stored_form
from services.kit.stale.writer import Keep, StaleQueue
from tests.support import servers
from tests.support.cache_rig import CLOCK, Instance, Origin, at_once, incoming, later
from tests.support.eventually import eventually

USER, MORE = frozenset({"user"}), frozenset({"user", "admin"})
IDENTITIES = {
    "ann": Identity("ann", USER, 9e9),
    "ann-admin": Identity("ann", MORE, 9e9),
    "ann-by-key": Identity("ann", USER, 9e9, by_key=True),
    "bob": Identity("bob", USER, 9e9),
    "forged": None,
    "": None,
}
CONTROLS = [
    "public, max-age=60",
    "public, s-maxage=60, stale-if-error=600",
    "max-age=60, stale-while-revalidate=600",
    "private, max-age=60, stale-if-error=600",
    "public, private, max-age=60",
    "s-maxage=60, private",
    "max-age=60",
    "no-cache",
    "no-store, max-age=60, public",
    "",
]
PATHS = ["/a", "/%61", "/b", "/a/c", "/a%2Fc", "/me"]
_numbers = itertools.count()


@dataclass(frozen=True)
class Ask:
    """One request, and how the service would answer it."""

    method: str
    path: str
    query: str
    who: str
    headers: tuple[tuple[str, str], ...]
    control: str
    vary: str
    status: int
    instance: int
    kind: str
    fails: bool
    pause_s: int


HEADERS = [
    ("cookie", "session=ann"),
    ("cookie", "session=bob"),
    ("x-api-key", "anns"),
    ("accept-language", "de"),
    ("cache-control", "no-cache"),
    ("cache-control", "only-if-cached"),
    ("if-none-match", "*"),
    ("range", "bytes=0-9"),
    ("x-auth-subject", "bob"),
    ("x-forwarded-host", "other.test"),
]


@st.composite
def scenes(draw: Any) -> list[Ask]:
    """A few resources, each with its own ways, and what is asked of them. A service that changes its mind is among it."""
    ways = st.tuples(
        st.sampled_from(CONTROLS),
        st.sampled_from(["", "", "", "Authorization", "Accept-Language", "*", "Cookie"]),
    )
    places = draw(st.lists(st.tuples(st.sampled_from(PATHS), ways), min_size=1, max_size=2))
    often = st.sampled_from
    asks = []
    for _ in range(draw(st.integers(8, 24))):
        path, usual = draw(often(places))
        control, vary = usual if draw(st.integers(0, 11)) else draw(ways)
        asks.append(
            Ask(
                draw(often(["GET"] * 24 + ["HEAD", "HEAD", "POST", "DELETE", "OPTIONS", "PURGE"])),
                path,
                draw(often(["", "", "", "", "q=1"])),
                draw(often(sorted(IDENTITIES))),
                tuple(draw(st.lists(often(HEADERS), max_size=2))) if not draw(st.integers(0, 2)) else (),
                control,
                vary,
                draw(often([200] * 20 + [404, 403, 301])),
                draw(st.integers(0, 1)),
                draw(often(["serve"] * 9 + ["part-public", "part-subject", "last-good", "keep"])),
                not draw(st.integers(0, 7)),
                90 if not draw(st.integers(0, 9)) else 0,
            )
        )
    return asks


def name_of(ask: Ask) -> str:
    """The caller, as a service sees it."""
    if ask.who == "forged":
        token = "forged"
    else:
        identity = IDENTITIES[ask.who]
        token = f"{identity.subject}/{sorted(identity.scopes)}/{identity.by_key}" if identity else "-"
    headers = dict(ask.headers)
    return f"<{token} {headers.get('cookie', '-')} {headers.get('x-api-key', '-')}>"


def bare(ask: Ask) -> Ask:
    """A part is asked for with the token alone: cookies and keys of the whole's request do not go along."""
    return replace(ask, headers=())


def unproved(ask: Ask) -> bool:
    """Whether credentials come with it that prove no subject to a gateway: the service may answer from them, whatever it says."""
    return any(name in ("cookie", "x-api-key") for name, _ in ask.headers)


def for_all(ask: Ask) -> bool:
    """Whether the service means its answer for all callers."""
    if unproved(ask):
        return False
    said = {part.partition("=")[0].strip() for part in ask.control.split(",")}
    return (
        bool(said & {"public", "s-maxage"})
        and "private" not in said
        and ask.vary not in ("Authorization", "Cookie")
    )


def tag(body: str) -> str:
    return '"' + hashlib.sha256(body.encode()).hexdigest()[:12] + '"'


class Stage:
    def __init__(self, server: servers.RedisServer) -> None:
        self.instances = [Instance(server.url, Origin()) for _ in range(2)]
        self.queue = StaleQueue(Redis.from_url(server.url))
        self.stored = 0

    def request(self, ask: Ask, prefix: str) -> Incoming:
        asked = incoming(prefix + ask.path, ask.query, method=ask.method, **dict(ask.headers))
        asked.identify = lambda: IDENTITIES[ask.who]
        if ask.who:
            asked.headers = {**asked.headers, "authorization": f"Bearer {ask.who}"}
        return asked

    def load(self, ask: Ask, takes_s: float = 0.0) -> Callable[[Mapping[str, str]], Answer]:
        body = "all" if for_all(ask) else name_of(ask)

        def load(_: Mapping[str, str]) -> Answer:
            if takes_s:
                time.sleep(takes_s)
            if ask.fails:
                raise ResponseLost("pears")
            headers = [("ETag", tag(body)), ("Content-Length", str(len(body)))]
            headers += [(k, v) for k, v in (("Cache-Control", ask.control), ("Vary", ask.vary)) if v]
            return Answer(ask.status, headers, b"" if ask.method == "HEAD" else body.encode(), source="i")

        return load

    def answer(self, ask: Ask, prefix: str, takes_s: float = 0.0) -> Answer | None:
        cache, asked = self.instances[ask.instance].cache, self.request(ask, prefix)
        try:
            if ask.kind == "last-good":
                return cache.last_good(asked)
            if ask.kind.startswith("part"):
                return self.part(ask, asked)
            return cache.serve(asked, self.load(ask, takes_s))
        except (ResponseLost, Refused):
            return None

    def part(self, ask: Ask, asked: Incoming) -> Answer:
        """As composed answers ask: without a token for what is public."""
        scope = "subject" if ask.kind == "part-subject" else "public"
        policy = PartPolicy(ttl_s=60, stale_while_revalidate_s=600, stale_if_error_s=600, scope=scope)
        identity = asked.identify() if policy.scope == "subject" else None
        load = self.load(bare(replace(ask, method="GET")))  # whatever the whole is asked with

        def made() -> Answer:
            answer = load({})
            if policy.scope == "public":
                answer.body, answer.headers = b"all", [("Cache-Control", ask.control)]
            return answer

        cache = self.instances[ask.instance].cache
        return cache.part("pears", asked.target, policy, made, identity=identity)

    def keep(self, ask: Ask, prefix: str) -> None:
        """As the kit does for a view of scope subject."""
        identity = IDENTITIES[ask.who]
        subject = identity.subject if identity is not None else None
        body = name_of(replace(ask, headers=())) if identity is not None else "all"
        name = stored_form.stale_name("pears", stored_form.plain_path(prefix + ask.path), ask.query, subject)
        assert name is not None
        scopes = sorted(identity.scopes) if identity is not None else []
        now = CLOCK.time()
        head = {"status": 200, "headers": [["ETag", tag(body)]], "at": now, "stale_s": 600, "scopes": scopes}
        self.queue.put(Keep(name, head, body.encode(), 600))
        eventually(self.queue.idle, 5, 0.001)


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with servers.redis() as server:
        made = Stage(server)
        yield made
        for each in made.instances:
            each.stop()


def allowed(ask: Ask) -> set[str]:
    """What may stand in an answer to this request."""
    if ask.kind.startswith("part"):
        ask = bare(ask)
    names = {name_of(ask)}
    if not unproved(ask) or ask.kind != "serve":
        names.add("all")
    if ask.kind == "last-good":
        # A last good answer is its subject's, if the token may see at least as much as it could then.
        identity = IDENTITIES[ask.who]
        for other, kept in IDENTITIES.items():
            if identity and kept and kept.subject == identity.subject and kept.scopes <= identity.scopes:
                names.add(name_of(replace(ask, who=other, headers=())))
    return names


@pytest.mark.long
@settings(
    deadline=None,
    max_examples=200,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.function_scoped_fixture,
    ],
)
@given(asks=scenes())
def test_no_caller_gets_an_answer_that_was_made_for_another(stage: Stage, asks: list[Ask]) -> None:
    prefix = f"/api/{next(_numbers)}"
    for ask in asks:
        later(ask.pause_s)
        if ask.kind == "keep":
            stage.keep(ask, prefix)
            continue
        answer = stage.answer(ask, prefix)
        if answer is None or answer.source == "gateway" or ask.method not in ("GET", "HEAD"):
            continue
        names = allowed(ask)
        body = answer.body.decode()  # type: ignore[union-attr]
        if answer.status != 304 and ask.method == "GET":
            assert body in names, answer
        tagged = answer.header("etag")
        assert tagged is None or tagged in {tag(each) for each in names}, answer
        stage.stored += answer.source in ("cache", "stale")


@pytest.mark.long
def test_the_cache_was_at_work_all_the_while(stage: Stage) -> None:
    """Else the test before would prove nothing. Runs after it, in the order of the file."""
    assert stage.stored > 10


@pytest.mark.parametrize("control", ["public, max-age=60", "private, max-age=60", "max-age=60", "no-store"])
def test_no_caller_gets_anothers_answer_though_all_ask_at_once(stage: Stage, control: str) -> None:
    """The service is slow, and says to some that its answer is for all: each round finds another state of what is known."""
    path = f"/api/{next(_numbers)}"
    askers = [
        Ask("GET", "/me", "", who, headers, said, "", 200, instance, "serve", False, 0)
        for who in ("ann", "bob", "forged", "")
        for headers in ((), (("cookie", f"session={who}"),), (("x-api-key", who),))
        for said in ((control, "public, max-age=60") if who == "" else (control,))
        for instance in (0, 1)
    ]
    for _ in range(4):
        given = at_once(len(askers), lambda place: stage.answer(askers[place], path, takes_s=0.02))
        for ask, answer in zip(askers, given, strict=True):
            assert isinstance(answer, Answer), answer
            assert answer.body.decode() in allowed(ask), (ask, answer)  # type: ignore[union-attr]
        stage.instances[0].cache.purge("pears", f"{path}/me")


@pytest.mark.parametrize("kind", ["serve", "part-subject", "last-good"])
def test_each_way_gives_the_caller_its_own_and_the_other_none_of_it(stage: Stage, kind: str) -> None:
    prefix = f"/api/{next(_numbers)}"
    usual: dict[str, Any] = {
        "method": "GET", "path": "/me", "query": "", "headers": (), "control": "private, max-age=60",
        "vary": "", "status": 200, "fails": False, "pause_s": 0,
    }  # fmt: skip
    ann = Ask(who="ann", instance=0, kind=kind, **usual)
    if kind == "last-good":
        stage.keep(ann, prefix)
    else:
        stage.answer(ann, prefix)
    again = stage.answer(Ask(who="ann", instance=1, kind=kind, **usual), prefix)
    assert again is not None
    assert (again.body, again.source in ("cache", "stale")) == (name_of(ann).encode(), True)
    for who in ("bob", "forged", ""):
        other = stage.answer(Ask(who=who, instance=1, kind=kind, **usual), prefix)
        assert other is None or other.body != again.body
