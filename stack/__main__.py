"""`python -m stack <command>`: what the Makefile calls once everything is installed."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import structlog
import typer
from pydantic import ValidationError
from rich.console import Console

from stack import report
from stack.errors import BadRequest, StackError
from stack.run.api import INFRASTRUCTURE, Stack
from stack.servers import consul_agent, redis_servers
from stack.servers.vault import Vault
from stack.settings import StackSettings

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 160)

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
# `default` is Redis' own; the others begin the names of keys that belong to no service of that name.
RESERVED = {"master", *consul_agent.SHARED_POLICIES, *consul_agent.RETIRED, "default", "gateway", "stale"}

Service = Annotated[str, typer.Option("--service", "-s", help="a service, for example users")]
Number = Annotated[int | None, typer.Option("--number", "-n", help="how many, or which")]


@app.command()
def up() -> None:
    """Start everything and wait until it serves."""
    if os.geteuid() == 0:
        raise StackError("the stack does not run as root", "`make up` becomes an ordinary user first")
    stack = Stack()
    began = time.monotonic()
    with _progress() as step:
        started = stack.up(step)
    if started:
        console.print(f"[green]serving[/] after {time.monotonic() - began:.1f} s\n")
    else:
        console.print("the stack is running already; nothing was changed\n")
    report.print_where(console, stack)


@app.command()
def down() -> None:
    """End everything: instances drain first."""
    stack = Stack()
    with _progress() as step:
        ended = stack.down(step)
    console.print(f"the stack is down ({ended} processes ended)" if ended else "the stack was not running")


@app.command()
def status() -> None:
    """What runs where: Consul's and HAProxy's view side by side, health and breakers."""
    stack = _running()
    report.print_status(console, stack)


@app.command()
def logs(service: Service = "", lines: int = 40, follow: bool = False) -> None:
    """The end of the logs: of all, of one service, or of one program (consul, haproxy, users-2, …), or the edge's `requests`."""
    stack = Stack()
    files = _log_files(stack, service)
    if follow:
        sys.stdout.flush()
        os.execvp("tail", ["tail", "-n", str(lines), "-F", *map(str, files)])  # noqa: S606
    for file in files:
        console.rule(file.stem, align="left")
        text = file.read_text(errors="replace").splitlines()[-lines:]
        print("\n".join(text), flush=True)


@app.command()
def kill(service: Service, number: Number = 1) -> None:
    """kill -9 one instance (N is its number); it is started again."""
    stack = _running()
    name = f"{service}-{number}"
    have = [one.id for one in stack.instances(service)]
    if name not in have:
        raise BadRequest(f"there is no instance {name}", f"there are: {', '.join(have) or 'none'}")
    console.print(f"{name}: killed (pid {stack.kill(name)}); it will be back in a moment: make status")


@app.command()
def stop(service: Service, number: Number = None) -> None:
    """Drain and stop all instances of a service, or N of them."""
    stack = _running()
    with _progress() as step:
        step(f"draining {service}")
        stopped = stack.stop_service(service, number)
    console.print(
        f"drained and stopped: {', '.join(stopped)}" if stopped else f"no instance of {service} was running"
    )


@app.command()
def start(service: Service, number: Number = None) -> None:
    """Start the stopped instances of a service, or N of them."""
    stack = _running()
    with _progress() as step:
        step(f"starting {service}")
        started = stack.start_service(service, number)
        stack.wait_serving(30)
    console.print(f"started: {', '.join(started)}" if started else f"every instance of {service} was running")


@app.command()
def scale(service: Service, number: Annotated[int, typer.Option("--number", "-n")]) -> None:
    """Make a service have N instances, until the next `up`."""
    stack = _running()
    with _progress() as step:
        step(f"scaling {service} to {number}")
        added, removed = stack.scale(service, number)
        stack.wait_serving(60)
    changes = [f"added {', '.join(added)}"] * bool(added) + [f"removed {', '.join(removed)}"] * bool(removed)
    console.print(f"{service}: {'; '.join(changes) or f'there are {number} already'}")


@app.command()
def seed() -> None:
    """Demonstration data through the edge, an administrator among it."""
    from stack.seed import Seed

    stack = _running()
    with _progress() as step:
        edge = stack.settings.edge_url.removeprefix("http://")
        counts = Seed(edge, stack.vault, stack.environment("auth"), step).run()
    console.print(", ".join(f"{count} {name}" for name, count in counts.items()))
    console.print(f"administrator: {stack.vault.admin_file} (email and password)")


@app.command()
def recount() -> None:
    """Bring the counts of posts in users in step with what posts has."""
    stack = _running()
    argv = [sys.executable, "-m", "services.users", "recount"]
    raise typer.Exit(subprocess.run(argv, env=stack.environment("users"), timeout=3600).returncode)


@app.command()
def mail(number: Annotated[int, typer.Option("--number", "-n")] = 5) -> None:
    """The last mails that the stack's own mail server has kept."""
    from stack.mails import shown

    for one in shown(Stack().settings.mail_dir, number):
        console.rule()
        print(one, flush=True)


@app.command()
def plan() -> None:
    """What the edge controller would do now, and why."""
    stack = _running()
    argv = [sys.executable, "-m", "haproxy.controller", "plan"]
    raise typer.Exit(subprocess.run(argv, env=stack.edge_environment(), timeout=60).returncode)


@app.command("dead-letters")
def dead_letters(
    service: Service = "",
    which: Annotated[str, typer.Option("--id", help="one of them")] = "",
    replay: Annotated[bool, typer.Option("--replay", help="hand them to their service again")] = False,
) -> None:
    """The events that services gave up: a list, or one whole."""
    from stack import dead_letters as letters

    if not letters.run(console, _running(), service, which, replay):
        raise typer.Exit(1)


@app.command()
def docs(to: Path | None = None) -> None:
    """Write what is made from the code: docs/events/asyncapi.yaml."""
    # Both import what other commands have no use for, which takes half a second.
    from stack import asyncapi

    path, text = to or asyncapi.FILE, asyncapi.generate()
    changed = not path.exists() or path.read_text() != text
    if changed:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    console.print(f"{path}: {'written' if changed else 'nothing has changed'}")


@app.command()
def token(name: str) -> None:
    """Print the file with the Consul token of a service; a new name gets a token of its own."""
    print(_give_token(Stack(), name))


@app.command()
def run(file: Path, service: Service) -> None:
    """Run a program of yours in the foreground, with a token for `service` and the stack's addresses."""
    stack = Stack()
    _give_token(stack, service)
    if not file.is_file():
        raise BadRequest(f"there is no file {file}")
    ours = stack.environment(service)
    # A secret that the shell holds must not outrank the file that is meant.
    kept = {name: value for name, value in os.environ.items() if f"{name}_FILE" not in ours}
    environment = {**kept, **ours, "PATH": os.environ["PATH"]}
    environment.setdefault("LOG_FORMAT", "console")
    os.execve(sys.executable, [sys.executable, str(file)], environment)  # noqa: S606


@app.command("keep-tokens", hidden=True)
def keep_tokens() -> None:
    """Give Consul its policies and tokens back whenever it has lost them. Run by supervisord."""
    settings = StackSettings()
    acl = consul_agent.ConsulAcl(settings.consul_address, Vault(settings.secrets_dir))
    consul_agent.keep_tokens(acl, [], settings.consul_production)


def _running() -> Stack:
    stack = Stack()
    stack.need_running()
    return stack


def _give_token(stack: Stack, name: str) -> Path:
    reserved = name in RESERVED or (name.startswith(redis_servers.GATEWAY) and name not in stack.fleet)
    if reserved or not NAME.fullmatch(name):
        raise BadRequest(
            f"{name!r} cannot be a service's name",
            "a-z, 0-9 and -, at most 63, and no name of the stack's own",
        )
    try:
        stack.admit(name)
    except OSError as error:
        raise StackError(f"{name} gets no token now: {error}", "see what runs: make status") from None
    return stack.vault.consul_token_file(name)


def _log_files(stack: Stack, name: str) -> list[Path]:
    have = sorted(stack.settings.log_dir.glob("*.log"))
    if not name:
        found = have
    elif name in stack.fleet:
        found = [file for file in have if re.fullmatch(rf"{re.escape(name)}-\d+", file.stem)]
    else:
        found = [file for file in have if file.stem == name]
    if not found:
        names = ", ".join([*stack.fleet, *INFRASTRUCTURE, "requests"])
        raise BadRequest(
            f"there are no logs of {name!r}" if name else "there are no logs yet", f"there can be: {names}"
        )
    return found


@contextlib.contextmanager
def _progress() -> Iterator[report.Step]:
    progress = report.Progress(console)
    try:
        yield progress.step
    finally:
        progress.close()


def main() -> int:
    """Errors that an operator can mend come out as two lines."""
    background = "keep-tokens" in sys.argv[1:2]
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.JSONRenderer() if background else structlog.dev.ConsoleRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO if background else logging.WARNING),
    )
    try:
        app()
    except StackError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except ValidationError as error:
        for one in error.errors():
            print(f"error: {str(one['loc'][0]).upper()}={one['input']}: {one['msg']}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
