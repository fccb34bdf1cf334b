"""The upstream that answers 200 bytes, and the proxies that the edge is compared with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from bench.programs import FEEDING_CORE, MEASURED_CORE, pinned, program
from tests.support.servers import Process, free_port

CONF = Path(__file__).parent / "conf"
BODY = '{"data":"' + "x" * 189 + '"}'  # 200 bytes


def fill(name: str, target: Path, **values: str | int) -> Path:
    """Write bench/conf/<name> to `target` with each @KEY@ replaced."""
    text = (CONF / name).read_text()
    for key, value in values.items():
        text = text.replace(f"@{key}@", str(value))
    target.write_text(text)
    return target


@contextlib.contextmanager
def nginx(folder: Path, name: str, port: int, core: int, **values: str | int) -> Iterator[Process]:
    """nginx with bench/conf/<name> on a port, in a folder of its own."""
    prefix = folder / f"nginx-{port}"
    (prefix / "tmp").mkdir(parents=True)
    config = fill(name, prefix / "nginx.conf", **values)
    command = ["nginx", "-e", "stderr", "-p", str(prefix), "-c", str(config)]
    with program(pinned(core, command), prefix / "log", port=port) as process:
        yield process


@contextlib.contextmanager
def upstream(folder: Path, *, everywhere: bool = False) -> Iterator[int]:
    """The upstream; yields its port. `everywhere`: it answers on all of 127.0.0.0/8, not on 127.0.0.1 alone."""
    port = free_port()
    listen = f"{'0.0.0.0' if everywhere else '127.0.0.1'}:{port}"  # noqa: S104  (fake instances have an address each)
    with nginx(folder, "upstream.conf", port, FEEDING_CORE, LISTEN=listen, BODY=BODY):
        yield port


@contextlib.contextmanager
def minimal_haproxy(folder: Path, upstream_port: int, log_format: str = "") -> Iterator[tuple[int, int]]:
    """HAProxy on the hand-written minimum, with a line of this format for each request, or none; yields (port, pid)."""
    port = free_port()
    log = f"log global\n    {log_format}" if log_format else "no log"
    config = fill("minimal.cfg", folder / f"minimal-{port}.cfg", PORT=port, UPSTREAM=upstream_port, LOG=log)
    command = ["haproxy", "-W", "-db", "-f", str(config)]
    with program(pinned(MEASURED_CORE, command), folder / f"minimal-{port}.log", port=port) as process:
        yield port, process.pid


@contextlib.contextmanager
def nginx_proxy(folder: Path, upstream_port: int) -> Iterator[tuple[int, int]]:
    """nginx as a proxy; yields (port, pid)."""
    port = free_port()
    with nginx(folder, "proxy.conf", port, MEASURED_CORE, PORT=port, UPSTREAM=upstream_port) as process:
        yield port, process.pid


@contextlib.contextmanager
def caddy(folder: Path, upstream_port: int) -> Iterator[tuple[int, int]]:
    """Caddy as a proxy; yields (port, pid)."""
    port = free_port()
    config = fill("Caddyfile", folder / "Caddyfile", PORT=port, UPSTREAM=upstream_port)
    command = ["caddy", "run", "--config", str(config), "--adapter", "caddyfile"]
    home = {"HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    with program(pinned(MEASURED_CORE, command), folder / "caddy.log", port=port, env=home) as process:
        yield port, process.pid
