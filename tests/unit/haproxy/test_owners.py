"""Path ownership: who gets a prefix, and what is remembered."""

from __future__ import annotations

from pathlib import Path

import pytest

from discovery.errors import ContractError
from discovery.model import Route
from haproxy.controller.wanted.ownership import Claim, OwnerBook, parse_pins, resolve


def granted(
    claims: list[Claim], held: dict[str, str] | None = None, pins: dict[str, str] | None = None
) -> dict[str, tuple[str, ...]]:
    return dict(resolve(claims, held or {}, pins or {}).granted)


OLD = Claim("users", ("/api/users",), 5)
ROGUE = Claim("evil", ("/api/users",), 9)


def test_lowest_create_index_wins_without_memory() -> None:
    assert granted([ROGUE, OLD]) == {"users": ("/api/users",)}


def test_first_holder_keeps_it_against_an_older_registration() -> None:
    late = Claim("users", ("/api/users",), 99)
    assert granted([ROGUE, late], held={"/api/users": "users"}) == {"users": ("/api/users",)}


def test_refusal_names_the_holder() -> None:
    refusal = resolve([OLD, ROGUE], {}, {}).refused["evil"][0]
    assert refusal.path == "/api/users"
    assert "users" in refusal.reason


@pytest.mark.parametrize("inside", ["/api/users/login", "/api/users/1/a"])
def test_prefix_inside_anothers_is_refused(inside: str) -> None:
    assert granted([OLD, Claim("evil", (inside,), 9)]) == {"users": ("/api/users",)}


def test_refused_prefix_costs_only_itself() -> None:
    both = Claim("evil", ("/api/users", "/api/evil"), 9)
    assert granted([OLD, both])["evil"] == ("/api/evil",)


def test_prefix_with_the_same_letters_is_another_prefix() -> None:
    assert "x" in granted([OLD, Claim("x", ("/api/usersX",), 9)])


def test_own_prefixes_may_nest() -> None:
    assert granted([Claim("users", ("/api/users", "/api/users/deep"), 1)])["users"] == (
        "/api/users",
        "/api/users/deep",
    )


def test_claim_inside_a_gateways_prefix_is_open() -> None:
    claims = [Claim("gateway-business", ("/api",), 1), OLD]
    assert granted(claims)["users"] == ("/api/users",)


def test_gateways_prefix_itself_is_not() -> None:
    assert "evil" not in granted([Claim("gateway-business", ("/api",), 1), Claim("evil", ("/api",), 2)])


def test_later_claim_around_others_is_refused() -> None:
    """It would have `/api` for itself, and keep every new service out of it."""
    outcome = resolve([OLD, Claim("wide", ("/api", "/wide"), 9)], {}, {})
    assert outcome.granted == {"users": ("/api/users",), "wide": ("/wide",)}
    assert "users" in outcome.refused["wide"][0].reason


@pytest.mark.parametrize("path", ["/metrics", "/internal", "/internal/users"])
def test_inner_paths_are_refused_and_said_so(path: str) -> None:
    outcome = resolve([Claim("evil", (path, "/api/evil"), 9)], {path: "evil"}, {})
    assert outcome.granted == {"evil": ("/api/evil",)}
    assert "never routed" in outcome.refused["evil"][0].reason


def test_claim_around_others_is_open_to_gateways_pins_and_who_has_it() -> None:
    assert granted([OLD, Claim("gateway-business", ("/api",), 9)])["gateway-business"] == ("/api",)
    wide = Claim("wide", ("/api",), 9)
    assert granted([OLD, wide], pins={"/api": "wide", "/api/users": "users"})["wide"] == ("/api",)
    assert granted([OLD, wide], held={"/api": "wide", "/api/users": "users"})["wide"] == ("/api",)
    assert granted([Claim("users", ("/api/users", "/api"), 1)])["users"] == ("/api/users", "/api")


def test_pin_outranks_the_holder_and_the_first() -> None:
    pins = {"/api/users": "evil"}
    assert granted([OLD, ROGUE], held={"/api/users": "users"}, pins=pins) == {"evil": ("/api/users",)}


def test_pin_to_an_absent_service_keeps_everybody_else_out() -> None:
    assert granted([OLD], pins={"/api/users": "coming"}) == {}


def test_pin_takes_what_somebody_holds_inside_it() -> None:
    claims = [Claim("auth", ("/api/auth",), 9), Claim("evil", ("/api/auth/login",), 1)]
    held = {"/api/auth/login": "evil"}
    assert granted(claims, held, {"/api/auth": "auth"}) == {"auth": ("/api/auth",)}


def test_pin_inside_anothers_prefix_is_granted() -> None:
    claims = [OLD, Claim("avatars", ("/api/users/avatars",), 9)]
    assert granted(claims, pins={"/api/users/avatars": "avatars"})["avatars"] == ("/api/users/avatars",)


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


def test_pins_are_read() -> None:
    assert parse_pins(b'{"/api/users": "users"}') == {"/api/users": "users"}
    assert parse_pins(None) == {}


def settle(
    book: OwnerBook, claims: list[Claim], now: float = 0.0, away: frozenset[str] = frozenset()
) -> dict[str, tuple[str, ...]]:
    routes = {claim.service: Route(claim.service, claim.paths) for claim in claims}
    return dict(book.settle({claim.service: claim for claim in claims}, routes, away, now).granted)


def test_holder_survives_a_restart_of_the_controller(tmp_path: Path) -> None:
    book = OwnerBook(tmp_path / "owners.json", 3600)
    settle(book, [Claim("users", ("/api/users",), 50)])
    book.save()
    again = OwnerBook(tmp_path / "owners.json", 3600)
    again.load()
    assert settle(again, [Claim("evil", ("/api/users",), 1), Claim("users", ("/api/users",), 50)]) == {
        "users": ("/api/users",)
    }


def test_holder_that_has_gone_keeps_its_prefix_and_route_for_a_time(tmp_path: Path) -> None:
    book = OwnerBook(tmp_path / "owners.json", 100)
    settle(book, [OLD], now=0)
    assert "evil" not in settle(book, [ROGUE], now=1)
    assert book.memories["users"].gone_since == 1
    assert settle(book, [ROGUE], now=100)["users"] == ("/api/users",)
    assert settle(book, [ROGUE], now=101.5) == {"evil": ("/api/users",)}


def test_holder_whose_metadata_is_broken_keeps_its_prefix(tmp_path: Path) -> None:
    book = OwnerBook(tmp_path / "owners.json", 0)
    settle(book, [OLD])
    assert "evil" not in settle(book, [ROGUE], now=1e9, away=frozenset({"users"}))


def test_holder_that_asks_no_more_lets_go(tmp_path: Path) -> None:
    book = OwnerBook(tmp_path / "owners.json", 3600)
    settle(book, [OLD])
    assert settle(book, [Claim("users", ("/api/people",), 5), ROGUE])["evil"] == ("/api/users",)


def test_broken_memory_counts_as_empty(tmp_path: Path) -> None:
    path = tmp_path / "owners.json"
    for text in (
        "{",
        "[]",
        '{"services": {"users": {"meta": {"edge-path": "/a b"}, "gone_since": null}}, "pins": {}}',
    ):
        path.write_text(text)
        book = OwnerBook(path, 3600)
        book.load()
        assert book.memories == {}


# -- agreeing with other edges


def agreeing(tmp_path: Path, *claims: Claim) -> OwnerBook:
    book = OwnerBook(tmp_path / "owners.json", 3600)
    settle(book, list(claims))
    return book


def test_file_of_former_times_is_proposed_where_nothing_is_agreed_yet(tmp_path: Path) -> None:
    book = agreeing(tmp_path, OLD)
    assert book.proposal() is None, "not before it is known what is agreed"
    book.adopt(None, 0)
    assert book.proposal() == ({"/api/users": "users"}, 0)
    assert book.proposal() is None, "once"
    book.adopt({"/api/users": "users"}, 7)
    assert book.proposal() is None


def test_what_another_edge_gave_first_is_right(tmp_path: Path) -> None:
    book = agreeing(tmp_path, ROGUE)
    book.adopt(None, 0)
    book.proposal()
    assert book.adopt({"/api/users": "users"}, 8)
    assert "evil" not in settle(book, [ROGUE], now=5)
    assert book.memories["users"].gone_since == 5
    assert book.proposal() is None


def test_file_of_former_times_adds_what_nobody_else_has_and_only_once(tmp_path: Path) -> None:
    book = agreeing(tmp_path, OLD, Claim("shop", ("/api/shop",), 6))
    book.adopt({"/api/users": "evil"}, 3)
    assert settle(book, []) == {"evil": ("/api/users",), "shop": ("/api/shop",)}
    assert book.proposal() == ({"/api/users": "evil", "/api/shop": "shop"}, 3)
    book.save()
    again = OwnerBook(tmp_path / "owners.json", 3600)
    again.load()
    again.adopt({"/api/users": "evil"}, 9)
    assert settle(again, []) == {"evil": ("/api/users",)}, "let go elsewhere, while this edge was away"


def test_own_proposal_that_comes_back_undoes_nothing_that_is_newer(tmp_path: Path) -> None:
    book = agreeing(tmp_path, OLD)
    book.adopt(None, 0)
    book.proposal()
    settle(book, [Claim("users", ("/api/people",), 5)])
    assert book.proposal() is None, "one at a time"
    assert not book.adopt({"/api/users": "users"}, 4)
    assert book.proposal() == ({"/api/people": "users"}, 4)


def test_agreement_keeps_the_order_of_a_routes_prefixes(tmp_path: Path) -> None:
    book = agreeing(tmp_path, Claim("users", ("/z", "/a"), 1))
    book.adopt({"/a": "users", "/z": "users", "/b": "other"}, 4)
    assert book.memories["users"].route.paths == ("/z", "/a")
