"""auth as its callers see it: two instances on one database, beside real users, Consul and Redis."""

from __future__ import annotations

import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import jwt
import pytest
import requests
from redis import Redis

from tests.integration.identity import PASSWORD, Identity, Person, problem
from tests.support.document import Documented
from tests.support.eventually import eventually

pytestmark = pytest.mark.shares("identity")


def claims(token: str) -> dict[str, object]:
    return jwt.decode(token, options={"verify_signature": False})


def test_register_login_and_read_oneself(world: Identity) -> None:
    answer = world.register("Grace.Hopper@Example.com", firstName="Grace", lastName="Hopper")
    assert answer.status_code == 201, answer.text
    user = answer.json()["user"]
    assert user["email"] == "Grace.Hopper@Example.com"
    login = world.login("grace.hopper@example.com", on=1)
    assert login.status_code == 200
    assert set(login.json()) >= {"access_token", "refresh_token", "token_type", "expires_in"}
    assert login.json()["token_type"] == "Bearer"
    assert login.json()["expires_in"] == 900
    assert login.headers["Cache-Control"] == "no-store"
    body = claims(login.json()["access_token"])
    assert (body["sub"], body["scope"], body["iss"], body["aud"]) == (
        user["id"], "user", "breakwater", "breakwater-api",
    )  # fmt: skip
    me = world.users[1].call("GET", "/api/users/me", token=login.json()["access_token"])
    assert me.status_code == 200, me.text
    assert me.json()["data"]["firstName"] == "Grace"
    assert me.json()["data"]["username"] == "grace-hopper"


@pytest.mark.parametrize(
    "wrong",
    [
        {"email": "no address"},
        {"password": "short"},
        {"password": "x" * 1025},
        {"firstName": ""},
        {"lastName": "a\x00b"},
        {"firstName": 7},
        {"scopes": "admin"},
        {"active": True},
    ],
)
def test_a_bad_registration_is_named_and_its_password_not_repeated(
    world: Identity, wrong: dict[str, object]
) -> None:
    body = problem(world.register(**wrong), 422)
    assert body["errors"][0]["loc"] == list(wrong)
    assert PASSWORD not in str(body)


@pytest.mark.parametrize(
    "raw", [b"", b"{", b'{"email": "\\ud800@example.com"}', b"[]", b"null", b'{"email": NaN}']
)
def test_what_is_no_registration_is_a_clean_refusal(world: Identity, raw: bytes) -> None:
    url = f"{world.auth[0].url}/api/auth/register"
    answer = requests.post(url, data=raw, headers={"Content-Type": "application/json"}, timeout=10)
    assert answer.status_code in (400, 422), answer.text


def test_the_same_address_twice_is_a_conflict_whatever_its_case(world: Identity) -> None:
    person = world.person()
    problem(world.register(person.email.upper(), instance=world.auth[1]), 409)


def test_of_simultaneous_registrations_of_one_address_one_succeeds(world: Identity) -> None:
    for _ in range(5):
        email = f"{uuid.uuid4().hex}@example.com"
        assert world.register_at_once(email, 4) == [201, 409, 409, 409]
        assert world.login(email).status_code == 200


def test_a_wrong_password_and_an_unknown_address_get_the_same_answer(world: Identity) -> None:
    person = world.person()
    wrong = problem(world.login(person.email, "wrong password", source="198.51.100.20"), 401)
    unknown = problem(world.login("nobody@example.com", "wrong password", source="198.51.100.21"), 401)
    for body in (wrong, unknown):
        del body["request_id"]
    assert wrong == unknown


def test_refresh_rotates_across_instances_and_a_reuse_ends_the_login(world: Identity) -> None:
    person = world.person()
    other_login = world.login(person.email).json()["refresh_token"]

    def refresh(token: str, on: int) -> requests.Response:
        return world.auth[on].call("POST", "/api/auth/refresh", json={"refresh_token": token})

    first = refresh(person.refresh, 0)
    assert first.status_code == 200
    second = refresh(first.json()["refresh_token"], 1)
    assert second.status_code == 200
    assert claims(second.json()["access_token"])["sub"] == person.id
    problem(refresh(person.refresh, 1), 401)
    problem(refresh(second.json()["refresh_token"], 0), 401)
    assert refresh(other_login, 0).status_code == 200, "another login of the same user goes on"


def test_logout_ends_the_login_and_says_nothing_about_unknown_tokens(world: Identity) -> None:
    person = world.person()
    body = {"refresh_token": person.refresh}
    assert world.auth[0].call("POST", "/api/auth/logout", json=body).status_code == 204
    problem(world.auth[1].call("POST", "/api/auth/refresh", json=body), 401)
    assert world.auth[0].call("POST", "/api/auth/logout", json={"refresh_token": "x"}).status_code == 204


def test_logout_everywhere_ends_logins_sessions_and_tokens_and_lets_the_next_login_in(
    world: Identity,
) -> None:
    person, other = world.person(), world.person()
    auth, body = world.auth, {"email": person.email, "password": PASSWORD}
    cookie = auth[0].call("POST", "/api/auth/session", json=body).headers["Set-Cookie"].split(";")[0]
    made = auth[0].call("POST", "/api/auth/api-keys", json={"name": "ci"}, token=person.access)
    grant = {"grant_type": "api_key", "api_key": made.json()["data"]["key"]}
    key_token = auth[0].call("POST", "/api/auth/token", json=grant).json()["access_token"]
    problem(auth[0].call("POST", "/api/auth/logout-everywhere", token=key_token), 403)
    done = auth[0].call("POST", "/api/auth/logout-everywhere", token=person.access)
    assert done.status_code == 204, done.text
    again = world.again(Person(person.id, person.email))
    problem(auth[1].call("POST", "/api/auth/refresh", json={"refresh_token": person.refresh}), 401)
    problem(auth[1].call("POST", "/api/auth/session/token", headers={"Cookie": cookie}), 401)
    new_cookie = auth[1].call("POST", "/api/auth/session", json=body).headers["Set-Cookie"].split(";")[0]
    sessions = auth[0].call("POST", "/api/auth/session/token", headers={"Cookie": new_cookie})
    for each in (*auth, *world.users):
        read = "/api/users/me" if each.service == "users" else "/api/auth/api-keys"
        for old in (person.access, key_token):
            eventually(
                lambda each=each, read=read, old=old: each.call("GET", read, token=old).status_code == 401,
                within_s=5,
            )
        renewed = auth[1].call("POST", "/api/auth/token", json=grant).json()["access_token"]
        for good in (again.access, other.access, sessions.json()["access_token"], renewed):
            assert each.call("GET", read, token=good).status_code == 200
    refreshed = auth[0].call("POST", "/api/auth/refresh", json={"refresh_token": again.refresh})
    assert refreshed.status_code == 200


def test_a_guesser_is_locked_out_on_every_instance_and_the_owner_is_not(world: Identity) -> None:
    person = world.person()
    statuses = [
        world.login(person.email, "wrong password", source="203.0.113.66", on=n % 2).status_code
        for n in range(8)
    ]
    assert statuses[:5] == [401] * 5
    assert 429 in statuses[5:]
    locked = world.login(person.email, "wrong password", source="203.0.113.66")
    if locked.status_code == 401:  # the first wait of a second had just run out
        locked = world.login(person.email, "wrong password", source="203.0.113.66", on=1)
    problem(locked, 429)
    assert 1 <= int(locked.headers["Retry-After"]) <= 8
    assert world.login(person.email).status_code == 200, "from where the account was opened"
    assert world.login(person.email, source="192.0.2.9").status_code == 200, "from anywhere else"


def test_a_forged_source_does_not_get_around_the_lock_which_passes_by_itself(world: Identity) -> None:
    person = world.person()
    for number in range(5):
        world.login(person.email, "wrong password", source=f"10.9.8.{number}, 203.0.113.69")
    forged = "10.9.8.77, 203.0.113.69"
    assert world.login(person.email, source=forged).status_code == 429
    eventually(lambda: world.login(person.email, source=forged).status_code == 200, 5, every_s=0.2)


def test_parallel_guesses_gain_nothing(world: Identity) -> None:
    person = world.person()

    def guess(number: int) -> int:
        return requests.post(
            f"{world.auth[number % 2].url}/api/auth/login",
            json={"email": person.email, "password": "wrong password"},
            headers={"X-Forwarded-For": "203.0.113.68"},
            timeout=15,
        ).status_code

    with ThreadPoolExecutor(4) as pool:
        statuses = list(pool.map(guess, range(20)))
    assert 1 <= statuses.count(401) <= 7, "five are free, and a wait of a second may pass meanwhile"
    assert set(statuses) <= {401, 429, 503}


def test_more_logins_than_slots_are_a_fast_503_and_the_rest_of_auth_answers(
    world: Identity,
) -> None:
    costly = {
        "AUTH_ARGON2_MEMORY_KIB": "65536",
        "AUTH_ARGON2_TIME": "8",
        "AUTH_ARGON2_SLOTS": "1",
        "AUTH_ARGON2_WAIT_S": "0.1",
    }
    with world.further("auth", **costly) as slow:
        url = f"{slow.url}/api/auth/login"

        def login(number: int) -> tuple[int, float, str | None]:
            body = {"email": f"nobody{number}@example.com", "password": "wrong password"}
            started = time.monotonic()
            answer = requests.post(url, json=body, timeout=30)
            return answer.status_code, time.monotonic() - started, answer.headers.get("Retry-After")

        one_s = login(99)[1]
        with ThreadPoolExecutor(8) as pool:
            pending = [pool.submit(login, n) for n in range(8)]
            time.sleep(0.05)
            started = time.monotonic()
            assert slow.call("GET", "/api/auth/.well-known/jwks.json").status_code == 200
            jwks_s = time.monotonic() - started
            outcomes = [each.result() for each in pending]
    refused = [each for each in outcomes if each[0] == 503]
    assert len(refused) >= 5, outcomes
    assert all(retry_after == "1" for _, _, retry_after in refused)
    assert max(duration for _, duration, _ in refused) < one_s + 0.5, (one_s, outcomes)
    assert jwks_s < one_s + 0.5


def test_browser_session_lives_in_a_cookie_that_is_exchanged_for_a_token(world: Identity) -> None:
    person = world.person()
    body = {"email": person.email, "password": PASSWORD}
    opened = world.auth[0].call(
        "POST", "/api/auth/session", json=body, headers={"X-Forwarded-Proto": "https"}
    )
    assert opened.status_code == 200, opened.text
    cookie = opened.headers["Set-Cookie"]
    for part in ("HttpOnly", "SameSite=Strict", "Secure", "Max-Age=86400", "Path=/api/auth/session"):
        assert part in cookie, cookie
    session = {"Cookie": cookie.split(";")[0]}
    exchanged = world.auth[1].call("POST", "/api/auth/session/token", headers=session)
    assert exchanged.status_code == 200, exchanged.text
    assert claims(exchanged.json()["access_token"])["sub"] == person.id
    assert exchanged.json()["expires_in"] <= 300
    assert not any(cookie.split("=")[1].split(";")[0] in key for key in redis_keys(world)), "kept hashed"
    assert world.auth[1].call("DELETE", "/api/auth/session", headers=session).status_code == 204
    problem(world.auth[0].call("POST", "/api/auth/session/token", headers=session), 401)


def redis_keys(world: Identity) -> list[str]:
    with Redis.from_url(world.state.url) as client:
        return [key.decode() for key in client.keys("*")]


def test_a_login_gives_a_new_session_id_and_ends_the_old_one(world: Identity) -> None:
    person = world.person()
    body = {"email": person.email, "password": PASSWORD}
    planted = world.auth[0].call("POST", "/api/auth/session", json=body).headers["Set-Cookie"].split(";")[0]
    again = world.auth[0].call("POST", "/api/auth/session", json=body, headers={"Cookie": planted})
    assert again.headers["Set-Cookie"].split(";")[0] != planted
    assert "Secure" not in again.headers["Set-Cookie"], "over plain HTTP the browser would drop it"
    problem(world.auth[0].call("POST", "/api/auth/session/token", headers={"Cookie": planted}), 401)


def test_without_redis_sessions_are_503_and_the_rest_goes_on(world: Identity) -> None:
    person = world.person()
    body = {"email": person.email, "password": PASSWORD}
    cookie = world.auth[0].call("POST", "/api/auth/session", json=body).headers["Set-Cookie"].split(";")[0]
    world.state.kill()
    try:
        for method, path in (("POST", "/api/auth/session"), ("POST", "/api/auth/session/token")):
            answer = world.auth[0].call(method, path, json=body, headers={"Cookie": cookie})
            problem(answer, 503)
            assert answer.headers["Retry-After"]
        assert world.login(person.email).status_code == 200
        assert world.register().status_code == 201
    finally:
        world.state.start()
    eventually(
        lambda: world.auth[0].call("POST", "/api/auth/session", json=body).status_code == 200, within_s=5
    )


def test_an_api_key_is_shown_once_listed_by_prefix_exchanged_and_revoked(world: Identity) -> None:
    person, stranger = world.person(), world.person()
    auth = world.auth[0]
    made = auth.call("POST", "/api/auth/api-keys", json={"name": "ci"}, token=person.access)
    assert made.status_code == 201, made.text
    key = made.json()["data"]
    assert key["key"].startswith("sk-")
    listed = world.auth[1].call("GET", "/api/auth/api-keys", token=person.access)
    assert [each["prefix"] for each in listed.json()["data"]] == [key["key"][:11]]
    assert key["key"] not in listed.text
    grant = {"grant_type": "api_key", "api_key": key["key"]}
    exchanged = world.auth[1].call("POST", "/api/auth/token", json=grant)
    assert exchanged.status_code == 200
    assert claims(exchanged.json()["access_token"])["sub"] == person.id
    path = f"/api/auth/api-keys/{key['id']}"
    problem(auth.call("DELETE", path, token=stranger.access), 404)
    assert auth.call("GET", "/api/auth/api-keys", token=stranger.access).json() == {"data": []}
    assert auth.call("DELETE", path, token=person.access).status_code == 204
    problem(world.auth[1].call("POST", "/api/auth/token", json=grant), 401)


def test_a_key_makes_no_further_keys_and_grants_no_more_than_its_owner_has(world: Identity) -> None:
    person, auth, path = world.person(), world.auth[0], "/api/auth/api-keys"
    made = auth.call("POST", path, json={"name": "ci", "expiresInDays": 1}, token=person.access)
    grant = {"grant_type": "api_key", "api_key": made.json()["data"]["key"]}
    token = auth.call("POST", "/api/auth/token", json=grant).json()["access_token"]
    problem(auth.call("POST", path, json={"name": "for ever"}, token=token), 403)
    for scopes, status in ((["user", "admin"], 403), (["service"], 422)):
        body = {"name": "root", "scopes": scopes}
        problem(auth.call("POST", path, json=body, token=person.access), status)
    problem(auth.call("GET", path), 401)


def test_a_service_gets_its_token_for_its_own_secret_and_for_nothing_else(world: Identity) -> None:
    body = claims(world.service_token("posts"))
    assert (body["sub"], body["scope"]) == ("service:posts", "service")
    for client_id, secret in (("posts", "secret-of-users"), ("nobody", "secret-of-posts"), ("posts", "x")):
        grant = {"grant_type": "client_credentials", "client_id": client_id, "client_secret": secret}
        problem(world.auth[0].call("POST", "/api/auth/token", json=grant), 401)
    for none in (
        {},
        {"grant_type": "password", "username": "a", "password": "b"},
        {"grant_type": "api_key"},
        {"grant_type": "client_credentials", "client_id": "posts"},
    ):
        problem(world.auth[0].call("POST", "/api/auth/token", json=none), 422)


def test_grant_admin_makes_an_administrator_of_an_account_and_of_nothing_else(world: Identity) -> None:
    assert claims(world.admin().access)["scope"] == "user admin"
    done = world.command("grant-admin", "nobody@example.com")
    assert done.returncode == 1
    assert "no account" in done.stderr


def test_answers_are_as_the_documents_say(world: Identity) -> None:
    auth, users, admin = Documented(world.auth[0]), Documented(world.users[0]), world.admin()
    login = {"email": f"{uuid.uuid4().hex}@example.com", "password": PASSWORD}
    user = auth("POST", "/api/auth/register", json={**login, "firstName": "A", "lastName": "B"})["user"]["id"]
    pair = auth("POST", "/api/auth/login", json=login)
    pair = auth("POST", "/api/auth/refresh", json={"refresh_token": pair["refresh_token"]})
    token = pair["access_token"]
    key = auth("POST", "/api/auth/api-keys", json={"name": "ci", "expiresInDays": 1}, token=token)["data"]
    grant = {"grant_type": "api_key", "api_key": key["key"]}
    auth("POST", "/api/auth/token", json=grant)
    auth("GET", "/api/auth/api-keys", token=token)
    auth("DELETE", "/api/auth/api-keys/{key_id}", key["id"], token=token)
    auth("GET", "/api/auth/.well-known/jwks.json")
    auth("POST", "/api/auth/session", json=login)
    auth("DELETE", "/api/auth/session")
    for name in ("/api/users/me", "/api/users/{user_id}"):
        users("GET", name, user, token=token)
        users("PATCH", name, user, token=token, json={"firstName": "C"})
    users("GET", "/api/users", token=admin.access, params={"limit": 1})
    users("GET", "/api/users", token=admin.access)
    users("GET", "/api/users/{user_id}/profile", user, token=token)
    auth("POST", "/api/auth/logout", json={"refresh_token": pair["refresh_token"]})
    auth("POST", "/api/auth/logout-everywhere", token=token)
    assert auth("GET", "/internal/auth/revocations")["revocations"]
    users("DELETE", "/api/users/{user_id}", user, token=admin.access)
