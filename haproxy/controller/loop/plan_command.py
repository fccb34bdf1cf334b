"""`plan`: what the controller would do now, and why. Reads only; runs beside another controller."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table
from rich.text import Text

from discovery.consul.catalog import View
from haproxy.controller.app import consul_api, owner_book
from haproxy.controller.config.model import Backend, EdgeState, Server
from haproxy.controller.config.template import params_for
from haproxy.controller.consul.owners import PINS, Document
from haproxy.controller.consul.verdicts import verdict
from haproxy.controller.errors import EdgeError, Unreachable
from haproxy.controller.loop.reload import Reloader, fingerprint
from haproxy.controller.metrics import Metrics
from haproxy.controller.runtime.diff import Step, plan_backend
from haproxy.controller.runtime.observed import ObservedServer
from haproxy.controller.runtime.socket import Master, Runtime
from haproxy.controller.settings import EdgeSettings
from haproxy.controller.wanted.election import Desire, Outcome
from haproxy.controller.wanted.jwks import stored_keys

READY_S = 10.0


@dataclass
class Picture:
    """Desired beside observed. `observed` None: HAProxy does not answer."""

    backends: list[Backend] = field(default_factory=list)
    observed: dict[str, Mapping[str, ObservedServer] | None] | None = None
    steps: list[Step] = field(default_factory=list)
    reload: bool = False
    outcomes: list[Outcome] = field(default_factory=list)
    gone: frozenset[str] = frozenset()


def look(settings: EdgeSettings) -> Picture:
    """Read Consul and HAProxy once. Raises EdgeError when Consul gives nothing in time."""
    api = consul_api(settings)
    view = View(api)
    view.start()
    try:
        if not view.ready(READY_S):
            raise EdgeError(f"no answer from Consul at {settings.consul_http_addr} within {READY_S:.0f} s")
        snapshot = view.snapshot()
        book = owner_book(settings)
        pins = Document(api, PINS, "pins", lambda _: None, Metrics()).read()
    finally:
        view.stop()
        api.close()
    if pins is not None:
        book.set_pins(pins.owners or {})
    desire = Desire(settings.policy(), book)
    desire.update({name: snapshot.instances(name) for name in snapshot.services})
    desire.settle()
    return _compare(settings, desire)


def _compare(settings: EdgeSettings, desire: Desire) -> Picture:
    routes = desire.routes()
    backends = [desire.backend(name) for name in sorted(routes)]
    picture = Picture(
        backends=[backend for backend in backends if backend is not None],
        outcomes=[o for o in map(desire.outcome, sorted(desire.present())) if o is not None],
        gone=frozenset(routes) - desire.present(),
    )
    runtime = Runtime(settings.runtime_socket)
    try:
        with runtime.session() as session:
            process = session.info()
            picture.observed = {b.name: session.servers(b.name) for b in picture.backends}
    except Unreachable:
        return picture
    reloader = Reloader(settings, runtime, Master(settings.master_socket))
    picture.reload = fingerprint(routes, stored_keys(settings.keys_dir), settings) != reloader.loaded(process)
    params = params_for(EdgeState(tuple(picture.backends)), settings)
    for backend in picture.backends:
        seen = picture.observed[backend.name]
        if seen is not None:
            picture.steps += plan_backend(backend, seen, frozenset(), params)
    return picture


def show(picture: Picture, console: Console) -> None:
    """Print it. Names from Consul are text here, never markup."""
    console.print(_fleet(picture))
    refused = [outcome for outcome in picture.outcomes if verdict(outcome)["reasons"]]
    if refused:
        table = Table("service", "verdict", "why", title="Refused", title_justify="left")
        for outcome in refused:
            said = verdict(outcome)
            table.add_row(Text(said["service"]), said["state"], Text("\n".join(said["reasons"][:10])))
        console.print(table)
    if picture.observed is None:
        console.print("HAProxy does not answer on its Runtime API: nothing can be done now.", style="yellow")
    elif not picture.steps and not picture.reload:
        console.print("In step: nothing to do.", style="green")
    else:
        console.print(_actions(picture))


def _fleet(picture: Picture) -> Table:
    table = Table("service", "paths", "instance", "desired", "observed", title="Desired and observed")
    for backend in picture.backends:
        service = backend.route.service
        seen = dict((picture.observed or {}).get(backend.name) or {})
        wanted = {server.name: _place(server) for server in backend.servers}
        nothing = "gone, its prefixes are kept" if service in picture.gone else "no instance may serve"
        rows = wanted | dict.fromkeys(sorted(seen.keys() - wanted.keys()), "-") or {"-": nothing}
        table.add_section()
        table.add_row(service, "\n".join(backend.route.paths))
        for name, place in rows.items():
            observed = _describe(seen.get(name), picture.observed is None)
            table.add_row("", "", Text(name), place, observed)
    return table


def _place(server: Server | ObservedServer) -> str:
    return f"{server.address}:{server.port} weight {server.weight}{' backup' if server.backup else ''}"


def _describe(seen: ObservedServer | None, blind: bool) -> Text:
    if blind:
        return Text("?", "dim")
    if seen is None:
        return Text("-", "dim")
    said = f"{_place(seen)} {seen.status.lower()}, {seen.sessions} requests"
    return Text(said, "" if seen.serves else "yellow")


def _actions(picture: Picture) -> Table:
    table = Table("what", "commands", "why", title="Would do now", title_justify="left")
    if picture.reload:
        table.add_row("reload", "render, check, replace, reload", "routes, keys or settings are others now")
    for step in picture.steps:
        table.add_row(step.kind, Text("\n".join(map(str, step.commands))), Text(step.reason))
    return table
