"""Host names as addresses: from memory, followed, and never believed beyond the allowed networks."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from discovery.admission.resolver import Resolver, is_host, system_addresses
from discovery.admission.rules import Admissions
from discovery.contract import Policy
from discovery.model import Instance
from tests.support.eventually import eventually

Answers = dict[str, tuple[str, ...]]


def scripted(answers: Answers, looked: list[str] | None = None) -> Callable[[str], tuple[str, ...]]:
    """A resolver that gives what stands in `answers`, and notes in `looked` what it was asked for."""

    def resolve(host: str) -> tuple[str, ...]:
        if looked is not None:
            looked.append(host)
        if host not in answers:
            raise OSError("no such name")
        return answers[host]

    return resolve


def at(host: str, index: int = 1, **meta: str) -> Instance:
    keys = {"edge-path": "/api/posts", **meta}
    return Instance("posts", f"posts-{index}", "n1", host, 20001, meta=keys, create_index=index)


def places(admissions: Admissions, service: str = "posts") -> list[str]:
    return [each.placement.address for each in admissions.by_service[service].admitted]


@pytest.mark.parametrize("host", ["post-service", "a.b", "db_1", "1a", "x" * 63 + ".y"])
def test_names(host: str) -> None:
    assert is_host(host)


@pytest.mark.parametrize(
    "text",
    [
        "127.0.0.1",
        "127.1",
        "0177.0.0.1",
        "1",
        "::1",
        "",
        ".",
        "a.",
        "-",
        "a b",
        "a\n",
        "unix@/x",
        "a/b",
        "x" * 64,
        "é",
    ],
)
def test_what_is_no_name(text: str) -> None:
    assert not is_host(text) or text == "-"


def test_the_machines_resolver_is_asked() -> None:
    assert "127.0.0.1" in system_addresses("localhost")
    resolver = Resolver()
    resolver.follow({"localhost"})
    resolver.wait(10)
    assert resolver.addresses("localhost")[0] == "127.0.0.1"


def test_changes_are_followed_and_the_last_good_answer_stays() -> None:
    answers: Answers = {"post-service": ("127.0.0.2",)}
    looked: list[str] = []
    resolver = Resolver(scripted(answers, looked), every_s=0.01)
    admissions = Admissions(Policy(), resolver)
    posts = {"posts": [at("post-service")]}
    admissions.update(posts, 0)
    assert places(admissions) == ["127.0.0.2"]
    admissions.release(0)
    answers["post-service"] = ("127.0.0.3",)
    eventually(lambda: admissions.due == float("-inf"), 5)
    assert admissions.release(1) == {"posts"}
    admissions.update(posts, 1)
    assert places(admissions) == ["127.0.0.3"]
    del answers["post-service"]
    before = len(looked)
    eventually(lambda: len(looked) > before + 1, 5)  # one that was under way, and one that found nothing
    admissions.update(posts, 2)
    assert places(admissions) == ["127.0.0.3"]


@pytest.mark.parametrize("found", [("10.0.0.1",), ("127.0.0.2", "10.0.0.1"), ("169.254.169.254",)])
def test_name_that_leads_outside_is_refused(found: tuple[str, ...]) -> None:
    admissions = Admissions(Policy(), Resolver(scripted({"evil": found})))
    admissions.update({"posts": [at("evil")]}, 0)
    assert places(admissions) == []
    assert admissions.by_service["posts"].rejections[0].field == "address"


def test_name_is_no_way_around_whose_place_it_is() -> None:
    admissions = Admissions(Policy(), Resolver(scripted({"evil": ("127.0.0.1",)})))
    victim = Instance("users", "users-1", "n1", "127.0.0.1", 20001, meta={"edge-path": "/api/users"})
    squatter = at("evil", 2, **{"edge-check-identity": "off"})
    admissions.update({"users": [victim], "posts": [squatter]}, 0)
    assert places(admissions) == []


def test_name_that_hangs_holds_up_no_other() -> None:
    stuck = threading.Event()

    def resolve(host: str) -> tuple[str, ...]:
        if host == "hangs":
            stuck.wait(30)
        return ("127.0.0.1",)

    resolver = Resolver(resolve, every_s=0.01)
    try:
        resolver.follow({"hangs", "good"})
        eventually(lambda: resolver.addresses("good") == ("127.0.0.1",), 5)
        assert resolver.addresses("hangs") == ()
    finally:
        stuck.set()
    resolver.follow(())
    assert resolver.addresses("good") == ()
