"""How long an upstream usually has, and which failures show only a caller's impatience: those say nothing about the upstream."""

from __future__ import annotations

from dataclasses import dataclass

from discovery.errors import AnswerTooLarge, CallError, DeadlineExceeded, NoInstance

# Of the usual time: what goes by before a call begins is not the caller's impatience.
SHARE = 0.9
# What an instance answers that passes the deadline on, and hears nothing in time itself. A 500 is a failure of its own.
LATE_STATUSES = frozenset({502, 503, 504})


@dataclass(frozen=True, slots=True)
class Patience:
    """Times in seconds. An attempt may take `most_s`; with `shares`, half of what is left while another may follow.

    `usual_s` is what such a call is given where there is time (0: not known). Less than `floor_s` says nothing in any case.
    """

    most_s: float
    usual_s: float
    floor_s: float
    shares: bool

    def attempt_s(self, left_s: float, *, another: bool) -> float:
        """What an attempt is given of the time that is left."""
        return min(self.most_s, left_s / 2 if another and self.shares else left_s)

    def enough(self, attempt_s: float, *, another: bool) -> bool:
        """Whether an attempt that was given so much may be held against its instance when it is late."""
        return attempt_s >= max(self.floor_s, SHARE * self.attempt_s(self.usual_s, another=another))

    def enough_in_all(self, deadline_s: float, *, another: bool) -> bool:
        """The same of a whole call."""
        if deadline_s >= max(self.floor_s, SHARE * self.usual_s):
            return True
        return self.enough(self.attempt_s(deadline_s, another=another), another=another)


def is_late(outcome: CallError | int) -> bool:
    """Whether a failure (an error, or the status of an answer) is one that more time might have spared."""
    if isinstance(outcome, int):
        return outcome in LATE_STATUSES
    cause: BaseException | None = outcome
    while cause is not None:
        if isinstance(cause, DeadlineExceeded | TimeoutError):
            return True
        cause = cause.__cause__
    return False


def says_nothing(error: CallError, *, patient: bool) -> bool:
    """Whether a call that ended so says nothing about the upstream; `patient`: it had time enough."""
    if isinstance(error, DeadlineExceeded) and not error.sent:
        return True
    return isinstance(error, NoInstance | AnswerTooLarge) or (not patient and is_late(error))
