from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from services.auth.passwords import Cost, Hasher, Saturated
from tests.support.eventually import time_scale

CHEAP = Cost(time=1, memory_kib=8, lanes=1)


def hasher(slots: int = 2, wait_s: float = 0.05, cost: Cost = CHEAP) -> Hasher:
    return Hasher(cost, slots=slots, wait_s=wait_s)


def test_a_password_fits_its_own_hash_only() -> None:
    work = hasher()
    hashed = work.hash("correct horse")
    assert hashed.startswith("$argon2id$")
    assert work.verify(hashed, "correct horse")
    assert not work.verify(hashed, "battery staple")
    assert not work.verify("rubbish", "correct horse")
    assert hashed != work.hash("correct horse"), "salted"


def test_without_an_account_nothing_fits() -> None:
    work = hasher()
    assert not work.verify(None, "correct horse")
    assert not work.verify(None, "")


def test_an_unknown_account_costs_the_same_hash() -> None:
    work = hasher(cost=Cost(time=2, memory_kib=16384, lanes=1))
    hashed = work.hash("correct horse")

    def cost_s(target: str | None) -> float:
        """Of the processor's time, which others at work on the machine do not lengthen."""
        started = time.process_time()
        work.verify(target, "wrong password")
        return time.process_time() - started

    pairs = [(cost_s(None), cost_s(hashed)) for _ in range(7)]
    unknown_s, known_s = (min(each) for each in zip(*pairs, strict=True))
    assert 0.4 < unknown_s / known_s < 2.5


def test_no_more_than_the_slots_run_at_once_and_the_rest_is_turned_away_fast() -> None:
    work = hasher(slots=2, wait_s=0.05)
    inside, most, lock = 0, 0, threading.Lock()
    release = threading.Event()

    def one(_: int) -> str:
        nonlocal inside, most
        started = time.monotonic()
        try:
            with work.slot():
                with lock:
                    inside += 1
                    most = max(most, inside)
                release.wait(5)
                with lock:
                    inside -= 1
                return "done"
        except Saturated:
            assert time.monotonic() - started < 1 * time_scale()
            return "refused"

    with ThreadPoolExecutor(12) as pool:
        futures = [pool.submit(one, n) for n in range(12)]
        while sum(f.done() for f in futures) < 10:
            time.sleep(0.005)
        release.set()
        outcomes = [f.result() for f in futures]
    assert most == 2
    assert outcomes.count("done") == 2
    assert outcomes.count("refused") == 10


def test_a_slot_comes_back_after_an_error() -> None:
    work = hasher(slots=1, wait_s=0)
    for _ in range(3):
        with pytest.raises(RuntimeError), work.slot():
            raise RuntimeError
    with work.slot():
        pass


def test_hashes_of_other_parameters_are_outdated() -> None:
    assert hasher().outdated(hasher(cost=Cost(time=2, memory_kib=8, lanes=1)).hash("correct horse"))
    assert not hasher().outdated(hasher().hash("correct horse"))


def test_under_gevent_a_hash_does_not_stop_the_other_greenlets() -> None:
    program = """
from gevent import monkey; monkey.patch_all()
import gevent, time
from services.auth.passwords import Cost, Hasher
work = Hasher(Cost(time=3, memory_kib=131072, lanes=1), slots=1, wait_s=1)
turns, over = 0, False
def tick():
    global turns
    while not over:
        turns += 1
        gevent.sleep(0.002)
gevent.spawn(tick)
gevent.sleep(0)
before = turns
with work.slot():
    work.hash("correct horse")
print(turns - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 5
