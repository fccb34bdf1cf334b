"""What the commands show: progress while they work, where things are, and what runs where."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from rich.console import Console
from rich.status import Status
from rich.table import Table

from haproxy.controller.errors import Unreachable
from haproxy.controller.runtime.observed import ObservedServer
from haproxy.controller.settings import EdgeSettings
from stack import views
from stack.run.api import InstanceInfo, Stack

Step = Callable[[str], None]

COLOURS = {"passing": "green", "warning": "yellow", "critical": "red", "maintenance": "yellow"}


class Progress:
    """A line for each finished step with the time it took, and a spinner on the one at work where there is a terminal."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.text = ""
        self.began = time.monotonic()
        self.spinner: Status | None = None

    def step(self, text: str) -> None:
        self.close()
        self.text, self.began = text, time.monotonic()
        self.spinner = self.console.status(text)
        self.spinner.start()

    def close(self) -> None:
        """End the step at work."""
        if self.spinner is not None:
            self.spinner.stop()
            self.console.print(f"  {self.text} [dim]{time.monotonic() - self.began:.1f} s[/]")
            self.spinner = None


def print_where(console: Console, stack: Stack) -> None:
    """URLs, services with their ports, and three commands to try."""
    settings = stack.settings
    edge = settings.edge_url
    secure = edge.replace("http://", "https://").replace(
        str(settings.edge_http_port), str(settings.edge_https_port)
    )
    places = Table(show_header=False, box=None, pad_edge=False)
    places.add_row("edge", f"{edge}  {secure}")
    places.add_row("statistics", f"http://127.0.0.1:{settings.stats_port}/stats")
    places.add_row("Consul", f"http://{settings.consul_address}/ui")
    places.add_row("limits", _limits(stack.edge_settings()))
    for name in stack.fleet:
        ports = [str(one.port) for one in stack.instances(name)]
        places.add_row(name, f"{len(ports)} instances: {' '.join(ports)}")
    console.print(places)
    console.print("\ntry:")
    # A new address each time, so that the line works more than once.
    body = f'{{"email":"ada.{secrets.token_hex(3)}@example.com",'
    body += '"password":"correct horse battery","firstName":"Ada","lastName":"Lovelace"}'
    console.print(f"  curl -i {edge}/api/products", markup=False)
    console.print(f"  curl -i {edge}/api/posts", markup=False)
    console.print(
        f"  curl -i {edge}/api/auth/register -H 'Content-Type: application/json' -d '{body}'", markup=False
    )


def _limits(edge: EdgeSettings) -> str:
    """What a first load test runs into, and the variables that change it."""
    source, subject = (f"{n:,}" if n else "no limit" for n in (edge.edge_rate_source, edge.edge_rate_subject))
    return (
        f"requests in 10 s, more get 429: {source} from one address, {subject} by one user"
        " (EDGE_RATE_SOURCE, EDGE_RATE_SUBJECT; 0: no limit)"
    )


def print_status(console: Console, stack: Stack) -> None:
    """Services × instances as supervisord, Consul and HAProxy see them; then the servers of the stack itself."""
    try:
        consul = views.consul_view(stack.settings.consul_address, stack.vault.consul_token("operator"))
        consul_said = f"{len(consul)} instances registered"
    except OSError as error:
        consul, consul_said = {}, f"[red]does not answer[/] ({error})"
    try:
        edge = views.edge_view(stack.settings.run_dir / "haproxy.sock")
        edge_said = f"{sum(map(views.is_up, edge.values()))} of {len(edge)} servers up"
    except Unreachable as error:
        edge, edge_said = {}, f"[red]does not answer[/] ({error})"
    instances = stack.instances()
    console.print(_instances(instances, consul, edge))
    console.print(f"\nConsul: {consul_said}; HAProxy: {edge_said}")
    states = stack.supervisor.states()
    ids = {one.id for one in instances}
    servers = [
        f"{name} {_state(str(r['statename']))}" for name, r in sorted(states.items()) if name not in ids
    ]
    console.print("servers: " + ", ".join(servers))
    address = stack.settings.edge_url.removeprefix("http://")
    console.print(f"edge: {stack.settings.edge_url} {views.edge_answers(address)}")


def _instances(
    instances: list[InstanceInfo], consul: dict[str, str], edge: dict[str, ObservedServer]
) -> Table:
    """A line for each instance of ours, then one for each server of the edge that is not."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("instance", "port", "pid", "process", "since", "Consul", "HAProxy", "open", "breakers"):
        table.add_column(title)
    with ThreadPoolExecutor(max_workers=8) as pool:
        breakers = list(
            pool.map(lambda one: views.open_breakers(one.port) if one.running else None, instances)
        )
    for one, not_closed in zip(instances, breakers, strict=True):
        table.add_row(*_row(one, consul, edge.get(one.id)), _breakers(not_closed))
    ids = {one.id for one in instances}
    for name, server in sorted(edge.items()):
        if name not in ids:
            table.add_row(
                name,
                f"{server.address}:{server.port}",
                "-",
                "not ours",
                "-",
                _health(consul.get(name)),
                server.status,
                str(server.sessions),
            )
    return table


def _row(one: InstanceInfo, consul: dict[str, str], server: ObservedServer | None) -> list[str]:
    seen = "-" if server is None else f"[{'green' if views.is_up(server) else 'red'}]{server.status}[/]"
    sessions = "-" if server is None else str(server.sessions)
    pid, since = (str(one.pid), _duration(one.uptime_s)) if one.pid else ("-", "-")
    return [one.id, str(one.port), pid, _state(one.state), since, _health(consul.get(one.id)), seen, sessions]


def _breakers(not_closed: list[str] | None) -> str:
    if not_closed is None:
        return "-"
    return f"[red]{', '.join(not_closed)}[/]" if not_closed else "closed"


def _health(status: str | None) -> str:
    return "-" if status is None else f"[{COLOURS[status]}]{status}[/]"


def _state(name: str) -> str:
    return f"[{'green' if name == 'RUNNING' else 'yellow'}]{name.lower()}[/]"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
