"""Names, form and changes of stored answers: what the kit writes and the gateways read."""

from __future__ import annotations

import pytest

from services.kit.stale import stored_form


def test_sealed_answer_opens_under_its_own_name_and_undamaged_only() -> None:
    sealed = stored_form.seal("a", {"status": 200}, b"body")
    assert stored_form.unseal("a", sealed) == ({"status": 200}, b"body")
    assert stored_form.unseal("b", sealed) is None
    for at in range(len(sealed)):
        assert stored_form.unseal("a", sealed[:at]) is None
        assert stored_form.unseal("a", sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :]) is None
    assert stored_form.unseal("a", sealed + b"x") is None


@pytest.mark.parametrize(
    ("data", "change"),
    [
        (b'{"path": "/a/%C3%A9"}', stored_form.Change("/a/\xc3\xa9", noted=False)),
        (
            '{"path": "/a/é", "prefix": true}'.encode(),
            stored_form.Change("/a/\xc3\xa9", prefix=True, noted=False),
        ),
        (b'{"path": "a"}', None),
        (b'{"path": 1}', None),
        (b"[1]", None),
        (b"\xff", None),
        (
            stored_form.Change("/a b/ü", prefix=True).message().encode(),
            stored_form.Change("/a b/\xfc", prefix=True),
        ),
    ],
)
def test_change_is_read_from_any_program(data: bytes, change: stored_form.Change | None) -> None:
    assert stored_form.read_change(data) == change


@pytest.mark.parametrize("path", ["/", "/a", "/a/", "/a/b/c", "//a", "/1/2/3/4/5/6/7/8/9/10"])
@pytest.mark.parametrize("changed", ["/", "/a", "/a/b", "/a/b/c", "//a", "/1/2/3/4/5/6/7/8/9/10", "/b"])
@pytest.mark.parametrize("prefix", [True, False])
def test_what_a_change_covers_is_what_its_bucket_covers(path: str, changed: str, prefix: bool) -> None:
    change = stored_form.Change(changed, prefix)
    assert (stored_form.bucket(changed, prefix=prefix) in stored_form.buckets(path)) == change.covers(path)
