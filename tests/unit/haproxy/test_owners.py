"""Path ownership: which service gets a prefix, and what is remembered."""

from __future__ import annotations

from pathlib import Path

import pytest

from discovery.errors import ContractError
from discovery.model import Route
from haproxy.controller.wanted.ownership import Agreed, Claim, OwnerBook, parse_pins, resolve

USERS = Claim("users", ("/api/users",), 5)
ROGUE = Claim("evil", ("/api/users",), 9)
GATEWAY = Claim("gateway-business", ("/api",), 9)
WIDE = Claim("wide", ("/api",), 9)
AVATARS = Claim("avatars", ("/api/users/avatars",), 9)
HELD = {"/api/users": "users"}


@pytest.mark.parametrize(
    ("claims", "held", "pins", "granted"),
    [
        ([ROGUE, USERS], {}, {}, HELD),
        ([ROGUE, Claim("users", ("/api/users",), 99)], HELD, {}, HELD),
        ([USERS, Claim("evil", ("/api/users/1/a", "/api/evil"), 9)], {}, {}, {**HELD, "/api/evil": "evil"}),
        ([USERS, Claim("x", ("/api/usersX",), 9)], {}, {}, {**HELD, "/api/usersX": "x"}),
        ([Claim("users", ("/api/users", "/api"), 1)], {}, {}, {**HELD, "/api": "users"}),
        # Around others' prefixes, and inside a gateway's.
        ([USERS, WIDE], {}, {}, HELD),
        ([USERS, WIDE], {**HELD, "/api": "wide"}, {}, {**HELD, "/api": "wide"}),
        ([USERS, WIDE], {}, {**HELD, "/api": "wide"}, {**HELD, "/api": "wide"}),
        ([USERS, GATEWAY], {}, {}, {**HELD, "/api": "gateway-business"}),
        ([Claim("gateway-ai", ("/api",), 1), USERS, WIDE], {}, {}, {**HELD, "/api": "gateway-ai"}),
        # Pins outrank the holder and the first, and keep a place for a service that is still to come.
        ([USERS, ROGUE], HELD, {"/api/users": "evil"}, {"/api/users": "evil"}),
        ([USERS], {}, {"/api/users": "coming"}, {}),
        (
            [USERS, AVATARS],
            HELD,
            {"/api/users/avatars": "avatars"},
            {**HELD, "/api/users/avatars": "avatars"},
        ),
        ([USERS, AVATARS], {"/api/users/avatars": "avatars"}, HELD, HELD),
    ],
)
def test_prefix_has_one_owner(
    claims: list[Claim], held: dict[str, str], pins: dict[str, str], granted: dict[str, str]
) -> None:
    found = resolve(claims, held, pins).granted
    assert {path: service for service, paths in found.items() for path in paths} == granted


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/api/users", "held by users"),
        ("/api/users/login", "inside /api/users"),
        ("/api", "around what users"),
        ("/metrics", "never routed"),
        ("/internal/users", "never routed"),
    ],
)
def test_refusal_costs_that_prefix_alone_and_says_why(path: str, reason: str) -> None:
    outcome = resolve([USERS, Claim("evil", (path, "/evil"), 9)], {}, {})
    assert outcome.granted["evil"] == ("/evil",)
    assert [(r.path, reason in r.reason) for r in outcome.refused["evil"]] == [(path, True)]


@pytest.mark.parametrize(
    "document",
    [
        b"{",
        b"[]",
        b'"x"',
        b'{"/api": 1}',
        b'{"api": "users"}',
        b'{"/api": "US ERS"}',
        b'{"/health": "users"}',
        b"[" * 9999,
    ],
)
def test_malformed_pins_are_refused(document: bytes) -> None:
    with pytest.raises(ContractError):
        parse_pins(document)


def settle(
    book: OwnerBook, *claims: Claim, now: float = 0.0, away: frozenset[str] = frozenset()
) -> dict[str, tuple[str, ...]]:
    routes = {claim.service: Route(claim.service, claim.paths) for claim in claims}
    return dict(book.settle({claim.service: claim for claim in claims}, routes, away, now).granted)


def owner_book(tmp_path: Path, *claims: Claim, memory_s: float = 3600) -> OwnerBook:
    """From the file that the one before has left; then it gives out these."""
    book = OwnerBook(tmp_path / "owners.json", memory_s)
    book.load()
    if claims:
        settle(book, *claims)
    return book


def test_holder_that_has_gone_keeps_its_prefix_for_a_time(tmp_path: Path) -> None:
    book = owner_book(tmp_path, USERS, memory_s=100)
    assert "evil" not in settle(book, ROGUE, now=1)
    assert book.memories["users"].gone_since == 1
    assert settle(book, ROGUE, now=100)["users"] == ("/api/users",)
    assert settle(book, ROGUE, now=101.5) == {"evil": ("/api/users",)}


def test_holder_whose_metadata_is_broken_keeps_its_prefix(tmp_path: Path) -> None:
    book = owner_book(tmp_path, USERS, memory_s=0)
    assert "evil" not in settle(book, ROGUE, now=1e9, away=frozenset({"users"}))


def test_holder_that_asks_no_more_lets_go(tmp_path: Path) -> None:
    book = owner_book(tmp_path, USERS)
    assert settle(book, Claim("users", ("/api/people",), 5), ROGUE)["evil"] == ("/api/users",)


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"services": {"users": {"meta": {"edge-path": "/a b"}, "gone_since": null}}, "pins": {}}'],
)
def test_broken_memory_counts_as_empty(tmp_path: Path, text: str) -> None:
    (tmp_path / "owners.json").write_text(text)
    assert owner_book(tmp_path).memories == {}


def test_file_of_former_times_is_proposed_where_nothing_is_agreed_yet(tmp_path: Path) -> None:
    book = owner_book(tmp_path, USERS)
    assert book.proposal() is None, "not before it is known what is agreed"
    book.adopt(Agreed(None, 0))
    assert book.proposal() == Agreed(HELD, 0)
    assert book.proposal() is None, "once"
    book.adopt(Agreed(HELD, 7))
    assert book.proposal() is None


def test_what_another_edge_gave_first_is_right(tmp_path: Path) -> None:
    book = owner_book(tmp_path, ROGUE)
    book.adopt(Agreed(None, 0))
    book.proposal()
    book.adopt(Agreed(HELD, 8))
    assert "evil" not in settle(book, ROGUE, now=5)
    assert book.memories["users"].gone_since == 5
    assert book.proposal() is None


def test_file_of_former_times_adds_what_no_other_edge_has_and_only_once(tmp_path: Path) -> None:
    book = owner_book(tmp_path, USERS, Claim("shop", ("/api/shop",), 6))
    book.adopt(Agreed({"/api/users": "evil"}, 3))
    assert settle(book) == {"evil": ("/api/users",), "shop": ("/api/shop",)}
    assert book.proposal() == Agreed({"/api/users": "evil", "/api/shop": "shop"}, 3)
    book.save()
    again = owner_book(tmp_path)
    again.adopt(Agreed({"/api/users": "evil"}, 9))
    assert settle(again) == {"evil": ("/api/users",)}, "let go elsewhere, while this edge was away"


def test_own_proposal_that_comes_back_undoes_nothing_that_is_newer(tmp_path: Path) -> None:
    book = owner_book(tmp_path, USERS)
    book.adopt(Agreed(None, 0))
    book.proposal()
    settle(book, Claim("users", ("/api/people",), 5))
    assert book.proposal() is None, "one at a time"
    book.adopt(Agreed(HELD, 4))
    assert book.proposal() == Agreed({"/api/people": "users"}, 4)


def test_agreement_does_not_change_a_route_by_the_order_of_its_prefixes(tmp_path: Path) -> None:
    book = owner_book(tmp_path, Claim("users", ("/z", "/a"), 1))
    before = book.memories["users"]
    book.adopt(Agreed({"/z": "users", "/b": "other", "/a": "users"}, 4))
    assert book.memories["users"] == before
