"""Programs of ours without the second that each of them takes to import its libraries: a process that has imported them
forks one for each that is asked for, which sets its own environment, output and arguments and then runs as `python` would run it.

Only what a test starts by itself is started so. The stack, its containers and the bare machine start what the user starts.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# No module that reads the environment: what a service is made of is imported by the instance itself.
IMPORTED = {
    "gthread": (
        "services.kit",
        "services.kit.server.run",
        "services.kit.db.postgres",
        "gunicorn.workers.gthread",
        "sqlalchemy.dialects.sqlite",
        "alembic.command",
        "argon2",
        "haproxy.controller.app",
        "haproxy.controller.loop.plan_command",
        "typer",
    ),
    "gevent": (
        "services.kit",
        "services.kit.server.gevent_worker",
        "services.kit.server.run",
        "services.kit.db.postgres",
        "sqlalchemy.dialects.sqlite",
        "alembic.command",
        "gateway.app",
    ),
}
# The first answer waits for the imports.
ANSWER_S = 120.0
OURS = ("services.", "gateway", "haproxy.controller")


def forks(argv: Sequence[str]) -> bool:
    """Whether this is a program of ours that needs nothing of its interpreter: `python -m services.users`, `python hello.py`."""
    if len(argv) < 2 or argv[0] != sys.executable:
        return False
    return argv[1].endswith(".py") or (argv[1] == "-m" and argv[2].startswith(OURS))


class Forked:
    """A program that was forked: what `Process` asks of a `subprocess.Popen`."""

    def __init__(self, parent: Parent, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._parent = parent
        self._lock = threading.Lock()
        self._end = os.pidfd_open(pid)
        while os.getsid(pid) != pid:  # signals go to the group of its session
            time.sleep(0.001)

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code; minus the signal that ended it. Raises subprocess.TimeoutExpired."""
        with self._lock:
            if self.returncode is None:
                if not select.select([self._end], [], [], timeout)[0]:
                    raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
                self.returncode = self._parent.ask(ended=self.pid)
                os.close(self._end)
            return self.returncode

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


class Parent:
    """The process that forks, as its user sees it. Safe for threads. It ends with its user."""

    def __init__(self, kind: str) -> None:
        env = {key: value for key, value in os.environ.items() if key in ("PATH", "HOME", "TMPDIR")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.prefork", kind],
            cwd=ROOT,
            env={**env, "WORKER_CLASS": kind},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._lock = threading.Lock()

    def start(self, argv: Sequence[str], log: Path, env: Mapping[str, str]) -> Forked:
        job = {"argv": list(argv), "log": str(log.absolute()), "env": dict(env), "cwd": str(Path.cwd())}
        return Forked(self, self.ask(**job))

    def ask(self, **what: Any) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps(what).encode() + b"\n")
            self._process.stdin.flush()
            assert select.select([self._process.stdout], [], [], ANSWER_S)[0], "nothing is forked: no answer"
            return int(self._process.stdout.readline())


@cache
def _parent(kind: str) -> Parent:
    return Parent(kind)


def start(argv: Sequence[str], log: Path, env: Mapping[str, str]) -> Forked:
    """Start a program that `forks`, in a session of its own; its output is appended to `log`."""
    patched = env.get("WORKER_CLASS") == "gevent" or argv[1:3] == ["-m", "gateway"]
    return _parent("gevent" if patched else "gthread").start(argv, log, env)


# -- the process that forks


def _serve() -> dict[str, Any] | None:
    """Answer until the user has gone; in a child, return what it is to be."""
    for line in iter(sys.stdin.buffer.readline, b""):
        what = json.loads(line)
        if "ended" in what:
            answer = os.waitstatus_to_exitcode(os.waitpid(what["ended"], 0)[1])
        else:
            answer = _fork()
            if answer == 0:
                os.setsid()
                return what
        os.write(1, b"%d\n" % answer)
    return None


def _fork() -> int:
    if "gevent" not in sys.modules:
        return os.fork()
    from gevent import monkey, reinit

    pid: int = monkey.get_original("os", "fork")()
    if pid == 0:
        reinit()
    return pid


def _become(what: dict[str, Any]) -> None:
    for descriptor, path, mode in (
        (0, os.devnull, os.O_RDONLY),
        (1, what["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT),
    ):
        opened = os.open(path, mode)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.dup2(1, 2)
    os.environ.clear()
    os.environ.update(what["env"])
    os.chdir(what["cwd"])
    sys.orig_argv[:] = what["argv"]
    paths = [path for path in what["env"].get("PYTHONPATH", "").split(os.pathsep) if path]
    if what["argv"][1] == "-m":
        sys.argv[:] = what["argv"][2:]
        sys.path[:1] = [what["cwd"], *paths]
        runpy.run_module(what["argv"][2], run_name="__main__", alter_sys=True)
    else:
        sys.argv[:] = what["argv"][1:]
        sys.path[:1] = [str(Path(what["argv"][1]).parent), *paths]
        runpy.run_path(what["argv"][1], run_name="__main__")


def main(kind: str) -> None:
    for name in IMPORTED[kind]:
        importlib.import_module(name)
    assert threading.active_count() == 1, "a fork would leave threads behind"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.collect()
    gc.freeze()
    what = _serve()
    if what is not None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _become(what)


if __name__ == "__main__":
    main(sys.argv[1])
