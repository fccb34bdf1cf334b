from __future__ import annotations

from services.auth.lockout import (
    ACCOUNT,
    KNOWN_FOR_S,
    KNOWN_PAIR,
    PAIR,
    Rule,
    Standing,
    Tally,
    attempted,
    delay_s,
    succeeded,
    wait_s,
)

NOW = 1_800_000_000.0
RULE = Rule(free=3, first_s=1.0, cap_s=8.0, window_s=100.0)


def failures(count: int, at: float = NOW) -> Tally:
    return Tally(count, at)


def test_free_failures_cost_nothing_then_the_wait_doubles_up_to_its_cap() -> None:
    waits = [delay_s(failures(n), RULE, NOW) for n in range(9)]
    assert waits == [0, 0, 0, 1, 2, 4, 8, 8, 8]


def test_the_wait_runs_down_and_the_failures_are_forgotten() -> None:
    assert delay_s(failures(5), RULE, NOW + 3) == 1
    assert delay_s(failures(5), RULE, NOW + 4) == 0
    assert delay_s(failures(50), RULE, NOW + 100) == 0
    assert failures(50).failed(RULE, NOW + 100) == Tally(1, NOW + 100)


def test_a_clock_that_runs_ahead_cannot_lengthen_a_wait() -> None:
    assert delay_s(failures(3, at=NOW + 5000), RULE, NOW) == 1


def test_a_thousand_failures_do_not_overflow() -> None:
    assert delay_s(failures(10_000), RULE, NOW) == RULE.cap_s


def test_a_guesser_is_slowed_at_his_source() -> None:
    standing, tries, now = Standing(), 0, NOW
    while now < NOW + 3600:
        wait = wait_s(standing, now)
        now += wait
        standing = attempted(standing, now)
        tries += 1
    # 5 free, then 1 + 2 + … + 512 s, and the rest of the hour at 900 s.
    assert tries < 20


def test_the_owner_gets_in_at_once_from_a_fresh_source_while_others_attack() -> None:
    attacked = Standing(account=failures(10_000))
    assert wait_s(attacked, NOW) == 0


def test_an_attacked_account_holds_back_sources_that_have_failed_there() -> None:
    attacked = Standing(pair=failures(1), account=failures(10_000))
    assert wait_s(attacked, NOW) == ACCOUNT.cap_s


def test_a_known_source_is_held_back_by_its_own_failures_only_and_a_minute_at_most() -> None:
    standing = Standing(failures(4), failures(10_000), failures(10_000), known_until=NOW + 1)
    assert wait_s(standing, NOW) == 0
    worst = Standing(failures(1000), failures(10_000), failures(10_000), known_until=NOW + 1)
    assert wait_s(worst, NOW) == KNOWN_PAIR.cap_s == 60
    assert wait_s(worst, NOW + 1) == PAIR.cap_s - 1, "no longer known"


def test_one_password_on_many_accounts_is_slowed_by_the_source() -> None:
    assert wait_s(Standing(source=failures(49)), NOW) == 0
    assert wait_s(Standing(source=failures(60)), NOW) > 0


def test_failures_at_a_known_source_do_not_feed_the_shared_tallies() -> None:
    after = attempted(Standing(known_until=NOW + 10), NOW)
    assert (after.pair.failures, after.account.failures, after.source.failures) == (1, 0, 0)
    stranger = attempted(Standing(), NOW)
    assert (stranger.pair.failures, stranger.account.failures, stranger.source.failures) == (1, 1, 1)


def test_success_clears_the_pair_takes_one_back_elsewhere_and_makes_the_source_known() -> None:
    before = attempted(Standing(failures(3), failures(12), failures(30)), NOW)
    after = succeeded(before, NOW)
    assert (after.pair.failures, after.account.failures, after.source.failures) == (0, 12, 30)
    assert after.known(NOW + KNOWN_FOR_S - 1)
    assert not after.known(NOW + KNOWN_FOR_S)


def test_of_many_attempts_at_the_same_moment_only_the_free_ones_are_looked_at() -> None:
    standing, looked_at = Standing(), 0
    for _ in range(100):
        if not wait_s(standing, NOW):
            standing = attempted(standing, NOW)
            looked_at += 1
    assert looked_at == PAIR.free
