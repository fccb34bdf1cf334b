"""Ejection: after how many failures, for how long, and how an instance comes back."""

from __future__ import annotations

from dataclasses import replace

from discovery.balancing.ejection import Outliers, OutlierSettings, identity
from discovery.model import Instance
from tests.support.clock import ManualClock

ONE = Instance("users", "u-1", "n", "127.0.0.1", 20001)


def outliers(clock: ManualClock) -> Outliers:
    return Outliers(OutlierSettings(failures=3, base_s=2.0, max_s=10.0), clock)


def test_third_failure_in_a_row_ejects_for_the_base_time() -> None:
    clock = ManualClock()
    some = outliers(clock)
    assert [some.failed(ONE) for _ in range(3)] == [0.0, 0.0, 2.0]
    assert some.ejected() == {identity(ONE)}
    clock.sleep(2.0)
    assert some.ejected() == frozenset()


def test_success_between_failures_starts_the_count_anew() -> None:
    some = outliers(ManualClock())
    for _ in range(5):
        some.failed(ONE)
        some.failed(ONE)
        some.succeeded(ONE)
    assert some.ejected() == frozenset()


def test_refused_connection_ejects_at_once() -> None:
    some = outliers(ManualClock())
    assert some.failed(ONE, refused=True) == 2.0


def test_one_failure_on_probation_ejects_for_twice_as_long_up_to_the_bound() -> None:
    clock = ManualClock()
    some = outliers(clock)
    times = []
    for _ in range(5):
        times.append(some.failed(ONE, refused=True))
        clock.sleep(times[-1])
    assert times == [2.0, 4.0, 8.0, 10.0, 10.0]


def test_after_a_good_probation_the_count_starts_anew() -> None:
    clock = ManualClock()
    some = outliers(clock)
    some.failed(ONE, refused=True)
    clock.sleep(4.0)
    some.succeeded(ONE)
    assert [some.failed(ONE) for _ in range(3)] == [0.0, 0.0, 2.0]


def test_success_on_probation_does_not_end_it() -> None:
    clock = ManualClock()
    some = outliers(clock)
    some.failed(ONE, refused=True)
    clock.sleep(2.5)
    some.succeeded(ONE)
    assert some.failed(ONE) == 4.0


def test_late_news_does_not_lengthen_an_ejection() -> None:
    clock = ManualClock()
    some = outliers(clock)
    some.failed(ONE, refused=True)
    assert some.failed(ONE) == 0.0
    clock.sleep(2.0)
    assert not some.ejected()


def test_instance_proves_itself_by_an_answer_not_by_the_end_of_its_ejection() -> None:
    clock = ManualClock()
    some = outliers(clock)
    some.failed(ONE, refused=True)
    some.succeeded(ONE)
    assert some.unproven() == {identity(ONE)}, "still out"
    clock.sleep(2.5)
    assert not some.unproven()
    some.failed(ONE, refused=True)
    clock.sleep(30)
    assert not some.ejected()
    assert some.unproven() == {identity(ONE)}
    some.succeeded(ONE)
    assert not some.unproven()


def test_instance_that_returns_elsewhere_is_not_ejected() -> None:
    some = outliers(ManualClock())
    some.failed(ONE, refused=True)
    assert identity(replace(ONE, port=20002)) not in some.ejected()


def test_gone_instances_are_forgotten() -> None:
    some = outliers(ManualClock())
    some.failed(ONE, refused=True)
    some.forget_all_but([])
    assert some.ejected() == frozenset()
