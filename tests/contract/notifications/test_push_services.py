"""Pushes to real HTTP servers: what arrives, and what each answer makes of it."""

from __future__ import annotations

import contextlib
import time

import jwt
import pytest

from services.notifications.delivery.courier import Later, Parcel, Refused
from services.notifications.delivery.push import Push, Unsubscribed, Vapid, check_keys
from services.notifications.domain import Notification, Person, Subscription
from tests.support.browser import Browser
from tests.support.scripted import Handler, upstream

VAPID = Vapid("A" * 42 + "E", "a@example.com")


def send(endpoint: str, browser: Browser | None = None, *, allow_private: bool = True) -> list[str]:
    """The subscriptions that were given up."""
    gone: list[str] = []
    told = Notification(1, "f" * 32, "u", "comment", "New comment", "é" * 500, "b", "p", None, 10**15)
    person = Person("u", None, "Ada", "L", None)
    browser = browser or Browser()
    check_keys(browser.p256dh, browser.auth)
    subscription = Subscription("s", endpoint, browser.p256dh, browser.auth, 1)
    parcel = Parcel(1, "d", 1, 1, 10**15, told, person, subscription)
    push = Push(
        VAPID, lambda one: gone.append(one.id), timeout_s=1.0, lease_s=2.0, allow_private=allow_private
    )
    with contextlib.suppress(Unsubscribed):
        push.send(parcel, lambda: None)
    return gone


def test_the_browser_can_read_what_arrives_and_the_service_sees_who_sends() -> None:
    browser = Browser()
    with upstream(lambda handler: handler.answer(201)) as service:
        assert send(f"http://127.0.0.1:{service.port}/push/a?b=c", browser) == []
        (seen,) = service.requests
    assert (seen.method, seen.path) == ("POST", "/push/a?b=c")
    assert (seen.headers["content-encoding"], seen.headers["topic"]) == ("aes128gcm", "f" * 32)
    assert seen.headers["host"] == f"127.0.0.1:{service.port}"
    shown = browser.read(seen.body)
    assert (shown["title"], shown["tag"], len(shown["body"])) == ("New comment", "f" * 32, 200)
    assert len(seen.body) < 3000
    token = seen.headers["authorization"].removeprefix("vapid t=").partition(",")[0]
    claims = jwt.decode(token, options={"verify_signature": False})
    assert (claims["aud"], claims["sub"]) == (f"http://127.0.0.1:{service.port}", "mailto:a@example.com")


@pytest.mark.parametrize("status", [404, 410])
def test_a_browser_that_is_gone_is_given_up(status: int) -> None:
    with upstream(lambda handler: handler.answer(status)) as service:
        assert send(f"http://127.0.0.1:{service.port}/x") == ["s"]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_service_in_trouble_is_asked_again(status: int) -> None:
    with upstream(lambda handler: handler.answer(status)) as service, pytest.raises(Later):
        send(f"http://127.0.0.1:{service.port}/x")


def test_no_redirect_is_followed() -> None:
    with upstream() as inside:
        where = f"http://127.0.0.1:{inside.port}/secret"
        with upstream(lambda handler: handler.answer(307, Location=where)) as service, pytest.raises(Refused):
            send(f"http://127.0.0.1:{service.port}/x")
        assert inside.requests == []


def drip(handler: Handler) -> None:
    with contextlib.suppress(OSError):
        for _ in range(60):
            handler.wfile.write(b"X")
            handler.wfile.flush()
            time.sleep(0.3)


def test_a_service_that_never_ends_its_answer_is_left() -> None:
    with upstream(drip) as service, pytest.raises(Later):
        send(f"http://127.0.0.1:{service.port}/x")


def test_this_machine_gets_no_push_unless_tests_allow_it() -> None:
    with upstream() as inside:
        for endpoint in (f"http://127.0.0.1:{inside.port}/", f"https://localhost.localdomain:{inside.port}/"):
            with pytest.raises(Refused):
                send(endpoint, allow_private=False)
        assert inside.connections == 0
