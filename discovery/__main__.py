"""`python -m discovery`: register, deregister, watch and resolve, for scripts and for services in other languages.

Exit status: 0 done; 1 Consul or the instance did not answer; 2 wrong arguments, or values that break the contract;
3 the service has no instance that may be called.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import structlog
import typer

from discovery.balancing.balancer import usable, weight_of
from discovery.bell import Bell
from discovery.consul.api import ConsulApi
from discovery.consul.catalog import View
from discovery.consul.registration import POLL_S, Keeper
from discovery.contract import ROUTE_KEYS, check_name, parse_route
from discovery.errors import ConsulError, ContractError
from discovery.model import Change, HttpCheck, Instance, Registration, Route, Snapshot

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

Address = Annotated[
    str, typer.Option("--consul", envvar="CONSUL_HTTP_ADDR", help="Consul's agent, host:port.")
]
Token = Annotated[
    str, typer.Option("--token", envvar="CONSUL_HTTP_TOKEN", help="ACL token.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]
CONSUL = "127.0.0.1:8500"


def _api(address: str, token: str) -> ConsulApi:
    file = os.environ.get("CONSUL_HTTP_TOKEN_FILE")
    if not token and file:
        try:
            token = Path(file).read_text().strip()
        except OSError as error:
            _fail(2, f"CONSUL_HTTP_TOKEN_FILE: {error}")
    return ConsulApi(address, token or None)


def _fail(status: int, text: str) -> NoReturn:
    typer.echo(f"discovery: {text}", err=True)
    raise typer.Exit(status)


@app.command()
def register(
    name: Annotated[str, typer.Argument(help="Service name: a-z, 0-9 and -.")],
    port: Annotated[int, typer.Option(help="Port of the instance.")],
    address: Annotated[str, typer.Option(help="IP address of the instance.")] = "127.0.0.1",
    instance_id: Annotated[str, typer.Option("--id", help="Default: NAME-ADDRESS-PORT.")] = "",
    path: Annotated[list[str] | None, typer.Option(help="Path prefix at the edge; may be repeated.")] = None,
    meta: Annotated[list[str] | None, typer.Option(help="edge-key=value, or any other metadata.")] = None,
    weight: Annotated[int, typer.Option(help="1-256.")] = 100,
    backup: Annotated[bool, typer.Option(help="Gets traffic only when the others are gone.")] = False,
    tag: Annotated[list[str] | None, typer.Option(help="Tag; may be repeated.")] = None,
    check: Annotated[
        str, typer.Option(help="Path of Consul's HTTP check; empty for none.")
    ] = "/health/ready",
    interval_s: Annotated[float, typer.Option(help="Seconds between checks.")] = 2.0,
    keep: Annotated[
        bool, typer.Option(help="Stay, register again if forgotten, deregister at SIGTERM.")
    ] = False,
    wait_s: Annotated[float, typer.Option(help="With --keep: wait for the port to open, seconds.")] = 30.0,
    consul: Address = CONSUL,
    token: Token = "",
) -> None:
    """Register an instance, or bring its registration up to date."""
    route, others = _metadata(name, path or [], meta or [])
    registration = Registration(
        name=name,
        address=address,
        port=port,
        id=instance_id or f"{name}-{address.replace(':', '-')}-{port}",
        route=route,
        weight=weight,
        backup=backup,
        meta=others,
        tags=tuple(tag or ()),
        check=HttpCheck(path=check, interval_s=interval_s) if check else None,
    )
    api = _api(consul, token)
    _keep(api, registration, wait_s) if keep else api.register(registration)
    typer.echo(registration.id)


def _metadata(name: str, paths: list[str], given: list[str]) -> tuple[Route | None, dict[str, str]]:
    """The route that the options ask for, and the metadata that is not the edge's. Raises ContractError."""
    pairs: dict[str, str] = {}
    for text in given:
        key, separator, value = text.partition("=")
        if not separator:
            raise ContractError("meta", text, "must be key=value")
        pairs[key] = value
    edge = {key.name: pairs.pop(key.name) for key in ROUTE_KEYS if key.name in pairs}
    if paths:
        edge["edge-path"] = ",".join(paths)
    if edge and "edge-path" not in edge:
        raise ContractError(
            "meta", ", ".join(edge), "without a path nothing is exposed that this could concern"
        )
    return parse_route(check_name(name), edge), pairs


def _keep(api: ConsulApi, registration: Registration, wait_s: float) -> None:
    """Stay until SIGTERM or SIGINT, and leave Consul then."""
    stopped = _stop_signal()

    def accepts() -> bool:
        with socket.socket(socket.AF_INET6 if ":" in registration.address else socket.AF_INET) as probe:
            probe.settimeout(1.0)
            return probe.connect_ex((registration.address, registration.port)) == 0

    until = time.monotonic() + wait_s
    while not accepts():
        if stopped.wait(POLL_S):
            return
        if time.monotonic() >= until:
            _fail(1, f"nothing listens on {registration.address}:{registration.port}")
    keeper = Keeper(api, registration)
    keeper.start()
    while not stopped.wait(60.0):
        pass
    keeper.stop()


def _stop_signal() -> Bell:
    stopped = Bell()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.ring())
    return stopped


@app.command()
def deregister(
    instance_id: Annotated[str, typer.Argument(help="Id of the instance.")],
    consul: Address = CONSUL,
    token: Token = "",
) -> None:
    """Take an instance out of Consul. One that is not there is no error."""
    _api(consul, token).deregister(instance_id)


@app.command()
def resolve(
    service: str,
    everything: Annotated[bool, typer.Option("--all", help="Also those that may not be called.")] = False,
    as_json: AsJson = False,
    consul: Address = CONSUL,
    token: Token = "",
) -> None:
    """Print address:port of each instance that may be called."""
    instances = _api(consul, token).read_service(service).instances or ()
    shown = list(instances) if everything else usable(instances)
    for instance in shown:
        host = f"[{instance.address}]" if ":" in instance.address else instance.address
        typer.echo(json.dumps(_describe(instance)) if as_json else f"{host}:{instance.port}")
    if not shown:
        raise typer.Exit(3)


@app.command()
def watch(
    services: Annotated[list[str] | None, typer.Argument(help="Default: all.")] = None,
    as_json: AsJson = False,
    consul: Address = CONSUL,
    token: Token = "",
) -> None:
    """Print a line for every change of a service, the state at the start first. Ends with SIGTERM or SIGINT."""
    stopped = _stop_signal()
    view = View(_api(consul, token), services=services or None)
    view.on_change(_printer(as_json, stopped.ring))
    view.start()
    while not stopped.wait(60.0):
        pass
    view.stop()


def _printer(as_json: bool, on_closed: Callable[[], None]) -> Callable[[list[Change], Snapshot], None]:
    def show(changes: list[Change], snapshot: Snapshot) -> None:
        try:
            for change in changes:
                described = [_describe(instance) for instance in change.after]
                if as_json:
                    line = json.dumps({"service": change.service, "instances": described})
                else:
                    states = [f"{each['address']}:{each['port']} {each['state']}" for each in described]
                    line = f"{change.service}: {', '.join(states) or 'gone'}"
                print(line, flush=True)
        except BrokenPipeError:  # the reader of the lines has gone
            on_closed()

    return show


def _describe(instance: Instance) -> dict[str, Any]:
    return {
        "id": instance.id,
        "node": instance.node,
        "address": instance.address,
        "port": instance.port,
        "weight": weight_of(instance),
        "state": "maintenance" if instance.maintenance else instance.status,
        "meta": dict(instance.meta),
    }


def main() -> int:
    """The command line. Ends by SystemExit, with the status."""
    # Lines of the log belong to standard error: standard output is for the program that reads the result.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    try:
        app(prog_name="python -m discovery")
    except (ConsulError, ContractError) as error:
        typer.echo(f"discovery: {error}", err=True)
        raise SystemExit(1 if isinstance(error, ConsulError) else 2) from None
    return 0


if __name__ == "__main__":
    main()
