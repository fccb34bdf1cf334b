"""The file that the edge's log is written to: full, and where it cannot be written."""

from __future__ import annotations

import socket
from pathlib import Path

from haproxy.controller.loop.steady import Health
from haproxy.controller.request_log import RequestLog
from tests.support.eventually import eventually


def test_full_file_is_turned_over_between_lines_and_two_former_ones_are_kept(tmp_path: Path) -> None:
    file, path = tmp_path / "requests.log", tmp_path / "log.sock"
    log = RequestLog(path, file, Health(), max_bytes=1000)
    log.start()
    sent = [f"{number:099d}\n" for number in range(35)]
    try:
        with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as two:
            one.connect(str(path))
            two.connect(str(path))
            for number, line in enumerate(sent):
                # Two workers, and what one sends comes in pieces.
                (one, two)[number % 2].sendall(line[:50].encode())
                (one, two)[number % 2].sendall(line[50:].encode())
                eventually(lambda line=line: file.exists() and file.read_text().endswith(line), 5)
    finally:
        log.stop()
    kept = [file.with_name("requests.log.2"), file.with_name("requests.log.1"), file]
    assert [len(one.read_text().splitlines()) for one in kept] == [10, 10, 5]
    assert "".join(one.read_text() for one in kept) == "".join(sent[10:])
    assert len(list(tmp_path.glob("requests.log*"))) == 3


def test_what_cannot_be_written_shows_in_health_until_it_can(tmp_path: Path) -> None:
    health, file, path = Health(), tmp_path / "requests.log", tmp_path / "log.sock"
    file.mkdir()
    log = RequestLog(path, file, health)
    log.start()
    with socket.socket(socket.AF_UNIX) as one:
        one.connect(str(path))
        one.sendall(b"lost\n")
        eventually(lambda: "request log" in health.problems(), 5)
        file.rmdir()
        one.sendall(b"kept\n")
        eventually(lambda: not health.problems(), 5)
        one.sendall(b"the last\n")
        log.stop()
    assert file.read_text() == "kept\nthe last\n"
