"""The service's own token: kept, renewed in the background, asked for again after a failure."""

from __future__ import annotations

import threading
from typing import Any

from services.kit.auth.service_token import TokenSource
from tests.support.eventually import eventually


class Auth:
    """Answers one numbered token a call, or what `failing` says."""

    def __init__(self) -> None:
        self.calls: list[dict[str, str]] = []
        self.failing = False
        self.hold: threading.Event | None = None

    def __call__(self, path: str, body: dict[str, str]) -> tuple[int, Any]:
        self.calls.append(body)
        assert path == "/api/auth/token"
        if self.hold is not None:
            self.hold.wait(5)
        if self.failing:
            return 503, None
        return 200, {"access_token": f"t{len(self.calls)}", "expires_in": 100}


def source(auth: Auth, now: list[float]) -> TokenSource:
    return TokenSource("posts", "s", auth, monotonic=lambda: now[0])


def test_token_is_asked_for_once_and_kept() -> None:
    auth, now = Auth(), [0.0]
    tokens = source(auth, now)
    assert [tokens(), tokens()] == ["t1", "t1"]
    assert auth.calls == [{"grant_type": "client_credentials", "client_id": "posts", "client_secret": "s"}]


def test_nearly_over_token_is_renewed_behind_the_callers_back() -> None:
    auth, now = Auth(), [0.0]
    tokens = source(auth, now)
    tokens()
    auth.hold = threading.Event()
    now[0] = 85.0
    assert tokens() == "t1"
    auth.hold.set()
    eventually(lambda: tokens() == "t2", 5)
    assert len(auth.calls) == 2


def test_old_token_serves_while_auth_is_away_and_no_longer_than_it_lives() -> None:
    auth, now = Auth(), [0.0]
    tokens = source(auth, now)
    tokens()
    auth.failing = True
    now[0] = 90.0
    assert tokens() == "t1"
    eventually(lambda: len(auth.calls) == 2, 5)
    now[0] = 96.0
    assert tokens() is None


def test_failure_is_not_repeated_at_once() -> None:
    auth, now = Auth(), [0.0]
    auth.failing = True
    tokens = source(auth, now)
    assert tokens() is None
    assert tokens() is None
    assert len(auth.calls) == 1
    auth.failing = False
    now[0] = 1.5
    assert tokens() == "t2"


def test_no_secret_means_no_token_and_no_call() -> None:
    auth = Auth()
    assert TokenSource("posts", None, auth)() is None
    assert auth.calls == []


def test_threads_that_wait_share_one_call() -> None:
    auth, now = Auth(), [0.0]
    auth.hold = threading.Event()
    tokens = source(auth, now)
    answers: list[str | None] = []
    threads = [threading.Thread(target=lambda: answers.append(tokens())) for _ in range(8)]
    for thread in threads:
        thread.start()
    auth.hold.set()
    for thread in threads:
        thread.join(10)
    assert answers == ["t1"] * 8
    assert len(auth.calls) == 1
