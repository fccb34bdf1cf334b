"""`python3 -m stack.launch <command> …`: what the Makefile calls. Installs what the command needs, becomes an ordinary
user, and goes on as that command in the virtual environment. Standard library only.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from stack import PORT_HOLDERS, STACK_MARK
from stack.install import account, packages

REPO = Path(__file__).resolve().parents[1]

LEVELS = {
    "up": "run",
    "test": "test",
    "test-long": "test",
    "test-compose": "compose",
    "lint": "test",
    "bench": "bench",
}
"""Commands that install, and what. Every other needs only the virtual environment that is there."""

TESTS = {
    # Most wait for servers more than they compute. tests/conftest.py puts what takes longest first, and xdist is to leave it there.
    "test": ["-n", "3", "--dist", "loadscope", "--no-loadscope-reorder", "-m", "not long"],
    # One after another: many are loads, and measure what is left to others.
    "test-long": ["-m", "long", "--durations", "20"],
}
"""Command → pytest's arguments where none are given."""

BACKENDS = ("default", "full")
"""What `make test` takes as BACKENDS: the services' own tests on SQLite, or on PostgreSQL as well."""

LINTERS = (
    ("ruff", "check", "."),
    ("ruff", "format", "--check", "."),
    ("mypy",),
)


class UsageError(Exception):
    """A command was given a value that it does not take."""


def main(argv: list[str]) -> int:
    if not argv:
        print("usage: python3 -m stack.launch <command> [argument …]", file=sys.stderr)
        return 2
    try:
        return launch(argv[0], argv[1:])
    except (UsageError, packages.InstallError, account.AccountError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


@dataclass(frozen=True)
class Place:
    """Where the code runs from, where its state is, and the user that runs it."""

    home: Path
    var: Path
    user: account.Account

    @property
    def venv(self) -> Path:
        return self.home / ".venv"

    @property
    def python(self) -> str:
        return str(self.venv / "bin" / "python")

    @property
    def tools(self) -> Path:
        return self.venv / "tools"


def launch(command: str, arguments: list[str]) -> int:
    """Returns only where the virtual environment is missing or this process was enough; else it becomes the command."""
    if command in TESTS:
        check_backends(os.environ)
    os.umask(0o022)
    place = _place(dict(os.environ), say_why=command in LEVELS)
    if command == "clean":
        return _clean(place)
    if command == "lock":
        return _lock(place.user)
    if command in LEVELS:
        broker = ["rabbitmq"] if command == "up" and os.environ.get("EVENTS") == "rabbitmq" else []
        _install(LEVELS[command], place, broker)
    elif not Path(place.python).exists():
        raise UsageError("nothing is installed here yet\nstart with: make up")
    if command == "docs":
        return _docs(place.python)
    for folder in (place.var, place.var / "cache"):
        account.give(folder, place.user)
    environment = _environment(place)
    os.chdir(place.home)
    if command == "test-compose":
        return _test_containers(arguments, place, environment)
    if os.geteuid() == 0:
        if command == "up":
            environment[PORT_HOLDERS] = port_holders(place.python, environment)
        place.user.enter()
    with contextlib.suppress(OSError):
        (place.var / "home").mkdir(exist_ok=True)
    if command == "lint":
        return _lint(place.python, environment)
    return _become([place.python, *_words(command, arguments)], environment)


def _become(argv: list[str], environment: Mapping[str, str]) -> NoReturn:
    sys.stdout.flush()
    os.execve(argv[0], argv, environment)  # noqa: S606  (an argument list, no shell)


def _words(command: str, arguments: list[str]) -> list[str]:
    """What Python is to run for a command."""
    if command in TESTS:
        return ["-m", "pytest", "-p", "no:cacheprovider", *(arguments or TESTS[command])]
    return ["-m", "bench", *arguments] if command == "bench" else ["-m", "stack", command, *arguments]


def check_backends(environment: Mapping[str, str]) -> None:
    """Raises UsageError for a value of `BACKENDS` that `make test` does not take."""
    value = environment.get("BACKENDS")
    if value and value not in BACKENDS:
        raise UsageError(f"BACKENDS={value} is unknown\nit takes: {', '.join(BACKENDS)}")


def _test_containers(arguments: list[str], place: Place, environment: dict[str, str]) -> int:
    from tests.support import engine

    environment["DOCKER_CONFIG"] = str(packages.install_compose(place.tools))
    environment["BUILDX_CONFIG"] = str(place.var / "cache" / "buildx")
    return engine.run_tests(place.python, arguments, place.user, environment, place.home)


def _place(environment: Mapping[str, str], say_why: bool) -> Place:
    """Where that user cannot read the checkout, a copy of it is made and runs instead."""
    copy = account.COPIES / f"{REPO.name}-{hashlib.sha256(os.fsencode(REPO)).hexdigest()[:8]}"
    user = account.choose(REPO, [_var(REPO, environment), _var(copy, environment)], environment)
    closed = account.unreadable(user, REPO)
    if closed is None:
        return Place(REPO, _var(REPO, environment), user)
    if say_why:
        print(
            f"note: {user.name} cannot read {closed}, so a copy of the code in {copy} runs"
            f" (to run in place: chmod o+rX {closed}, or move the checkout)"
        )
    account.copy_code(REPO, copy)
    return Place(copy, _var(copy, environment), user)


def _var(home: Path, environment: Mapping[str, str]) -> Path:
    return Path(environment.get("BREAKWATER_VAR") or home / "var").absolute()


def _install(level: str, place: Place, more: Sequence[str]) -> None:
    """What `level` needs; of `more` levels the Debian packages."""
    python = packages.choose_python(place.user.succeeds)
    for each in (level, *more):
        packages.install_packages(each, python)
    try:
        with packages.only_one(place.home):
            packages.install_venv(place.venv, place.home, level, python)
            packages.install_consul(place.tools, place.user.succeeds)
    except PermissionError as error:
        raise account.AccountError(
            f"{error.filename} cannot be written: the checkout is not yours\nmake it yours, or use a clone of your own"
        ) from None


def _lock(user: account.Account) -> int:
    """As the caller: the files belong to the checkout."""
    with tempfile.TemporaryDirectory(prefix="breakwater-lock-") as tool:
        upgrade = bool(os.environ.get("UPGRADE"))
        packages.make_locks(REPO, Path(tool), packages.choose_python(user.succeeds), upgrade)
    return 0


def _docs(python: str) -> int:
    """As the caller: the files belong to the checkout. What root compiled would be in the way of the stack's user."""
    environment = {**os.environ, "PYTHONPATH": str(REPO), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run([python, "-m", "stack", "docs"], cwd=REPO, env=environment).returncode


def _environment(place: Place) -> dict[str, str]:
    root = os.geteuid() == 0
    kept = account.environment_for(place.user, os.environ, place.var) if root else dict(os.environ)
    cache = place.var / "cache"
    # Compiled code is kept: without it each of forty programs compiles every library again, which costs seconds of processor time.
    kept.pop("PYTHONDONTWRITEBYTECODE", None)
    return {
        **kept,
        # The system's programs come before Consul's own copy, so that a consul on PATH wins.
        "PATH": f"{packages.search_path()}:{place.tools / 'bin'}",
        "PYTHONPATH": str(place.home),
        "PYTHONPYCACHEPREFIX": str(cache / "pycache"),
        "RUFF_CACHE_DIR": str(cache / "ruff"),
        "MYPY_CACHE_DIR": str(cache / "mypy"),
        "HYPOTHESIS_STORAGE_DIRECTORY": str(cache / "hypothesis"),
    }


def port_holders(python: str, environment: Mapping[str, str]) -> str:
    """Only root sees which programs of other users hold a port that the stack wants."""
    # What root compiled could not be replaced by the stack's user: each instance would compile all that it imports.
    unkept = {**environment, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([python, "-m", "stack.run.ports"], env=unkept, capture_output=True, text=True)
    return done.stdout.strip()


def _clean(place: Place) -> int:
    """Take away what `up` and `test` made: state, virtual environment, copy of the code. Debian packages stay."""
    if _runs(place.var):
        raise UsageError("the stack is running\nend it first: make down")
    for folder in (place.var, place.venv, *([place.home] if place.home != REPO else [])):
        shutil.rmtree(folder, ignore_errors=True)
        print(f"removed {folder}")
    return 0


def _runs(var: Path) -> bool:
    """Whether the stack's supervisord runs; its number may be another program's by now, which has not the stack's mark."""
    try:
        pid = int((var / "run" / "supervisord.pid").read_text())
        environ = Path(f"/proc/{pid}/environ").read_bytes()
    except (OSError, ValueError):
        return False
    return f"{STACK_MARK}={var}".encode() in environ.split(b"\0")


def _lint(python: str, environment: Mapping[str, str]) -> int:
    worst = 0
    for words in LINTERS:
        print(f"$ {' '.join(words)}", flush=True)
        worst = max(worst, subprocess.run([python, "-m", *words], env=environment).returncode)
    return worst


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
