"""Verification of access tokens: the whole table of what must not pass, and the life of the key set."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from services.kit.auth.jwks import PATIENCE_S, KeySet, KeysUnavailable
from services.kit.auth.revocations import Revocations
from services.kit.auth.verifier import BEARER, InvalidToken, TokenVerifier
from tests.support.eventually import eventually, time_scale

KEYS = {kid: rsa.generate_private_key(public_exponent=65537, key_size=2048) for kid in ("a", "b")}


def jwks(*kids: str) -> dict[str, Any]:
    return {
        "keys": [
            {**json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(KEYS[kid].public_key())), "kid": kid}
            for kid in kids
        ]
    }


class Auth:
    """A source of key sets that counts how often it is asked."""

    def __init__(self, *kids: str) -> None:
        self.document: Any = jwks(*kids)
        self.asked = 0
        self.down = False
        self.hold: threading.Event | None = None

    def __call__(self) -> dict[str, Any]:
        self.asked += 1
        if self.hold is not None:
            self.hold.wait(20)
        if self.down:
            raise ConnectionError("down")
        document: dict[str, Any] = self.document
        return document


def verifier(auth: Auth, now: list[float] | None = None) -> TokenVerifier:
    clock = (lambda: now[0]) if now else time.monotonic
    return TokenVerifier(KeySet(auth, monotonic=clock), issuer="breakwater", audience="breakwater-api")


def claims(**changes: Any) -> dict[str, Any]:
    base = {
        "iss": "breakwater",
        "aud": "breakwater-api",
        "sub": "u1",
        "scope": "user admin",
        "exp": int(time.time()) + 60,
    }
    return {name: value for name, value in {**base, **changes}.items() if value is not None}


def token(kid: str | None = "a", key: Any = None, algorithm: str = "RS256", **changes: Any) -> str:
    headers = {"kid": kid} if kid is not None else {}
    return jwt.encode(claims(**changes), key or KEYS["a"], algorithm=algorithm, headers=headers)


def forged(header: dict[str, Any], signature: bytes | None = None) -> str:
    """A token put together by hand, signed by HMAC with `signature` as its key where given."""

    def part(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    signing = f"{part(json.dumps(header).encode())}.{part(json.dumps(claims()).encode())}"
    mac = hmac.new(signature, signing.encode(), hashlib.sha256).digest() if signature else b""
    return f"{signing}.{part(mac)}"


PUBLIC_PEM = (
    KEYS["a"]
    .public_key()
    .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
)
REFUSED = {
    "not a token": "a.b.c",
    "algorithm none": forged({"alg": "none", "kid": "a"}),
    "algorithm None, spelled oddly": forged({"alg": "nOnE", "kid": "a"}),
    "HS256 signed with the public key": forged({"alg": "HS256", "kid": "a"}, PUBLIC_PEM),
    "RS256 by name, signed with HMAC": forged({"alg": "RS256", "kid": "a"}, PUBLIC_PEM),
    "RS512": token(algorithm="RS512"),
    "ES256": token(key=ec.generate_private_key(ec.SECP256R1()), algorithm="ES256"),
    "another key under a known id": token(key=KEYS["b"]),
    "unknown key id": token(kid="zz"),
    "no key id": token(kid=None),
    "expired": token(exp=int(time.time()) - 1),
    "no expiry": token(exp=None),
    "expiry as text": token(exp=str(int(time.time()) + 60)),
    "expiry true": token(exp=True),
    "expiry endless": token(exp=float("inf")),
    "expiry nan": token(exp=float("nan")),
    "expiry a list": token(exp=[int(time.time()) + 60]),
    "not yet valid": token(nbf=int(time.time()) + 60),
    "another issuer": token(iss="someone"),
    "no issuer": token(iss=None),
    "another audience": token(aud="other"),
    "no audience": token(aud=None),
    "audience as a list": token(aud=["breakwater-api"]),
    "no subject": token(sub=None),
    "empty subject": token(sub=""),
    "scope as a list": token(scope=["admin"]),
    "cut signature": token()[:-20],
    "too long": token(pad="x" * 9000),
}


@pytest.mark.parametrize("name", REFUSED)
def test_token_is_refused(name: str) -> None:
    subject = verifier(Auth("a"))
    for _ in range(2):
        with pytest.raises(InvalidToken):
            subject.verify(REFUSED[name])


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER ", "Bearer  "])
def test_scheme_may_be_spelled_and_spaced_as_the_standard_allows(scheme: str) -> None:
    text = token()
    match = BEARER.fullmatch(scheme + text)
    assert match is not None
    assert match[1] == text


def test_good_token_gives_subject_and_scopes() -> None:
    identity = verifier(Auth("a")).verify(token())
    assert identity.subject == "u1"
    assert identity.scopes == {"user", "admin"}


def test_remembered_token_expires_all_the_same() -> None:
    auth = Auth("a")
    now = [time.time()]
    subject = TokenVerifier(KeySet(auth), issuer="breakwater", audience="breakwater-api", now=lambda: now[0])
    text = token(exp=int(now[0]) + 30)
    subject.verify(text)
    now[0] += 31
    with pytest.raises(InvalidToken):
        subject.verify(text)


class Listed:
    """A list of revocations that can be away."""

    def __init__(self) -> None:
        self.before: dict[str, int] = {}
        self.away = False

    def __call__(self) -> dict[str, Any]:
        if self.away:
            raise ConnectionError("down")
        return {"revocations": [{"subject": name, "before": at} for name, at in self.before.items()]}


def test_revoked_token_is_refused_though_remembered_and_a_later_one_is_not() -> None:
    listed, now = Listed(), int(time.time())
    revocations = Revocations(listed)
    subject = TokenVerifier(
        KeySet(Auth("a")), issuer="breakwater", audience="breakwater-api", revocations=revocations
    )
    old, undated, later, others = token(iat=now), token(), token(iat=now + 1), token(sub="u2", iat=now)
    for text in (old, undated, later, others):
        subject.verify(text)
    listed.before = {"u1": now}
    revocations.refresh()
    listed.away = True
    revocations.refresh()
    for text in (old, undated):
        with pytest.raises(InvalidToken, match="revoked"):
            subject.verify(text)
    assert subject.verify(later).subject == "u1"
    assert subject.verify(others).subject == "u2"


def test_revocations_are_followed_through_failures() -> None:
    listed = Listed()
    listed.away = True
    revocations = Revocations(listed, every_s=0.01)
    revocations.start()
    listed.before, listed.away = {"u1": 7}, False
    eventually(lambda: revocations.void("u1", 7), 5)
    listed.before = {}
    eventually(lambda: not revocations.void("u1", 7), 5)


def test_remembered_token_is_forgotten_with_its_key() -> None:
    auth, now = Auth("a", "b"), [0.0]
    subject = verifier(auth, now)
    text = token()
    subject.verify(text)
    auth.document = jwks("b")
    now[0] = 61.0

    def refused() -> bool:
        try:
            subject.verify(text)
        except InvalidToken:
            return True
        return False

    eventually(refused, 5)


def test_unknown_key_id_fetches_the_set_once() -> None:
    auth, now = Auth("a"), [0.0]
    subject = verifier(auth, now)
    subject.verify(token())
    auth.document = jwks("a", "b")
    now[0] = 6.0
    assert subject.verify(token("b", KEYS["b"])).subject == "u1"
    assert auth.asked == 2


def test_made_up_key_ids_do_not_become_requests_to_auth() -> None:
    auth, now = Auth("a"), [0.0]
    subject = verifier(auth, now)
    subject.verify(token())
    now[0] = 6.0
    for number in range(50):
        with pytest.raises(InvalidToken):
            subject.verify(token(kid=f"made-up-{number}"))
    assert auth.asked == 2


def test_last_good_keys_serve_while_auth_is_down() -> None:
    auth, now = Auth("a"), [0.0]
    subject = verifier(auth, now)
    subject.verify(token())
    auth.down = True
    now[0] = 10_000.0
    assert subject.verify(token(jti="another")).subject == "u1"
    eventually(lambda: auth.asked == 2, 5)
    assert subject.verify(token(jti="a third")).subject == "u1"


@pytest.mark.parametrize(
    "document", [{}, {"keys": []}, {"keys": "x"}, {"keys": [{"kid": "a", "kty": "EC"}]}, []]
)
def test_broken_key_set_leaves_the_last_good_one(document: Any) -> None:
    auth, now = Auth("a"), [0.0]
    subject = verifier(auth, now)
    subject.verify(token())
    auth.document = document
    now[0] = 100.0
    with pytest.raises(InvalidToken):
        subject.verify(token(kid="zz"))
    assert auth.asked == 2
    assert subject.verify(token(jti="again")).subject == "u1"


def test_one_broken_key_does_not_spoil_the_others() -> None:
    auth = Auth("a")
    auth.document["keys"].insert(0, {"kid": "bad", "kty": "RSA", "n": "!", "e": "AQAB"})
    assert verifier(auth).verify(token()).subject == "u1"


def test_without_any_key_it_says_so_and_recovers() -> None:
    auth, now = Auth("a"), [0.0]
    auth.down = True
    subject = verifier(auth, now)
    with pytest.raises(KeysUnavailable):
        subject.verify(token())
    auth.down = False
    now[0] = 1.0
    assert subject.verify(token()).subject == "u1"


def test_key_set_that_hangs_holds_up_no_caller_for_long() -> None:
    now = [0.0]
    auth = Auth("a")
    subject = verifier(auth, now)
    subject.verify(token())
    auth.hold, now[0] = threading.Event(), 6.0
    made_up = [[token(kid=f"{thread} {number}") for number in range(5)] for thread in range(8)]
    refused: list[str] = []

    def ask(tokens: list[str]) -> None:
        for each in tokens:
            with pytest.raises(InvalidToken):
                subject.verify(each)
            refused.append(each)

    threads = [threading.Thread(target=ask, args=(each,)) for each in made_up]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    took_s = time.monotonic() - began
    auth.hold.set()
    assert len(refused) == 40
    assert auth.asked == 2
    assert took_s < PATIENCE_S + 1.0 * time_scale(), "all wait for the fetch once, and none for an old one"


def test_caller_without_time_spoils_no_fetch_for_the_others() -> None:
    now = [0.0]
    auth = Auth("a")
    subject = verifier(auth, now)
    subject.verify(token())
    auth.document, auth.hold, now[0] = jwks("a", "b"), threading.Event(), 6.0
    fresh = token(kid="b", key=KEYS["b"])
    began = time.monotonic()
    with pytest.raises(InvalidToken):
        subject.verify(fresh, 0.002)
    assert time.monotonic() - began < PATIENCE_S * time_scale()
    auth.hold.set()
    eventually(lambda: subject._keys.generation == 2, 5)
    assert subject.verify(fresh).subject == "u1"
    assert auth.asked == 2


def test_those_who_come_before_the_first_key_set_share_one_fetch() -> None:
    auth = Auth("a")
    auth.hold = threading.Event()
    subject = verifier(auth)
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.append(subject.verify(token()).subject)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    auth.hold.set()
    for thread in threads:
        thread.join(10)
    assert found == ["u1"] * 8
    assert auth.asked == 1


def test_keys_are_fetched_before_the_first_token_and_again_while_auth_is_not_there_yet() -> None:
    auth = Auth("a")
    auth.down = True
    subject = verifier(auth)
    assert not subject.prefetch(0.1)
    threading.Timer(0.2, lambda: setattr(auth, "down", False)).start()
    assert subject.prefetch(10)
    asked = auth.asked
    auth.down = True
    assert subject.verify(token(), 0.0).subject == "u1"
    assert auth.asked == asked
