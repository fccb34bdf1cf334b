"""Whether a password may be tried now. Pure: counters and a time go in, seconds to wait come out.

Guessing must be slow, and slowing must not become a way to keep an owner out. Three counters, each of failures:

- **pair**, (account, source): five are free, then the wait doubles from 1 s to 15 min. It stops the plain guesser,
  and touches no other account.
- **account**, over all its sources: twenty are free, then the wait doubles from 1 s to 30 s. It stops guesses spread over
  many sources. It holds back only sources that have failed here already: the first try from a fresh source is always
  looked at, so that the owner with the right password gets in at once, from anywhere, whatever an attacker does.
- **source**, over all accounts: fifty are free, then the wait doubles from 1 s to 60 s. It stops one password tried on many accounts.

A *known* source, from which the account was opened or entered within 30 days, is spared the last two, feeds neither, and
its pair wait ends at 60 s: another client behind the same address can cost the owner one minute, not more.
An attempt that is refused is not counted, so hammering does not lengthen a wait. An unknown e-mail is counted
like any other, so the answers do not show which accounts exist.

Ref: OWASP, Authentication Cheat Sheet, "Account Lockout"; NIST SP 800-63B, 5.2.2.
"""

from __future__ import annotations

from dataclasses import dataclass

KNOWN_FOR_S = 30 * 86400.0


@dataclass(frozen=True, slots=True)
class Rule:
    """`free` failures cost nothing; then the wait doubles from `first_s` to `cap_s`. Forgotten `window_s` after the last one."""

    free: int
    first_s: float
    cap_s: float
    window_s: float


PAIR = Rule(free=5, first_s=1.0, cap_s=900.0, window_s=86400.0)
KNOWN_PAIR = Rule(free=5, first_s=1.0, cap_s=60.0, window_s=86400.0)
ACCOUNT = Rule(free=20, first_s=1.0, cap_s=30.0, window_s=900.0)
SOURCE = Rule(free=50, first_s=1.0, cap_s=60.0, window_s=900.0)


@dataclass(frozen=True, slots=True)
class Tally:
    """Failures in a row, and when the last one was (Unix time)."""

    failures: int = 0
    last_at: float = 0.0

    def live(self, rule: Rule, now: float) -> int:
        """The failures that still count."""
        return self.failures if now - self.last_at < rule.window_s else 0

    def failed(self, rule: Rule, now: float) -> Tally:
        """This tally after one more failure."""
        return Tally(self.live(rule, now) + 1, now)

    def forgiven(self) -> Tally:
        """This tally with one failure taken back: the attempt turned out to be good."""
        return Tally(max(self.failures - 1, 0), self.last_at)


@dataclass(frozen=True, slots=True)
class Standing:
    """The three tallies of one attempt, and until when (Unix time) its source is known for its account."""

    pair: Tally = Tally()
    account: Tally = Tally()
    source: Tally = Tally()
    known_until: float = 0.0

    def known(self, now: float) -> bool:
        return now < self.known_until


def delay_s(tally: Tally, rule: Rule, now: float) -> float:
    """Seconds until the next attempt under this rule; 0 when it may come now."""
    failures = tally.live(rule, now)
    if failures < rule.free:
        return 0.0
    wait_s = min(rule.first_s * 2.0 ** min(failures - rule.free, 30), rule.cap_s)
    # Another instance's clock may run ahead: no wait is ever longer than its rule says.
    return min(max(tally.last_at + wait_s - now, 0.0), wait_s)


def wait_s(standing: Standing, now: float) -> float:
    """Seconds until this account's password may be tried from this source; 0 when now."""
    if standing.known(now):
        return delay_s(standing.pair, KNOWN_PAIR, now)
    waits = [delay_s(standing.pair, PAIR, now), delay_s(standing.source, SOURCE, now)]
    if standing.pair.live(PAIR, now):
        waits.append(delay_s(standing.account, ACCOUNT, now))
    return max(waits)


def attempted(standing: Standing, now: float) -> Standing:
    """The standing once an attempt has begun. It counts as failed until it succeeds: of a hundred guesses sent
    at the same moment only the free ones are looked at."""
    pair = standing.pair.failed(PAIR, now)
    if standing.known(now):
        return Standing(pair, standing.account, standing.source, standing.known_until)
    return Standing(
        pair,
        standing.account.failed(ACCOUNT, now),
        standing.source.failed(SOURCE, now),
        standing.known_until,
    )


def succeeded(standing: Standing, now: float) -> Standing:
    """The standing after the right password: the pair is clean and the source known; what others did still stands."""
    account, source = standing.account, standing.source
    if not standing.known(now):
        account, source = account.forgiven(), source.forgiven()
    return Standing(Tally(0, now), account, source, now + KNOWN_FOR_S)
