"""Key sets of the issuer: only what RS256 may be verified with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

from discovery.errors import ContractError
from haproxy.controller.config.files import write_atomically
from haproxy.controller.wanted.jwks import parse_jwks, stored_keys


def jwk(bits: int = 2048, **changes: Any) -> dict[str, Any]:
    public = rsa.generate_private_key(65537, bits).public_key()
    return {**RSAAlgorithm.to_jwk(public, as_dict=True), "kid": "k1", "alg": "RS256", "use": "sig", **changes}


GOOD = jwk()


def test_good_set_becomes_pem_files_that_are_read_back(tmp_path: Path) -> None:
    keys = parse_jwks(json.dumps({"keys": [GOOD, {**GOOD, "kid": "k2"}]}).encode())
    for kid, pem in keys.items():
        write_atomically(tmp_path / f"{kid}.pem", pem)
    (tmp_path / "broken.pem").write_text("x")
    assert [key.kid for key in stored_keys(tmp_path)] == ["k1", "k2"]


@pytest.mark.parametrize(
    "keys",
    [
        [],
        [GOOD] * 2,
        [{**GOOD, "kid": f"k{n}"} for n in range(9)],
        [{**GOOD, "kid": "../k"}],
        [{**GOOD, "kid": "k\n"}],
        [{**GOOD, "kid": None}],
        [{**GOOD, "kty": "oct"}],
        [{**GOOD, "alg": "HS256"}],
        [{**GOOD, "use": "enc"}],
        [{**GOOD, "d": "AQAB"}],
        [{**GOOD, "n": "AQAB"}],
        [{**GOOD, "n": "!"}],
        [{**GOOD, "n": "A" * 345}],
        [{**GOOD, "e": "AA"}],
        [jwk(bits=1024)],
        ["key"],
    ],
)
def test_odd_set_is_refused_whole(keys: list[Any]) -> None:
    with pytest.raises(ContractError):
        parse_jwks(json.dumps({"keys": keys}).encode())


@pytest.mark.parametrize("document", [b"", b"[]", b"{}", b'{"keys": 1}', b"[" * 9999])
def test_other_documents_are_refused(document: bytes) -> None:
    with pytest.raises(ContractError):
        parse_jwks(document)
