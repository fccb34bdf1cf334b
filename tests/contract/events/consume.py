"""One instance of stats as a process of its own, for tests that kill it: `python -m tests.contract.events.consume URL FILE NAME`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tests.contract.events.rig import connect, database, file, stats


def main() -> None:
    url, folder, name = sys.argv[1:]
    db, tables, effects = database(file(Path(folder), "stats"))
    one = stats(db, tables, effects, connect(url, name))
    with one.running():
        time.sleep(600)


if __name__ == "__main__":
    main()
