"""Running the tests on containers: on a Docker engine of our own where none runs, with stand-ins for images that cannot be pulled.

Standard library only: `stack.launch` runs it as root before it becomes an ordinary user.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NoReturn

from stack.install import account, packages

FOLDER = account.COPIES / "docker"
"""Images stay here from one run to the next."""
START_S = 60.0
STOP_S = 60.0
PULL_S = 600.0
BUILD_S = 900.0

BASE = "breakwater-standin"
"""The bare Debian's name, and the label of all that is made of it."""
OFFICIAL = ""
_INSTALL = "RUN apt-get install -q -y --no-install-recommends"
STANDINS: Mapping[str, str] = {
    "consul": "COPY consul /usr/local/bin/consul",
    "haproxy": f"{_INSTALL} haproxy",
    "redis": f"{_INSTALL} redis-server",
    "postgres": "RUN mkdir -p /etc/postgresql-common"
    " && echo 'create_main_cluster = false' > /etc/postgresql-common/createcluster.conf\n"
    f"{_INSTALL} postgresql",
    "python": f"{_INSTALL} python3 python3-venv && ln -s /usr/bin/python3 /usr/local/bin/python",
}
"""Official image (without its tag) → what makes Debian's package of it out of a bare Debian."""
_BARE = Path("tests/fresh/bare")
"""In the repository: what makes the bare Debian."""


class EngineError(packages.InstallError):
    """No engine, or no image. The text says what to do."""


def run_tests(
    python: str, arguments: list[str], user: account.Account, environment: dict[str, str], home: Path
) -> int:
    """Run the tests on containers, as an ordinary user where the Docker engine is our own. Returns their exit status."""
    chosen = arguments or ["-m", "needs_stack and not long", "tests/containers", "tests/resilience"]
    argv = [python, "-m", "pytest", "-p", "no:cacheprovider", *chosen]
    environment |= {"FLEET": "containers", "PYTHONDONTWRITEBYTECODE": "1"}
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # an engine must not be left behind
    with contextlib.ExitStack() as cleanup:
        enter = None
        if not answers(environment):
            if os.geteuid():
                _as_root("test-compose", arguments)
            packages.install_packages("engine", packages.choose_python(user.succeeds))
            packages.say("starting a Docker engine for the tests: none runs here")
            environment["DOCKER_HOST"] = cleanup.enter_context(running(user.gid))
            enter = user.enter
        consul = shutil.which("consul", path=environment["PATH"])
        stood_in = provide(home, python, consul, environment)
        if stood_in:
            print(
                f"note: stand-ins made of Debian's packages, tagged alike, are used for {', '.join(stood_in)}",
                flush=True,
            )
        tests = subprocess.Popen(argv, env=environment, preexec_fn=enter)
        cleanup.callback(_end, tests, signal.SIGINT, 2 * STOP_S)
        return tests.wait()


def _as_root(command: str, arguments: list[str]) -> NoReturn:
    """The same command once more, by sudo; the tests themselves run as the caller."""
    kept = [
        f"{name}={value}" for name, value in os.environ.items() if name not in {"HOME", "USER", "LOGNAME"}
    ]
    words = [*packages.as_root("no Docker engine runs here, or you may not use it"), "env", *kept]
    sys.stdout.flush()
    os.execvp(words[0], [*words, sys.executable, "-m", "stack.launch", command, *arguments])


def answers(environment: Mapping[str, str]) -> bool:
    """Whether a Docker engine can be used from here."""
    return _docker(["info"], environment, 30).returncode == 0


@contextlib.contextmanager
def running(group: int) -> Iterator[str]:
    """An engine of our own, whose socket this group may use; gives the value for DOCKER_HOST. Only root can. Raises EngineError."""
    FOLDER.mkdir(parents=True, exist_ok=True, mode=0o755)
    # What the engine has mounted in there may outlive it for a moment.
    with tempfile.TemporaryDirectory(
        prefix="breakwater-engine-", dir="/run", ignore_cleanup_errors=True
    ) as name:
        run = Path(name)
        run.chmod(0o755)
        host = f"unix://{run}/docker.sock"
        argv = ["dockerd", "--data-root", str(FOLDER), "--exec-root", str(run / "exec")]
        argv += ["--pidfile", str(run / "pid"), "-H", host, "--group", str(group)]
        # Beside what else runs here each container counts as one, as it would with a machine to itself; else all as one.
        argv += ["--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent", "/"]
        with (run / "log").open("wb") as log:
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        try:
            until = time.monotonic() + START_S
            while not answers({**os.environ, "DOCKER_HOST": host}):
                if process.poll() is not None or time.monotonic() > until:
                    said = "\n".join((run / "log").read_text(errors="replace").splitlines()[-8:])
                    raise EngineError(
                        f"no Docker engine could be started:\n{said}\nstart one, and run this again"
                    )
                time.sleep(0.2)
            _empty({**os.environ, "DOCKER_HOST": host})
            yield host
        finally:
            _end(process, signal.SIGTERM, STOP_S)
            subprocess.run(
                ["umount", str(run / "exec" / "netns" / "default")], capture_output=True, timeout=10
            )


def _empty(environment: Mapping[str, str]) -> None:
    """What a run that was broken off has left; images stay."""
    left = _docker(["ps", "--all", "--quiet"], environment, 30).stdout.split()
    for words in (
        ["rm", "--force", "--volumes", *left],
        ["network", "prune", "--force"],
        ["volume", "prune", "--force"],
    ):
        if left:
            _docker(words, environment, 120)


def _end(process: subprocess.Popen[bytes], number: int, within_s: float) -> None:
    """The signal, and SIGKILL where that has not been enough."""
    if process.poll() is None:
        process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(within_s)
        process.kill()
        process.wait(STOP_S)


def provide(repo: Path, python: str, consul: str | None, environment: Mapping[str, str]) -> list[str]:
    """See to it that the Compose file's images are there, but for our own: as they are, else pulled, else as stand-ins.

    `python` is one with pip, `consul` the program. Returns those that are stand-ins. Raises EngineError.
    """
    stood_in: list[str] = []
    recipe = _recipe(repo)
    base = f"{BASE}:{recipe}"
    for image in _images(environment):
        made_by = _made_by(image, environment)
        if made_by == recipe:
            stood_in.append(image)
        elif made_by == OFFICIAL:
            continue
        elif not stood_in and _docker(["pull", "--quiet", image], environment, PULL_S).returncode == 0:
            packages.say(f"pulled {image}")
        else:
            if _made_by(base, environment) is None:
                _base(repo, python, base, recipe, environment)
            _stand_in(image, base, consul, environment)
            stood_in.append(image)
    # What an earlier recipe made has lost its name by now.
    _docker(["image", "prune", "--force", "--filter", f"label={BASE}"], environment, 120)
    return stood_in


def _recipe(repo: Path) -> str:
    """Names what stand-ins are made by: after a change of it they are made again."""
    text = repr(sorted(STANDINS.items())).encode() + (repo / _BARE).read_bytes()
    return hashlib.sha256(text).hexdigest()[:12]


def _images(environment: Mapping[str, str]) -> list[str]:
    asked = _docker(["compose", "config", "--format", "json"], environment, 60)
    try:
        services = json.loads(asked.stdout)["services"].values()
    except (ValueError, KeyError):
        raise EngineError(f"docker-compose.yml cannot be read:\n{asked.stdout[-800:]}") from None
    built = [one for one in services if "build" in one]
    ours = {one["image"] for one in built}
    bases = {base for one in built for base in one["build"].get("args", {}).values()}
    return sorted(({one["image"] for one in services} | bases) - ours)


def _made_by(image: str, environment: Mapping[str, str]) -> str | None:
    """The recipe that a stand-in was made by, `OFFICIAL` for any other image, None where there is no such image."""
    label = '{{index .Config.Labels "' + BASE + '"}}'
    asked = _docker(["image", "inspect", "--format", label, image], environment, 30)
    return None if asked.returncode else asked.stdout.strip()


def _stand_in(image: str, base: str, consul: str | None, environment: Mapping[str, str]) -> None:
    name = image.partition(":")[0]
    if name not in STANDINS:
        raise EngineError(
            f"{image} cannot be pulled, and there is no stand-in for it\npull it, and run this again"
        )
    packages.say(f"building a stand-in for {image} from Debian's packages: it cannot be pulled here")
    with tempfile.TemporaryDirectory(prefix="breakwater-standin-") as folder:
        if name == "consul" and consul is not None:
            shutil.copyfile(consul, Path(folder) / "consul")
            (Path(folder) / "consul").chmod(0o755)
        _build(folder, f"FROM {base}\n{STANDINS[name]}\n", image, environment)


def _base(repo: Path, python: str, tag: str, recipe: str, environment: Mapping[str, str]) -> None:
    """A bare Debian that knows this machine's mirror and index, with the lists of its packages."""
    packages.say("making a bare Debian for them (debootstrap)")
    with tempfile.TemporaryDirectory(prefix="breakwater-standin-", dir="/var/tmp") as folder:  # noqa: S108
        root = Path(folder) / "root"
        # The system's python3 may know nothing of pip, and so of its configuration.
        path = f"PATH={Path(python).parent}:{environment['PATH']}"
        made = packages.logged(["env", path, str(repo / _BARE), str(root)], timeout_s=600)
        if made:
            raise EngineError(f"no bare Debian could be made:\n{made}")
        with subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE) as tar:
            argv = ["docker", "import", "-", f"{BASE}-bare"]
            done = subprocess.run(
                argv, stdin=tar.stdout, capture_output=True, env=dict(environment), timeout=BUILD_S
            )
        if done.returncode:
            raise EngineError(f"docker import: {done.stderr.decode(errors='replace')[-800:]}")
        _build(
            str(root / "mnt"),
            f"FROM {BASE}-bare\nLABEL {BASE}={recipe}\nENV DEBIAN_FRONTEND=noninteractive\nRUN apt-get update -q\n",
            tag,
            environment,
        )


def _build(folder: str, dockerfile: str, tag: str, environment: Mapping[str, str]) -> None:
    argv = ["build", "--quiet", "--network", "host", "--tag", tag, "--file", "-", folder]
    done = _docker(argv, {**environment, "DOCKER_BUILDKIT": "0"}, BUILD_S, dockerfile)
    if done.returncode:
        raise EngineError(f"{tag} could not be built:\n{done.stdout[-1500:]}")


def _docker(
    words: list[str], environment: Mapping[str, str], timeout_s: float, given: str = ""
) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            ["docker", *words],
            input=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=dict(environment),
            timeout=timeout_s,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(words, 1, str(error))
