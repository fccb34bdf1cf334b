"""A wake-up that may come from a signal handler, at any moment."""

from __future__ import annotations

import subprocess
import sys

from tests.support.eventually import time_scale

# A timer that interrupts the very thread that waits, thousands of times: with an Event this stands still for ever.
PROGRAM = """
import signal, time
from discovery.bell import Bell
bell, heard = Bell(), 0
signal.signal(signal.SIGALRM, lambda *_: bell.ring())
signal.setitimer(signal.ITIMER_REAL, 0.003, 0.003)
until = time.monotonic() + 0.7
while time.monotonic() < until:
    heard += bell.wait(0.0002)
signal.setitimer(signal.ITIMER_REAL, 0)
bell.ring(); bell.ring()
assert bell.wait(1) and not bell.wait(0)
print(heard)
"""


def test_bell_rung_by_a_signal_handler_wakes_the_thread_that_it_interrupts() -> None:
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=15 * time_scale()
    )
    assert int(result.stdout or 0) > 20, result.stderr
