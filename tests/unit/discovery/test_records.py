"""What a read must be like to be believed."""

from __future__ import annotations

from discovery.consul.api import ServiceRead
from discovery.consul.catalog_state import Records
from discovery.model import Instance


def instance(number: int, **fields: object) -> Instance:
    return Instance("users", f"u-{number}", "n", "127.0.0.1", 20000 + number, **fields)  # type: ignore[arg-type]


def records(*instances: Instance) -> Records:
    some = Records()
    some.accept(ServiceRead("users", 5, instances), listed=True, hold=False)
    some.publish()
    return some


ONE, TWO = instance(1), instance(2)


def test_change_is_published_once_with_before_and_after() -> None:
    some = records(ONE)
    some.accept(ServiceRead("users", 6, (ONE, TWO)), listed=True, hold=False)
    (change,) = some.publish()
    assert (change.before, change.after) == ((ONE,), (ONE, TWO))
    assert some.snapshot.version == 2
    assert some.publish() == []


def test_same_instances_under_another_index_are_no_change() -> None:
    some = records(ONE)
    some.accept(ServiceRead("users", 9, (ONE,)), listed=True, hold=False)
    assert some.publish() == []
    assert not some.moved(ServiceRead("users", 9, None))


def test_index_that_went_back_has_moved() -> None:
    assert records(ONE).moved(ServiceRead("users", 3, None))


def test_old_snapshot_does_not_change_under_its_reader() -> None:
    some = records(ONE)
    before = some.snapshot
    some.accept(ServiceRead("users", 6, ()), listed=False, hold=False)
    some.publish()
    assert before.instances("users") == (ONE,)
    assert some.snapshot.instances("users") == ()


def test_empty_answer_is_not_believed_while_the_service_is_listed() -> None:
    some = records(ONE)
    assert not some.accept(ServiceRead("users", 6, ()), listed=True, hold=False)
    assert some.publish() == []
    assert some.accept(ServiceRead("users", 6, ()), listed=False, hold=False)
    assert len(some.publish()) == 1


def test_broken_read_keeps_the_last_state() -> None:
    some = records(ONE)
    assert not some.accept(ServiceRead("users", -1, None), listed=True, hold=False)
    assert some.snapshot.instances("users") == (ONE,)


def test_hold_keeps_who_is_missing_and_takes_who_is_new() -> None:
    some = records(ONE, TWO)
    moved_one = instance(1, meta={"edge-weight": "7"})
    some.accept(ServiceRead("users", 2, (moved_one,)), listed=True, hold=True)
    some.publish()
    assert some.snapshot.instances("users") == (moved_one, TWO)
    assert some.held == {"users"}
    some.accept(ServiceRead("users", 2, (moved_one,)), listed=True, hold=False)
    some.publish()
    assert some.snapshot.instances("users") == (moved_one,)


def test_services_are_found_by_node_and_by_absence() -> None:
    some = records(ONE)
    assert some.on_nodes({"n"}) == {"users"}
    assert some.on_nodes({"m"}) == set()
    assert some.unlisted(["other"]) == {"users"}


def test_services_that_changed_last_are_asked_first() -> None:
    some = records(ONE)
    for name in ("b", "a"):
        some.accept(ServiceRead(name, 6, (ONE,)), listed=True, hold=False)
        some.publish()
    assert some.latest({"users", "c", "b", "a"}, 2) == ["a", "b"]
