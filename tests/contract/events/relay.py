"""One instance of posts as a process of its own, which relays: `python -m tests.contract.events.relay URL FILE NAME`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tests.contract.events.rig import connect, database, file, producer, relaying


def main() -> None:
    url, folder, name = sys.argv[1:]
    db, tables, _ = database(file(Path(folder), "posts"))
    with relaying(producer(db, tables, connect(url, name), name)):
        time.sleep(600)


if __name__ == "__main__":
    main()
