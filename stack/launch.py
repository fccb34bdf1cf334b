"""`python3 -m stack.launch <command> …`: what the Makefile calls. Installs what the command needs, becomes an ordinary
user, and goes on as that command in the virtual environment. Standard library only.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from stack import account, engine, install, ports, processes

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

TESTS = {"test": "not long", "test-long": "long"}
"""Command → which tests it runs where none are named."""

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
    except (UsageError, install.InstallError, account.AccountError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def launch(command: str, arguments: list[str]) -> int:
    """Returns only where the virtual environment is missing or linters ran; else this process becomes the command."""
    if command in TESTS:
        check_backends(os.environ)
    os.umask(0o022)
    home, who = _home_and_account(dict(os.environ), tell=command in LEVELS)
    var = _var(home, os.environ)
    venv = home / ".venv"
    if command == "clean":
        return _clean(home, var, venv)
    if command == "lock":
        # As the caller: the files belong to the checkout.
        with tempfile.TemporaryDirectory(prefix="breakwater-lock-") as tool:
            upgrade = bool(os.environ.get("UPGRADE"))
            install.make_locks(REPO, Path(tool), install.choose_python(who.succeeds), upgrade)
        return 0
    python = str(venv / "bin" / "python")
    if command in LEVELS:
        _install(LEVELS[command], home, venv, who)
    elif not Path(python).exists():
        print("error: nothing is installed here yet\nstart with: make up", file=sys.stderr)
        return 1
    account.give(var, who)
    environment = _environment(who, home, var, venv)
    os.chdir(home)
    if command == "test-compose":
        environment["DOCKER_CONFIG"] = str(install.install_compose(_tools(venv)))
        environment["BUILDX_CONFIG"] = str(var / "cache" / "buildx")
        return _test_containers(python, arguments, who, environment, home)
    if os.geteuid() == 0:
        if command == "up":
            environment[ports.HOLDERS] = ports.holders(environment)
        who.enter()
    with contextlib.suppress(OSError):
        (var / "home").mkdir(exist_ok=True)
    if command == "lint":
        return _lint(python, environment)
    if command in TESTS:
        # Most tests wait for servers more than they compute.
        whole = ["-n", "3", "--dist", "loadscope", "-m", TESTS[command]]
        words = ["-m", "pytest", "-p", "no:cacheprovider", *(arguments or whole)]
    elif command == "bench":
        words = ["-m", "bench", *arguments]
    else:
        words = ["-m", "stack", command, *arguments]
    sys.stdout.flush()
    return _become([python, *words], environment)


def check_backends(environment: Mapping[str, str]) -> None:
    """Raises UsageError for a value of `BACKENDS` that `make test` does not take."""
    value = environment.get("BACKENDS")
    if value and value not in BACKENDS:
        raise UsageError(f"BACKENDS={value} is unknown\nit takes: {', '.join(BACKENDS)}")


def _test_containers(
    python: str, arguments: list[str], who: account.Account, environment: dict[str, str], home: Path
) -> int:
    """The tests on containers, as an ordinary user where the Docker engine is our own. Returns their exit status."""
    chosen = arguments or ["-m", "needs_stack and not long", "tests/containers", "tests/resilience"]
    argv = [python, "-m", "pytest", "-p", "no:cacheprovider", *chosen]
    environment |= {"FLEET": "containers", "PYTHONDONTWRITEBYTECODE": "1"}
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # an engine must not be left behind
    with contextlib.ExitStack() as cleanup:
        enter = None
        if not engine.answers(environment):
            if os.geteuid():
                return _as_root("test-compose", arguments)
            install.install_packages("engine", install.choose_python(who.succeeds))
            install.say("starting a Docker engine for the tests: none runs here")
            environment["DOCKER_HOST"] = cleanup.enter_context(engine.running(who.gid))
            enter = who.enter
        consul = shutil.which("consul", path=environment["PATH"])
        stood_in = engine.provide(home, python, consul, environment)
        if stood_in:
            print(
                f"note: stand-ins made of Debian's packages, tagged alike, are used for {', '.join(stood_in)}",
                flush=True,
            )
        tests = subprocess.Popen(argv, env=environment, preexec_fn=enter)
        cleanup.callback(_end, tests)
        return tests.wait()


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(120)
        process.kill()


def _as_root(command: str, arguments: list[str]) -> NoReturn:
    """The same command once more, by sudo; the tests themselves are run by the one who called it."""
    kept = [
        f"{name}={value}" for name, value in os.environ.items() if name not in {"HOME", "USER", "LOGNAME"}
    ]
    words = [*install.as_root("no Docker engine runs here, or you may not use it"), "env", *kept]
    sys.stdout.flush()
    return _become([*words, sys.executable, "-m", "stack.launch", command, *arguments], dict(os.environ))


def _become(argv: list[str], environment: Mapping[str, str]) -> NoReturn:
    os.execvpe(argv[0], argv, environment)  # noqa: S606  (an argument list, no shell)


def _home_and_account(environment: Mapping[str, str], tell: bool) -> tuple[Path, account.Account]:
    """Where the code runs from, and who runs it. Where that user cannot read the checkout, a copy is made for him."""
    copy = account.COPIES / f"{REPO.name}-{hashlib.sha256(os.fsencode(REPO)).hexdigest()[:8]}"
    who = account.choose(REPO, [_var(REPO, environment), _var(copy, environment)], environment)
    closed = account.unreadable(who, REPO)
    if closed is None:
        return REPO, who
    if tell:
        print(
            f"note: {who.name} cannot read {closed}, so a copy of the code in {copy} runs"
            f" (to run in place: let others in there, chmod o+rX {closed}, or move the checkout)"
        )
    account.copy_code(REPO, copy)
    return copy, who


def _var(home: Path, environment: Mapping[str, str]) -> Path:
    return Path(environment.get("BREAKWATER_VAR") or home / "var").absolute()


def _install(level: str, home: Path, venv: Path, who: account.Account) -> None:
    python = install.choose_python(who.succeeds)
    install.install_packages(level, python)
    try:
        with install.only_one(home):
            install.install_venv(venv, home, level, python)
            install.install_consul(_tools(venv), who.succeeds)
    except PermissionError as error:
        raise account.AccountError(
            f"{error.filename} cannot be written: the checkout is not yours\nmake it yours, or use a clone of your own"
        ) from None


def _tools(venv: Path) -> Path:
    return venv / "tools"


def _environment(who: account.Account, home: Path, var: Path, venv: Path) -> dict[str, str]:
    kept = account.environment_for(who, os.environ, var) if os.geteuid() == 0 else dict(os.environ)
    cache = var / "cache"
    # Compiled code is kept: without it each of forty programs compiles every library anew, in seconds of processor time.
    kept.pop("PYTHONDONTWRITEBYTECODE", None)
    return {
        **kept,
        # The system's programs come before Consul's own copy, so that a consul on PATH wins.
        "PATH": f"{install.search_path()}:{_tools(venv) / 'bin'}",
        "PYTHONPATH": str(home),
        "PYTHONPYCACHEPREFIX": str(cache / "pycache"),
        "RUFF_CACHE_DIR": str(cache / "ruff"),
        "MYPY_CACHE_DIR": str(cache / "mypy"),
        "HYPOTHESIS_STORAGE_DIRECTORY": str(cache / "hypothesis"),
    }


def _clean(home: Path, var: Path, venv: Path) -> int:
    """Take away what `up` and `test` made: state, virtual environment, copy of the code. Debian packages stay."""
    if processes.of_stack(var):
        print("error: the stack is running\nend it first: make down", file=sys.stderr)
        return 1
    for folder in (var, venv, *([home] if home != REPO else [])):
        shutil.rmtree(folder, ignore_errors=True)
        print(f"removed {folder}")
    return 0


def _lint(python: str, environment: Mapping[str, str]) -> int:
    worst = 0
    for words in LINTERS:
        print(f"$ {' '.join(words)}", flush=True)
        worst = max(worst, subprocess.run([python, "-m", *words], env=environment).returncode)
    return worst


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
