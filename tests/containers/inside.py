"""What a container is asked from its own inside. Every image has a shell, and Python where it is ours; where it is not, a
container of ours in the same network namespace asks the network."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from docker.models.containers import Container

from tests.support.container_fleet import PROJECT, SERVICE, ContainerFleet

Place = tuple[str, int]
FOREIGN = {PROJECT: "", SERVICE: ""}
"""Labels of a container that is not the project's: an image that Compose has built gives it the project's."""
CONNECT_S = 1.5
_CONNECT = """
import json, os, socket, sys, threading, time
places, answers, wait_s = json.loads(sys.argv[1]), {}, float(sys.argv[2])
def ask(number, host, port):
    answers[number] = "no such name"
    try:
        address = socket.gethostbyname(host)
        answers[number] = "no answer"
        socket.create_connection((address, port), timeout=wait_s).close()
        answers[number] = "open"
    except ConnectionRefusedError:
        answers[number] = "refused"
    except OSError:
        pass
threads = [threading.Thread(target=ask, args=(n, *place), daemon=True) for n, place in enumerate(places)]
for thread in threads:
    thread.start()
# Docker knows its own names at once; for others it asks servers that may not be there.
until = time.monotonic() + wait_s + 0.5
for thread in threads:
    thread.join(max(until - time.monotonic(), 0))
print(json.dumps([answers[number] for number in range(len(places))]), flush=True)
os._exit(0)
"""


def run(container: Container, *argv: str) -> str:
    """What a command in the container prints, both kinds together. AssertionError when it fails."""
    done = container.exec_run(list(argv))
    text = str(done.output.decode(errors="replace"))
    assert done.exit_code == 0, f"{container.name}: {argv}: {text}"
    return text


def shell(container: Container, script: str) -> str:
    return run(container, "sh", "-c", script)


def service_of(container: Container) -> str:
    """Its name in the Compose file."""
    return str(container.labels[SERVICE])


def running(fleet: ContainerFleet) -> list[Container]:
    """Every container of the project that runs."""
    found: list[Container] = fleet.docker.containers.list(
        filters={"label": f"{PROJECT}={fleet.project}", "status": "running"}
    )
    return found


def one_of_each(fleet: ContainerFleet) -> dict[str, Container]:
    """Service → one of its containers that run."""
    return {service_of(one): one for one in running(fleet)}


def environment(container: Container) -> dict[str, str]:
    return dict(line.partition("=")[::2] for line in container.attrs["Config"]["Env"])


@dataclass(frozen=True)
class Entry:
    """One file or folder: permissions, owner, kind, path."""

    mode: int
    uid: int
    kind: str
    path: str


def entries(container: Container, *folders: str) -> list[Entry]:
    """What is under these folders, and they themselves; those that are not there are left out."""
    script = 'for f in "$@"; do [ -e "$f" ] && find "$f" -exec stat -c "%a %u %F%n" {} +; done; true'
    found = []
    for line in run(container, "sh", "-c", script, "sh", *folders).splitlines():
        mode, uid, rest = line.split(" ", 2)
        kind, _, path = rest.partition("/")
        found.append(Entry(int(mode, 8), int(uid), kind, f"/{path}"))
    return found


def reach(fleet: ContainerFleet, container: Container, places: Iterable[Place]) -> dict[Place, str]:
    """Place (address or name, and port) → `open`, `refused`, `no answer` or `no such name`, as it looks from the container."""
    asked = list(places)
    argv = ["python", "-I", "-S", "-c", _CONNECT, json.dumps(asked), str(CONNECT_S)]
    ours = fleet.containers("users")[0].attrs["Config"]["Image"]
    if container.attrs["Config"]["Image"] == ours:
        text = run(container, *argv)
    else:
        text = _beside(fleet, container, ours, argv)
    return dict(zip(asked, json.loads(text), strict=True))


def _beside(fleet: ContainerFleet, container: Container, image: str, argv: list[str]) -> str:
    """What a command of another image prints in the container's network."""
    other = fleet.docker.containers.run(
        image, argv, network_mode=f"container:{container.id}", detach=True, labels=FOREIGN
    )
    try:
        other.wait(timeout=60)  # what it has printed may come cut short before its end
        return str(other.logs().decode())
    finally:
        other.remove(force=True)


def reach_from_each(
    fleet: ContainerFleet, each: Mapping[str, Container], places: Sequence[Place]
) -> dict[str, dict[Place, str]]:
    """`reach` for each of these containers, by the same names."""
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda one: reach(fleet, one, places), each.values())
        return dict(zip(each, found, strict=True))


def vault(fleet: ContainerFleet) -> dict[str, str]:
    """Every secret that the first step has made: path in the vault → text."""
    # Digests and the administrator of the demonstration are no secrets of a service.
    return {path: text for path, text in fleet.secrets().items() if not path.endswith(".json")}


def found_in(secrets: Mapping[str, str], text: str) -> set[str]:
    """The secrets of which the text has one."""
    return {path for path, secret in secrets.items() if secret in text}
