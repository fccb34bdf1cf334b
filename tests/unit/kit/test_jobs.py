"""Work beside the requests, and its place in the database."""

from __future__ import annotations

import threading
from pathlib import Path

from services.kit.db.jobs import Jobs
from services.kit.db.session import Database, background
from tests.support.clock import ManualClock
from tests.support.eventually import eventually
from tests.unit.kit.test_db import with_row


def test_job_outlives_whatever_it_meets_and_ends_when_it_is_to() -> None:
    jobs, turns = Jobs(ManualClock(chance=0.5)), []

    def work() -> None:
        turns.append(threading.current_thread())
        raise RuntimeError("bad")

    jobs.every(0.001, work)
    assert turns == []
    jobs.start()
    eventually(lambda: len(turns) >= 3, 5)
    jobs.stop(5.0)
    assert not turns[0].is_alive()


def test_background_work_and_requests_do_not_wait_for_each_other(tmp_path: Path) -> None:
    db: Database = with_row(tmp_path, pool_size=1, timeout_s=0.2)
    with background(), db.session(read_only=True):
        with_place = threading.Thread(target=lambda: db.session(read_only=True).__enter__())
        with_place.start()
        with_place.join(5)
    with db.session(read_only=True), background(), db.session(read_only=True):
        pass
