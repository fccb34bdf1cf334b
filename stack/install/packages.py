"""Putting on the machine what Breakwater needs. Standard library only: this runs before there is a virtual environment.

Packages come from the machine's own package mirror, Python libraries from the index that pip is configured for; only
installing packages asks for root.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

OLDEST_PYTHON = (3, 11)
SYSTEM_PYTHON = "/usr/bin/python3"
CONSUL_SUITE = (
    "bullseye"  # the last Debian release that has Consul; a static binary, which runs on later ones
)
COMPOSE_SUITE = "trixie"  # the first one with Compose v2; the same
SEARCH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")

PROGRAMS = {
    "run": {"haproxy": "haproxy", "redis-server": "redis-server", "setpriv": "util-linux"},
    # Debian keeps PostgreSQL's own programs off PATH; this one comes with them.
    "test": {"nginx": "nginx-light", "pg_ctlcluster": "postgresql", "rabbitmq-server": "rabbitmq-server"},
    # `make up EVENTS=rabbitmq`.
    "rabbitmq": {"rabbitmq-server": "rabbitmq-server"},
    "bench": {"nginx": "nginx-light", "caddy": "caddy", "wrk": "wrk"},
    "compose": {"docker": "docker.io"},
    # Where no Docker engine runs, for one of our own; and for stand-ins of images that cannot be pulled.
    "engine": {"dockerd": "docker.io", "iptables": "iptables", "debootstrap": "debootstrap"},
}
"""Level → program → Debian package. They come on top of `run`."""

PIP_INSTALL = ("-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check")

LOCKS = {"run": ("requirements.lock",), "test": ("requirements.lock", "requirements-dev.lock")}

_APT = """
set -eu
if [ ! -e /usr/sbin/policy-rc.d ]; then
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    trap 'exit 130' HUP INT TERM
    printf '#!/bin/sh\\nexit 101\\n' > /usr/sbin/policy-rc.d
    chmod 755 /usr/sbin/policy-rc.d
fi
export DEBIAN_FRONTEND=noninteractive
apt-get -q update || true
apt-get -q install -y --no-install-recommends "$@"
for package in "$@"; do
    case $package in
        haproxy|redis-server|caddy|postgresql) unit=$package ;;
        nginx-light) unit=nginx ;;
        # With Erlang's port mapper.
        rabbitmq-server) unit="rabbitmq-server.service epmd.service epmd.socket" ;;
        docker.io) unit="docker.service docker.socket" ;;
        *) continue ;;
    esac
    if [ -d /run/systemd/system ]; then
        # shellcheck disable=SC2086
        systemctl disable --now $unit || true
    elif [ -x /usr/sbin/update-rc.d ]; then
        update-rc.d "${unit%%.*}" disable || true
    fi
done
"""
"""Run as root: nothing that is installed starts by itself, now or at the next boot."""


class InstallError(Exception):
    """What could not be installed, and what to do about it."""


Runner = Callable[[Sequence[str]], bool]
"""Whether a command succeeds as the user that will run the stack."""


def say(text: str) -> None:
    print(f"  {text}", flush=True)


def search_path() -> str:
    """PATH with the folders of system programs, which an ordinary Debian user lacks."""
    own = [part for part in os.environ.get("PATH", "").split(":") if part]
    return ":".join(dict.fromkeys([*own, *SEARCH]))


def install_packages(level: str, python: str) -> None:
    """Install the Debian packages that `level` misses. Raises InstallError."""
    wanted = dict(PROGRAMS["run"])
    wanted.update(PROGRAMS.get(level, {}))
    missing = sorted(
        {pkg for program, pkg in wanted.items() if not shutil.which(program, path=search_path())}
    )
    if not succeeds([python, "-c", "import venv, ensurepip"]):
        missing.append("python3-venv")
    if not missing:
        return
    if not shutil.which("apt-get", path=search_path()):
        raise InstallError(
            f"missing: {', '.join(missing)}\nthis machine has no apt-get: install these yourself"
        )
    say(f"installing {', '.join(missing)} (apt)")
    began = time.monotonic()
    by_hand = f"as root: apt-get install {' '.join(missing)}; then run this again"
    root = as_root(f"missing: {', '.join(missing)}", by_hand)
    done = logged([*root, "sh", "-c", _APT, "sh", *missing], timeout_s=900)
    if done:
        raise InstallError(
            f"apt could not install {', '.join(missing)}:\n{done}\n"
            "is the network there, and does `apt-get update` work? then run the command again"
        )
    say(f"packages installed in {time.monotonic() - began:.0f} s")


def as_root(reason: str, by_hand: str = "start it again as root") -> list[str]:
    """The words before a command that only root may run. Raises InstallError, with `reason` and what to do `by_hand`."""
    if os.geteuid() == 0:
        return []
    sudo = shutil.which("sudo", path=search_path())
    if sudo is None:
        raise InstallError(f"{reason}, and there is no sudo\n{by_hand}")
    if sys.stdin.isatty():
        return [sudo]
    if not succeeds([sudo, "-n", "true"]):
        raise InstallError(f"{reason}, and sudo asks for a password\n{by_hand}")
    return [sudo, "-n"]


def install_consul(tools: Path, usable: Runner) -> None:
    """Make sure that there is a `consul`: one on PATH wins, else Debian's goes to `tools`/bin. Raises InstallError."""
    found = shutil.which("consul", path=search_path())
    if found and usable([found, "version"]):
        return
    target = tools / "bin" / "consul"
    if target.exists() and usable([str(target), "version"]):
        return
    say("getting Consul from the package mirror of this machine")
    _fetch_program("consul", CONSUL_SUITE, "usr/bin/consul", target, "put a consul (1.8 or newer) on PATH")
    if not usable([str(target), "version"]):
        raise InstallError(f"{target} does not run on this machine\nput a consul (1.8 or newer) on PATH")


def install_compose(tools: Path) -> Path:
    """Make sure that `docker compose` works: a plugin of the machine's own wins, else Debian's goes to `tools`. Raises InstallError.

    Returns the folder for DOCKER_CONFIG, under which it is found.
    """
    config = tools / "docker"
    plugin = config / "cli-plugins" / "docker-compose"
    if not plugin.exists() and not succeeds(["docker", "compose", "version"]):
        say("getting Docker Compose from the package mirror of this machine")
        inside = "usr/libexec/docker/cli-plugins/docker-compose"
        _fetch_program("docker-compose", COMPOSE_SUITE, inside, plugin, "install Docker Compose v2 yourself")
    config.mkdir(parents=True, exist_ok=True)
    return config


def _fetch_program(package: str, suite: str, inside: str, target: Path, remedy: str) -> None:
    """Put the file `inside` of a Debian package of another release at `target`."""
    with tempfile.TemporaryDirectory(prefix=f"breakwater-{package}-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # apt downloads as a user of its own
        _download(folder, package, suite, remedy)
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = target.with_name(f".{target.name}.new")
        shutil.copyfile(folder / "root" / inside, fresh)
        fresh.chmod(0o755)
        fresh.replace(target)


def _download(folder: Path, package: str, suite: str, remedy: str) -> None:
    """Debian's package, unpacked into `folder`/root, by lists and a cache of our own: the machine's own lists stay as they are."""
    for part in ("lists/partial", "cache/archives/partial", "parts"):
        (folder / part).mkdir(parents=True)
    (folder / "sources.list").write_text(_mirror_line(package, suite, remedy) + "\n")
    options = [
        f"Dir::Etc::sourcelist={folder}/sources.list",
        f"Dir::Etc::sourceparts={folder}/parts",
        f"Dir::State::Lists={folder}/lists",
        f"Dir::Cache={folder}/cache",
        "APT::Get::List-Cleanup=0",
    ]
    apt = ["apt-get", "-q", *(word for option in options for word in ("-o", option))]
    for command in ([*apt, "update"], [*apt, "download", package]):
        failed = logged(command, timeout_s=300, cwd=folder)
        if failed:
            raise InstallError(
                f"{package} could not be fetched:\n{failed}\nis the network there? or {remedy}, and run this again"
            )
    packages = list(folder.glob(f"{package}_*.deb"))
    failed = (
        logged(["dpkg-deb", "-x", str(packages[0]), str(folder / "root")], timeout_s=60)
        if packages
        else "no file"
    )
    if failed:
        raise InstallError(f"the package {package} could not be unpacked:\n{failed}")


def _mirror_line(package: str, suite: str, remedy: str) -> str:
    """A sources line for another suite on the mirror that this machine uses for Debian."""
    asked = subprocess.run(
        ["apt-get", "indextargets", "Created-By: Packages"], capture_output=True, text=True, timeout=60
    )
    codename = _os_release().get("VERSION_CODENAME", "")
    for block in asked.stdout.split("\n\n"):
        target = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
        if codename in {target.get("Codename"), target.get("Release")} and target.get("Component") == "main":
            key = target.get("Signed-By", "")
            option = f" [signed-by={key}]" if key.startswith("/") else ""
            return f"deb{option} {target['Site']} {suite} main"
    raise InstallError(f"no Debian mirror is configured for apt, so {package} cannot be fetched\n{remedy}")


def _os_release() -> dict[str, str]:
    lines = Path("/etc/os-release").read_text().splitlines()
    return {key: value.strip('"') for key, _, value in (line.partition("=") for line in lines)}


def choose_python(usable: Runner) -> str:
    """The interpreter for the virtual environment: the system's, else the one that runs this. Raises InstallError."""
    check = f"import sys; sys.exit(sys.version_info < {OLDEST_PYTHON})"
    for candidate in (SYSTEM_PYTHON, sys.executable):
        if Path(candidate).exists() and usable([candidate, "-c", check]):
            return candidate
    raise InstallError(
        "Python 3.11 or newer is needed as /usr/bin/python3 or python3\nDebian 12 has it: apt-get install python3"
    )


def install_venv(folder: Path, repo: Path, level: str, python: str) -> None:
    """Make `folder` a virtual environment with exactly the locked packages; nothing happens where it is one already."""
    locks = LOCKS["run" if level == "run" else "test"]
    digests = {name: hashlib.sha256((repo / name).read_bytes()).hexdigest() for name in LOCKS["test"]}
    stamp = folder / "breakwater.json"
    binary = str(folder / "bin" / "python")
    try:
        have = json.loads(stamp.read_text())
    except (OSError, ValueError):
        have = {}
    if all(have.get(name) == digests[name] for name in locks) and succeeds([binary, "-c", ""]):
        return
    began = time.monotonic()
    say(f"making the virtual environment from {locks[-1]} (pip)")
    stamp.unlink(missing_ok=True)
    _empty(folder)
    failed = logged([python, "-m", "venv", str(folder)], timeout_s=120)
    failed = failed or logged(
        [binary, *PIP_INSTALL, "--require-hashes", "-r", str(repo / locks[-1])], timeout_s=1200
    )
    if failed:
        raise InstallError(
            f"the virtual environment could not be made:\n{failed}\n"
            "is the network there, and is pip's index the right one (pip config list)? then run this again"
        )
    stamp.write_text(json.dumps({name: digests[name] for name in locks}, indent=2) + "\n")
    say(f"virtual environment made in {time.monotonic() - began:.0f} s")


def make_locks(repo: Path, folder: Path, python: str, upgrade: bool) -> None:
    """Resolve requirements*.in into the lock files, with a hash for every file. Pins that still fit stay, unless `upgrade`."""
    say("making the lock files (pip-tools)")
    tool = str(folder / "bin" / "python")
    options = [
        "--quiet",
        "--generate-hashes",
        "--strip-extras",
        "--allow-unsafe",
        "--no-header",
        "--no-annotate",
    ]
    options += ["--no-emit-index-url", "--no-emit-find-links", "--no-emit-trusted-host"]
    options += ["--upgrade"] if upgrade else []
    steps = [
        [python, "-m", "venv", "--clear", str(folder)],
        [tool, *PIP_INSTALL, "pip-tools"],
    ]
    for source, lock in (("requirements.in", LOCKS["test"][0]), ("requirements-dev.in", LOCKS["test"][1])):
        steps.append([tool, "-m", "piptools", "compile", *options, "--output-file", lock, source])
    for step in steps:
        failed = logged(step, timeout_s=900, cwd=repo)
        if failed:
            raise InstallError(f"the lock files could not be made:\n{failed}")


def _empty(folder: Path) -> None:
    """As `venv --clear`, but Consul stays."""
    for entry in folder.iterdir() if folder.exists() else ():
        if entry.is_dir() and not entry.is_symlink() and entry.name != "tools":
            shutil.rmtree(entry)
        elif entry.name != "tools":
            entry.unlink()


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """One installation into a folder at a time; another waits for it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another installation in this folder")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def succeeds(argv: Sequence[str], **options: Any) -> bool:
    """Whether a command ends well within a minute; `options` are those of `subprocess.run`."""
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, **options)
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0


def logged(argv: Sequence[str], timeout_s: float, cwd: Path | None = None) -> str:
    """Run it quietly. Returns "" when it succeeded, else the end of its output."""
    try:
        done = subprocess.run(
            argv,
            stdin=None if sys.stdin.isatty() else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout_s,
            cwd=cwd,
        )
    except subprocess.TimeoutExpired:
        return f"    {argv[0]} had not ended after {timeout_s:.0f} s"
    except OSError as error:
        return f"    {error}"
    if done.returncode == 0:
        return ""
    lines = done.stdout.decode(errors="replace").strip().splitlines()[-12:]
    return "\n".join(f"    {line}" for line in lines) or f"    exit status {done.returncode}"
