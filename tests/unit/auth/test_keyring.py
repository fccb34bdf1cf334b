from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jwt
import pytest
import sqlalchemy as sa
from cryptography.fernet import Fernet, MultiFernet
from sqlalchemy.exc import OperationalError

from services.auth.keyring import KekError, KeyRing, Minter, OwnToken, read_kek
from services.auth.store import SigningKey
from services.kit.db.session import Database
from tests.support.clock import ManualClock

KEK = Fernet.generate_key()
OVERLAP_S = 960.0


def ring(db: Database, clock: ManualClock, kek: bytes = KEK, refresh_s: float = 2.0) -> KeyRing:
    return KeyRing(
        db,
        MultiFernet([Fernet(kek)]),
        publish_s=60,
        overlap_s=OVERLAP_S,
        refresh_s=refresh_s,
        clock=clock,
    )


def kids(keys: KeyRing) -> list[str]:
    return [key["kid"] for key in keys.jwks()["keys"]]


def test_a_new_key_is_published_before_it_signs_and_the_old_one_after(
    db: Database, clock: ManualClock
) -> None:
    one, two = ring(db, clock), ring(db, clock)
    old = one.signing_key()[0]
    new = one.rotate().kid
    clock.now += 2
    assert kids(two) == [old, new], "the other instance publishes it as well"
    assert two.signing_key()[0] == one.signing_key()[0] == old
    clock.now += 58
    assert two.signing_key()[0] == one.signing_key()[0] == new
    assert kids(one) == [new, old]
    clock.now += OVERLAP_S
    assert kids(one) == [new]


def test_simultaneous_rotations_make_one_key(db: Database, clock: ManualClock) -> None:
    rings = [ring(db, clock) for _ in range(4)]
    rings[0].signing_key()
    with ThreadPoolExecutor(4) as pool:
        rotated = list(pool.map(lambda keys: keys.rotate(), rings))
    assert len({each.kid for each in rotated}) == 1
    assert sum(each.created for each in rotated) == 1


def test_keys_that_nobody_needs_any_more_are_deleted(db: Database, clock: ManualClock) -> None:
    keys = ring(db, clock)
    first = keys.signing_key()[0]
    keys.rotate()
    clock.now += 60 + OVERLAP_S
    keys.rotate()
    with db.session(read_only=True) as session:
        left = set(session.scalars(sa.select(SigningKey.kid)))
    assert len(left) == 2
    assert first not in left


def test_private_keys_are_unreadable_without_the_kek(db: Database, clock: ManualClock) -> None:
    ring(db, clock).signing_key()
    with db.session(read_only=True) as session:
        row = session.scalars(sa.select(SigningKey)).one()
    assert "PRIVATE KEY" not in row.private_encrypted
    assert set(json.loads(row.public_jwk)) == {"kty", "n", "e", "kid", "use", "alg"}
    with pytest.raises(KekError, match="not the one"):
        ring(db, clock, kek=Fernet.generate_key()).signing_key()


def test_the_kek_can_be_changed_by_putting_the_new_one_first(
    db: Database, clock: ManualClock, tmp_path: Path
) -> None:
    old = ring(db, clock).signing_key()[0]
    file = tmp_path / "kek"
    file.write_bytes(Fernet.generate_key() + b"\n" + KEK + b"\n")
    keys = KeyRing(db, read_kek(file), publish_s=0, overlap_s=10, refresh_s=1, clock=clock)
    assert keys.signing_key()[0] == old
    assert keys.rotate().created


@pytest.mark.parametrize("content", [None, "", "not a key", "c2hvcnQ="])
def test_a_bad_kek_file_is_named(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "kek"
    if content is not None:
        file.write_text(content)
    with pytest.raises(KekError, match="AUTH_KEK_FILE=.*kek"):
        read_kek(file)


def test_the_last_keys_stand_while_the_database_is_away(
    db: Database, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = ring(db, clock)
    kid = keys.signing_key()[0]

    def away(**_: object) -> None:
        raise OperationalError("SELECT", {}, Exception("database is away"))

    monkeypatch.setattr(db, "session", away)
    clock.now += 100
    assert keys.signing_key()[0] == kid
    assert kids(keys) == [kid]


def test_a_token_verifies_with_the_published_key_and_says_what_it_must(
    db: Database, clock: ManualClock
) -> None:
    keys = ring(db, clock)
    access = Minter(keys, "breakwater", "breakwater-api", clock).mint(
        "u1", ("user", "admin"), 900, api_key="k1"
    )
    jwk = keys.jwks()["keys"][0]
    header = jwt.get_unverified_header(access.access_token)
    claims = jwt.decode(
        access.access_token,
        jwt.PyJWK(jwk).key,
        algorithms=["RS256"],
        audience="breakwater-api",
        options={"verify_exp": False, "verify_iat": False},
    )
    assert header["alg"] == "RS256"
    assert header["kid"] == jwk["kid"]
    assert {key: claims[key] for key in ("iss", "aud", "sub", "scope", "api_key")} == {
        "iss": "breakwater",
        "aud": "breakwater-api",
        "sub": "u1",
        "scope": "user admin",
        "api_key": "k1",
    }
    assert claims["exp"] - claims["iat"] == access.expires_in == 900
    assert claims["jti"]


def test_no_claim_can_overrule_a_registered_one(db: Database, clock: ManualClock) -> None:
    access = Minter(ring(db, clock), "i", "a", clock).mint("u1", ("user",), 900, scope="admin", iss="x")
    claims = jwt.decode(access.access_token, options={"verify_signature": False})
    assert (claims["scope"], claims["iss"]) == ("user", "i")


def test_auths_own_token_is_kept_for_half_its_life(db: Database, clock: ManualClock) -> None:
    own = OwnToken(Minter(ring(db, clock), "i", "a", clock), 300)
    first = own()
    clock.now += 149
    assert own() == first
    clock.now += 1
    assert own() != first
    assert jwt.decode(own(), options={"verify_signature": False})["sub"] == "service:auth"
