"""How often a subject may ask, and what its answers say of it: without Redis, as in each process for itself."""

from __future__ import annotations

import re
import threading

import pytest

from gateway.errors import LimitExceeded
from gateway.limits import ratelimit as module
from gateway.limits.counts import DAY_S
from gateway.limits.ratelimit import Limits, LimitSettings, policies
from gateway.model import Headers, Incoming
from gateway.redis_link import RedisLink
from gateway.settings import GatewaySettings
from tests.support.clock import ManualClock
from tests.support.incoming import incoming, person

# RFC 9651: a List of Strings with Integer parameters.
_ITEM = r'"[\x20-\x21\x23-\x5b\x5d-\x7e]+"(?:;[a-z]+=[0-9]{1,15})+'
LIST = re.compile(rf"{_ITEM}(?:, {_ITEM})*")


def request(subject: str = "alice", *scopes: str, by_key: bool = False) -> Incoming:
    return incoming(who=person(subject, *scopes, by_key=by_key))


def limits(rates: str, quotas: str = "off", *, key: str = "off", clock: ManualClock | None = None) -> Limits:
    settings = LimitSettings(policies("rate", rates) + policies("quota", quotas), policies("rate", key))
    return Limits(settings, RedisLink(None), now=(clock or ManualClock()).time)


def refusal(one: Limits, asked: Incoming) -> LimitExceeded:
    with pytest.raises(LimitExceeded) as caught:
        one.check(asked)
    return caught.value


def field(headers: Headers, name: str) -> str:
    (value,) = [value for key, value in headers if key == name]
    return value


def parameters(headers: Headers, name: str, policy: str) -> dict[str, int]:
    for item in field(headers, name).split(", "):
        found, *pairs = item.split(";")
        if found == f'"{policy}"':
            return {key: int(value) for key, _, value in (pair.partition("=") for pair in pairs)}
    raise AssertionError(f"{policy} is not in {headers}")


def test_a_caller_that_waits_as_it_should_gets_the_whole_limit_again() -> None:
    clock = ManualClock()
    one = limits("3/minute", clock=clock)
    for _ in range(4):
        for left in (2, 1, 0):
            assert parameters(one.check(request()), "RateLimit", "rate-minute")["r"] == left
        clock.sleep(refusal(one, request()).retry_after_s)


def test_refused_requests_do_not_count() -> None:
    clock = ManualClock()
    one = limits("2/minute", "3/day", clock=clock)
    one.check(request())
    one.check(request())
    for _ in range(100):
        error = refusal(one, request())
    assert parameters(error.headers, "RateLimit", "quota-day")["r"] == 1
    clock.sleep(error.retry_after_s)
    one.check(request())


def test_all_policies_hold_at_once_and_the_longest_wait_is_named() -> None:
    clock = ManualClock(now=1_800_000_000.0 - 1_800_000_000.0 % DAY_S + 3600)
    one = limits("2/second;10/minute", "4/day", clock=clock)
    for _ in range(2):
        one.check(request())
        one.check(request())
        error = refusal(one, request())
        if error.retry_after_s > 1:
            break
        clock.sleep(1)
    assert parameters(error.headers, "RateLimit", "quota-day") == {"r": 0, "t": DAY_S - 3600 - 1}
    assert error.retry_after_s == DAY_S - 3600 - 1
    clock.sleep(error.retry_after_s)
    one.check(request())


def test_headers_are_structured_fields_and_name_every_policy() -> None:
    one = limits("10/5second;600/minute", "100000/day")
    headers = one.check(request())
    for name in ("RateLimit", "RateLimit-Policy"):
        assert LIST.fullmatch(field(headers, name)), headers
    assert field(headers, "RateLimit-Policy") == (
        '"rate-5-second";q=10;w=5, "rate-minute";q=600;w=60, "quota-day";q=100000;w=86400'
    )
    assert field(headers, "RateLimit").startswith('"rate-5-second";r=9;t=')


def test_subjects_count_apart() -> None:
    one = limits("1/minute")
    one.check(request("alice"))
    refusal(one, request("alice"))
    one.check(request("bob"))


@pytest.mark.parametrize("asked", [incoming(), request("svc", "service")])
def test_anonymous_callers_and_services_are_not_limited(asked: Incoming) -> None:
    one = limits("1/minute")
    assert [one.check(asked) for _ in range(50)] == [[]] * 50


def test_limits_that_are_off_tell_nothing() -> None:
    one = limits("off", key="1/minute")
    assert [one.check(request()) for _ in range(50)] == [[]] * 50
    one.check(request(by_key=True))
    refusal(one, request(by_key=True))


def test_windows_of_subjects_do_not_end_together() -> None:
    """All would come back in the same second otherwise."""
    one = limits("1/minute")
    waits = set()
    for number in range(40):
        one.check(request(f"user-{number}"))
        waits.add(refusal(one, request(f"user-{number}")).retry_after_s)
    assert len(waits) > 20


def test_days_end_at_midnight_utc() -> None:
    clock = ManualClock(now=float(DAY_S * 20_000 + 60))
    one = limits("off", "1/day", clock=clock)
    for name in ("alice", "bob"):
        one.check(request(name))
        assert refusal(one, request(name)).retry_after_s == DAY_S - 60


def test_refused_policies_are_counted_by_name() -> None:
    heard: list[str] = []
    settings = LimitSettings(policies("rate", "1/minute") + policies("quota", "1/day"))
    one = Limits(settings, RedisLink(None), refused=heard.append, now=ManualClock().time)
    one.check(request())
    refusal(one, request())
    assert heard == ["rate-minute", "quota-day"]


def test_clock_that_is_put_back_gives_no_second_window_at_once() -> None:
    clock = ManualClock()
    one = limits("2/minute", clock=clock)
    one.check(request())
    one.check(request())
    clock.sleep(refusal(one, request()).retry_after_s)
    one.check(request())
    one.check(request())
    # Into the window before, and back.
    for seconds in (-5, 5, -30, 30):
        clock.sleep(seconds)
        refusal(one, request())
    clock.sleep(-3600)
    one.check(request())


def test_subjects_are_remembered_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SUBJECTS", 10)
    one = limits("1/minute")
    for number in range(100):
        one.check(request(f"user-{number}"))
    assert one.remembered == 10
    refusal(one, request("user-99"))


@pytest.mark.parametrize(
    "text",
    ["", "many", "10", "0/minute", "10/fortnight", "-1/minute", "5/minute;6/minute"]
    + [";".join(f"1/{n} second" for n in range(1, 7)), "9" * 30 + "/day"],
)
def test_nonsense_is_no_policy(text: str) -> None:
    with pytest.raises(ValueError):
        policies("rate", text)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("600/minute", ["rate-minute"]),
        ("10 per second, 600 per 5 minutes", ["rate-second", "rate-5-minute"]),
        ("1/hour;20/day", ["rate-hour", "rate-day"]),
        (" OFF ", []),
    ],
)
def test_policies_are_read_as_the_library_reads_them(text: str, names: list[str]) -> None:
    assert [each.name for each in policies("rate", text)] == names


def test_threads_together_get_the_limit_and_not_one_more() -> None:
    one = limits("500/minute")
    passed: list[int] = []

    def work() -> None:
        count = 0
        for _ in range(100):
            try:
                one.check(request())
            except LimitExceeded:
                continue
            count += 1
        passed.append(count)

    threads = [threading.Thread(target=work) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sum(passed) == 500


def test_settings_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_RATE_LIMITS", "10/second;600/minute")
    monkeypatch.setenv("GATEWAY_QUOTAS", "off")
    monkeypatch.setenv("GATEWAY_KEY_RATE_LIMITS", "off")
    monkeypatch.setenv("GATEWAY_KEY_QUOTAS", "1000/day")
    read = GatewaySettings().limits()
    assert [each.name for each in read.subject] == ["rate-second", "rate-minute"]
    assert [each.name for each in read.key] == ["quota-day"]


def test_limits_hold_unless_they_are_turned_off() -> None:
    read = GatewaySettings().limits()
    assert [each.name for each in read.subject] == ["rate-minute", "quota-day"]
    assert [each.name for each in read.key] == ["rate-minute", "quota-day"]


def test_wrong_limit_ends_the_process_with_its_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GATEWAY_QUOTAS", "a lot")
    with pytest.raises(SystemExit) as caught:
        GatewaySettings.from_environment()
    assert "GATEWAY_QUOTAS" in str(caught.value)
