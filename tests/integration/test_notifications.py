"""notifications: a real instance that hears real events, over Redis, and sends to a real mail server."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.integration.content import World
from tests.support.browser import Browser
from tests.support.databases import Backend
from tests.support.document import Documented
from tests.support.eventually import eventually
from tests.support.instances import RunningInstance, instance
from tests.support.mail_server import Held, Inbox, inbox
from tests.support.scripted import upstream
from tests.support.servers import RedisServer
from tests.support.telling import Teller, new_id, teller

LEASE_S = 1.5
LIST = "/api/notifications"


@dataclass
class Rig:
    """One instance, what it hears, and where its mails go."""

    one: RunningInstance
    tell: Teller
    mail: Inbox
    around: World

    def ask(self, method: str, user: str, path: str = "", **options: Any) -> requests.Response:
        return self.one.call(method, LIST + path, token=self.around.user(user), **options)

    def shown(self, user: str, **params: Any) -> dict[str, Any]:
        answer = self.ask("GET", user, params={"limit": 100, **params})
        assert answer.status_code == 200, answer.text
        body: dict[str, Any] = answer.json()
        return body

    def kinds(self, user: str) -> list[str]:
        """Of the user's notifications, the newest first."""
        return [each["kind"] for each in self.shown(user)["data"]]

    def settled(self) -> None:
        """Until all that was told has been heard: a last thing is, which comes after it."""
        for author in (self.tell.user(),):
            eventually(lambda author=author: self.kinds(author) == ["welcome"], 20)
            post = self.tell.post(author)
            self.tell.comment(post, author, new_id())
            eventually(lambda author=author: self.kinds(author) == ["comment", "welcome"], 20)


@pytest.fixture(scope="module")
def rig(
    around: World, redis_server: RedisServer, backend: Backend, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp("notifications")
    with inbox() as mail, teller(folder, redis_server.url) as tell:
        env = {
            **around.env,
            **backend.env("notifications"),
            "REDIS_STATE_URL": redis_server.url,
            "SMTP_URL": mail.url,
            "SMTP_TIMEOUT_S": "5",
            "DELIVERY_LEASE_S": str(LEASE_S),
            "VAPID_KEY": "A" * 42 + "E",
            "PUSH_ALLOW_PRIVATE": "true",
            "SMS_FILE": str(folder / "sms.log"),
        }
        with instance("notifications", folder, env) as one:
            yield Rig(one, tell, mail, around)
            # How an instance leaves is tested with the kit.
            one.kill()


@pytest.fixture(autouse=True)
def well(rig: Rig) -> Iterator[None]:
    yield
    for held in rig.mail.holds.values():
        held.release()
    rig.mail.holds.clear()
    rig.mail.data = rig.mail.rcpt = "250 OK"


def mails_to(rig: Rig, user: str) -> int:
    return len(rig.mail.to(f"{user}@example.com"))


def test_registration_brings_one_welcome_in_the_list_and_by_mail(rig: Rig) -> None:
    user = rig.tell.user(first_name="<b>Ada</b> {{ 7*7 }}")
    eventually(lambda: mails_to(rig, user), 20)
    body = rig.shown(user)
    (one,) = body["data"]
    assert (one["kind"], one["title"], one["readAt"]) == ("welcome", "Welcome, <b>Ada</b> {{ 7*7 }}!", None)
    assert body["unread"] == 1
    assert body["page"] == {"limit": 100, "nextCursor": None}
    (mail,) = rig.mail.to(f"{user}@example.com")
    assert mail["Message-ID"] == f"<{one['id']}@breakwater.example>"
    rig.tell.user(user)
    rig.settled()
    assert rig.kinds(user) == ["welcome"]
    assert mails_to(rig, user) == 1


def test_comments_answers_and_what_is_ones_own(rig: Rig) -> None:
    author, reader, third = rig.tell.user(), rig.tell.user(), rig.tell.user()
    post = rig.tell.post(author)
    rig.tell.comment(post, author, author, "my own")
    first = rig.tell.comment(post, author, reader, "first")
    rig.tell.comment(post, author, third, "second", parent_author_id=reader)
    rig.tell.comment(post, author, author, "third", parent_author_id=third)
    rig.tell.comment(post, author, third, "both", parent_author_id=author)
    rig.settled()
    texts = [(each["kind"], each["body"]) for each in rig.shown(author)["data"]][:-1]
    assert texts == [("reply", "both"), ("comment", "second"), ("comment", "first")]
    assert (rig.kinds(reader), rig.kinds(third)) == (["reply", "welcome"], ["reply", "welcome"])
    rig.tell.comment_gone(first, post, reader)
    rig.settled()
    assert [each["body"] for each in rig.shown(author)["data"]][:-1] == ["both", "second"]
    rig.tell.post_gone(post, author)
    rig.settled()
    assert [rig.kinds(user) for user in (author, reader, third)] == [["welcome"]] * 3


def test_what_is_anothers_is_not_there(rig: Rig) -> None:
    user, other = rig.tell.user(), new_id()
    rig.settled()
    (one,) = rig.shown(user)["data"]
    for path in ("/read", "/unread"):
        assert rig.ask("POST", other, f"/{one['id']}{path}").status_code == 404
    assert rig.one.call("GET", LIST).status_code == 401
    assert rig.ask("GET", user, "/deliveries").status_code == 403
    cursor = rig.ask("GET", user, params={"cursor": "rubbish"})
    assert cursor.status_code == 400
    assert rig.ask("POST", user, f"/{one['id']}/read").json()["unread"] == 0


def test_preferences_blocks_and_mutes_are_respected(rig: Rig) -> None:
    author, pest, other = rig.tell.user(), new_id(), new_id()
    loud, quiet = rig.tell.post(author), rig.tell.post(author)
    rig.settled()
    eventually(lambda: mails_to(rig, author) == 1, 20)
    change = {"kinds": {"comment": {"email": False}}}
    assert rig.ask("PATCH", author, "/preferences", json=change).status_code == 200
    assert rig.ask("PUT", author, f"/blocks/{pest}").status_code == 204
    assert rig.ask("PUT", author, f"/mutes/{quiet}").status_code == 204
    for who, where in ((pest, loud), (other, quiet), (other, loud)):
        rig.tell.comment(where, author, who)
    rig.tell.comment(loud, author, other, "an answer", parent_author_id=author)
    rig.settled()
    assert rig.kinds(author) == ["reply", "comment", "welcome"]
    eventually(lambda: mails_to(rig, author) == 2, 20)
    for bad in ({"kinds": {"x": {}}}, {"kinds": {"comment": {"fax": True}}}, {"phone": "12"}, {"x": 1}):
        assert rig.ask("PATCH", author, "/preferences", json=bad).status_code == 422


def test_unread_equals_the_list_while_things_happen(rig: Rig) -> None:
    author = rig.tell.user()
    post = rig.tell.post(author)
    rig.settled()

    def change(number: int) -> None:
        rig.tell.comment(post, author, new_id(), f"{number}")
        unread = rig.shown(author, unread=True)["data"]
        if number % 3 == 0 and unread:
            rig.ask("POST", author, f"/{unread[-1]['id']}/read")
        if number == 15:
            rig.ask("POST", author, "/read")

    def look(_: int) -> tuple[int, int]:
        body = rig.shown(author, unread=True)
        return len(body["data"]), body["unread"]

    with ThreadPoolExecutor(4) as pool:
        changes = pool.submit(lambda: [change(number) for number in range(24)])
        seen = list(pool.map(look, range(60)))
        changes.result()
    assert all(shown == unread for shown, unread in seen), seen
    rig.settled()
    everything = rig.shown(author)["data"]
    assert Counter(each["kind"] for each in everything) == {"comment": 24, "welcome": 1}
    assert sum(each["readAt"] is None for each in everything) == rig.shown(author)["unread"]
    assert [each["body"] for each in everything[:-1]] == [f"{number}" for number in reversed(range(24))]


def test_nothing_is_kept_of_a_deleted_account(rig: Rig) -> None:
    user = rig.tell.user()
    post = rig.tell.post(user)
    rig.settled()
    rig.tell.user_gone(user)
    rig.tell.comment(post, user, new_id())
    rig.settled()
    eventually(lambda: rig.kinds(user) == [], 20)


def test_mail_is_tried_again_until_it_is_taken_and_not_when_in_doubt(rig: Rig) -> None:
    rig.mail.data = "452 full"
    late = rig.tell.user()
    eventually(lambda: rig.mail.attempts >= 1 and delivery(rig, late)["state"] == "waiting", 30)
    rig.mail.data = "250 OK"
    eventually(lambda: delivery(rig, late)["state"] == "sent", 30)
    assert mails_to(rig, late) == 1
    rig.mail.data = "drop"
    unsure = rig.tell.user()
    eventually(lambda: delivery(rig, unsure)["state"] == "unsure", 30)
    rig.mail.data = "554 no"
    refused = rig.tell.user()
    eventually(lambda: delivery(rig, refused)["state"] == "failed", 30)
    rig.mail.data = "250 OK"
    assert mails_to(rig, unsure) == 1
    root = rig.around.admin()
    again = rig.one.call("POST", f"{LIST}/deliveries/{delivery(rig, refused)['id']}/retry", token=root)
    assert again.status_code == 200, again.text
    eventually(lambda: mails_to(rig, refused) == 1, 20)
    assert rig.one.call("POST", f"{LIST}/deliveries/{new_id()}/retry", token=root).status_code == 404


def under_way(rig: Rig) -> list[dict[str, Any]]:
    answer = rig.one.call("GET", f"{LIST}/deliveries", token=rig.around.admin(), params={"limit": 100})
    return [each for each in answer.json()["data"] if each["state"] in {"waiting", "claimed", "handed"}]


def delivery(rig: Rig, user: str) -> dict[str, Any]:
    answer = rig.one.call("GET", f"{LIST}/deliveries", token=rig.around.admin(), params={"limit": 100})
    (found,) = [each for each in answer.json()["data"] if each["userId"] == user]
    return dict(found)


@pytest.mark.parametrize(
    "point", ["DATA", *(pytest.param(one, marks=pytest.mark.long) for one in ("MAIL", "RCPT"))]
)
def test_killed_at_a_point_of_the_conversation_and_one_mail_comes(rig: Rig, point: str) -> None:
    eventually(lambda: under_way(rig) == [], 30)
    held = rig.mail.holds[point] = Held()
    user = rig.tell.user()
    eventually(held.reached.is_set, 20)
    rig.one.kill()
    del rig.mail.holds[point]
    held.release()
    rig.one.start()
    eventually(lambda: mails_to(rig, user) == 1, 30)
    eventually(lambda: delivery(rig, user)["state"] == ("unsure" if point == "DATA" else "sent"), 30)
    time.sleep(2 * LEASE_S)
    assert mails_to(rig, user) == 1


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.long)])
def test_killed_at_any_moment_and_one_welcome_mail_comes_to_each(rig: Rig, kills: int) -> None:
    chance, users = random.Random(3), []
    for _ in range(kills):
        users += [rig.tell.user() for _ in range(4)]
        time.sleep(chance.random() * 1.5)
        rig.one.kill()
        rig.one.start()
    eventually(lambda: all(mails_to(rig, user) for user in users), 60)
    rig.settled()
    time.sleep(2 * LEASE_S)
    assert Counter(mails_to(rig, user) for user in users) == {1: len(users)}
    assert all(rig.kinds(user) == ["welcome"] for user in users)
    states = Counter(delivery(rig, user)["state"] for user in users[-20:])
    print(f"{kills} kills, {len(users)} registrations: one mail each; of the last 20: {dict(states)}")


def test_answers_are_what_the_document_says(rig: Rig) -> None:
    user = rig.tell.user()
    eventually(lambda: rig.kinds(user) == ["welcome"], 20)
    call, token = Documented(rig.one), rig.around.user(user)
    (one,) = call("GET", LIST, token=token, params={"unread": "true"})["data"]
    other = new_id()
    call("POST", LIST + "/{notification_id}/read", one["id"], token=token)
    call("POST", LIST + "/{notification_id}/unread", one["id"], token=token)
    assert call("POST", LIST + "/read", token=token) == {"unread": 0}
    phone = {"phone": "+4930123456", "kinds": {"reply": {"sms": True}}}
    changed = call("PATCH", LIST + "/preferences", token=token, json=phone)["data"]
    assert changed == call("GET", LIST + "/preferences", token=token)["data"]
    assert (changed["phone"], changed["kinds"]["reply"]["sms"]) == ("+4930123456", True)
    assert changed["channels"] == ["app", "email", "push", "sms"]
    for what in ("blocks", "mutes"):
        call("PUT", f"{LIST}/{what}/{{other_id}}", other, token=token)
        assert [each["id"] for each in call("GET", f"{LIST}/{what}", token=token)["data"]] == [other]
        call("DELETE", f"{LIST}/{what}/{{other_id}}", other, token=token)
    eventually(lambda: delivery(rig, user)["state"] == "sent", 20)
    call("GET", LIST + "/deliveries", token=rig.around.admin(), params={"state": "sent"})


def test_text_messages_go_to_a_file_that_says_so(rig: Rig) -> None:
    user = rig.tell.user()
    rig.settled()
    wanted = {"phone": "+4930123456", "kinds": {"comment": {"sms": True, "email": False}}}
    assert rig.ask("PATCH", user, "/preferences", json=wanted).status_code == 200
    rig.tell.comment(rig.tell.post(user), user, new_id(), "line\none")
    file = Path(rig.one.process.env["SMS_FILE"]) if rig.one.process.env else Path()
    eventually(lambda: "New comment on your post: line one" in file.read_text(), 20)
    assert "not sent" in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600


def test_pushes_go_to_browsers_until_they_are_gone(rig: Rig) -> None:
    user, browser = rig.tell.user(), Browser()
    rig.settled()
    status = [500]
    with upstream(lambda handler: handler.answer(status[0])) as service:
        body = {
            "endpoint": f"http://127.0.0.1:{service.port}/push",
            "keys": {"p256dh": browser.p256dh, "auth": browser.auth},
        }
        made = rig.ask("POST", user, "/subscriptions", json=body)
        assert made.status_code == 201, made.text
        rig.tell.comment(rig.tell.post(user), user, new_id(), "pushed")
        eventually(lambda: service.requests, 20)
        status[0] = 201
        seen = len(service.requests)
        eventually(lambda: len(service.requests) > seen, 20)
        assert browser.read(service.requests[-1].body)["body"] == "pushed"
        listed = rig.ask("GET", user, "/subscriptions").json()["data"]
        assert [each["id"] for each in listed] == [made.json()["data"]["id"]], "trouble ends no subscription"
        status[0] = 410
        rig.tell.comment(rig.tell.post(user), user, new_id(), "gone")
        eventually(lambda: rig.ask("GET", user, "/subscriptions").json()["data"] == [], 20)
    other = rig.ask("POST", user, "/subscriptions", json=body).json()["data"]["id"]
    assert rig.ask("DELETE", new_id(), f"/subscriptions/{other}").status_code == 404
    assert rig.ask("DELETE", user, f"/subscriptions/{other}").status_code == 204
    for bad in ({**body, "endpoint": "ftp://x"}, {**body, "keys": {"p256dh": "A" * 87, "auth": "A" * 22}}):
        assert rig.ask("POST", user, "/subscriptions", json=bad).status_code == 422
