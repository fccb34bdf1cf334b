"""Who is named in a text is found by asking users, and told of it: real auth, users and notifications."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.identity import Identity, Person, problem
from tests.support.eventually import eventually
from tests.support.instances import RunningInstance
from tests.support.telling import Teller, new_id, teller

pytestmark = pytest.mark.shares("identity")


@pytest.fixture(scope="module")
def tell(world: Identity, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Teller]:
    with teller(tmp_path_factory.mktemp("telling"), world.state.url) as made:
        yield made


@pytest.fixture(scope="module")
def one(world: Identity) -> Iterator[RunningInstance]:
    with world.further("notifications", SERVICE_CLIENT_SECRET="secret-of-notifications") as running:
        yield running


def mentions(one: RunningInstance, person: Person) -> list[tuple[str, str]]:
    answer = one.call("GET", "/api/notifications", token=person.access, params={"limit": 100})
    assert answer.status_code == 200, answer.text
    return [(each["kind"], each["body"]) for each in answer.json()["data"] if each["kind"] != "welcome"]


def name_of(person: Person) -> str:
    return person.email.partition("@")[0]


def test_people_are_told_once_of_a_text_that_names_them(
    world: Identity, one: RunningInstance, tell: Teller
) -> None:
    author, named, other = world.person(), world.person(), world.person()
    everybody = [name_of(named), name_of(named).upper(), name_of(author), "nobody-of-that-name"]
    post = tell.post(author.id, mentions=everybody, title="A title")
    eventually(lambda: mentions(one, named) == [("mention", "A title")], 20)
    tell.comment(post, named.id, other.id, "and here", mentions=[name_of(named), name_of(author)])
    eventually(lambda: mentions(one, author) == [("mention", "and here")], 20)
    assert mentions(one, named) == [("comment", "and here"), ("mention", "A title")]
    assert mentions(one, other) == []


@pytest.mark.long
def test_names_are_looked_up_once_users_is_back(world: Identity, one: RunningInstance, tell: Teller) -> None:
    named, author = world.person(), new_id()
    with world.away(world.users):
        post = tell.post(author)
        kept = tell.comment(post, author, new_id(), "kept", mentions=[name_of(named)])
        gone = tell.comment(post, author, new_id(), "gone", mentions=[name_of(named)])
        tell.comment_gone(gone, post, author)
    assert kept != gone
    eventually(lambda: mentions(one, named) == [("mention", "kept")], 40)


def test_only_notifications_may_ask_who_is_behind_a_name(world: Identity) -> None:
    person, where = world.person(), "/internal/users/by-username"
    body = {"usernames": [name_of(person), "nobody-of-that-name"]}
    users = world.users[0]
    answer = users.call("POST", where, json=body, token=world.service_token("notifications"))
    assert answer.json() == {"data": {name_of(person): person.id}}
    problem(users.call("POST", where, json=body), 401)
    for token in (person.access, world.service_token("posts")):
        problem(users.call("POST", where, json=body, token=token), 403)
    for bad in ({"usernames": []}, {"usernames": ["x"] * 51}, {"usernames": ["a\x00b"]}, {}):
        token = world.service_token("notifications")
        problem(users.call("POST", where, json=bad, token=token), 422)
