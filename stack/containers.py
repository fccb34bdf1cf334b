"""What `docker-compose.yml` does beside running servers: the first step, which makes secrets and configuration, the
databases, Consul's tokens, and demonstration data.

Every volume is mounted at the same place, `/state/<name>`, in the first step and in the container that owns it. A service
sees of all this one folder with its own secrets.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from urllib.parse import quote

import psycopg
import structlog
import typer
from psycopg import sql

from stack.errors import StackError
from stack.fleet import FLEET
from stack.servers import consul_agent, rabbitmq, redis_servers
from stack.servers.vault import Vault, write_private

log = structlog.get_logger(__name__)

STATE = Path("/state")
VAULT = STATE / "secrets"
OWN = STATE / "own"
"""A folder for each that has secrets: what it sees as `/secrets`."""
SEEN = Path("/secrets")
KEEPER = "consul-tokens"
TOKENS_KNOWN = Path("/tmp/tokens-known")  # noqa: S108 - in a container of its own, read by its health check

USER_ID = 10001
"""Of every process in the containers."""
SUPERUSER = "postgres"
CONNECT_TIMEOUT_S = 5

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.command()
def folders() -> None:
    """In the image, at its making: where volumes are mounted. Docker gives a new volume the owner of such a folder."""
    names = ["consul", "edge", "mail", "postgres", rabbitmq.NAME, *redis_servers.SERVERS, "run", "secrets"]
    own = [f"own/{name}" for name in ("controller", KEEPER, *(spec.name for spec in FLEET))]
    for name in (*names, *own):
        folder = STATE / name
        folder.mkdir(parents=True, mode=0o700)
        os.chown(folder, USER_ID, USER_ID)


@app.command()
def init() -> None:
    """Make what is missing of secrets and configuration; secrets that are there stay."""
    prepare(STATE)
    log.info("prepared", services=[spec.name for spec in FLEET])


def prepare(state: Path) -> None:
    """All that the servers and services read at their start, in folders under `state` that are there already."""
    vault = Vault(state / "secrets")
    vault.open()
    names = [spec.name for spec in FLEET]
    clients = vault.write_clients(names)
    for spec in FLEET:
        own = state / "own" / spec.name
        _copy(vault.consul_token_file(spec.name), own / "consul.token")
        _copy(vault.service_secret_file(spec.name), own / "client.secret")
        _copy(vault.redis_password_file(spec.name), own / "redis.password")
        if spec.database:
            password = quote(vault.database_password(spec.name), safe="")
            write_private(own / "database.url", f"postgresql://{spec.name}:{password}@postgres/{spec.name}\n")
            broker = rabbitmq.url(spec.name, vault.rabbitmq_password(spec.name), "rabbitmq:5672")
            write_private(own / "events.url", broker + "\n")
    _copy(clients, state / "own" / "auth" / "clients.json")
    _copy(vault.key_encryption_file(), state / "own" / "auth" / "keys.kek")
    _copy(vault.vapid_key_file(), state / "own" / "notifications" / "vapid.key")
    _copy(vault.consul_token_file("controller"), state / "own" / "controller" / "consul.token")
    for name in redis_servers.SERVERS:
        folder = state / name
        redis_servers.write_configuration(name, vault, folder, data=folder, bind="*", port=6379)
    _consul(state / "consul", vault)
    _tokens(vault, names, state / "own" / KEEPER / "consul")
    vault.rabbitmq_password(rabbitmq.OPERATOR)
    folder = state / rabbitmq.NAME
    listener = "listeners.tcp.default = 5672"
    rabbitmq.write_configuration(folder, vault.rabbitmq_passwords(), seen=folder, listener=listener)
    write_private(state / "postgres" / "superuser.password", vault.database_password(SUPERUSER) + "\n")


def _consul(folder: Path, vault: Vault) -> None:
    for name in ("common.hcl", "server.hcl"):
        shutil.copyfile(consul_agent.CONFIG / name, folder / name)
    # Its own network alone leads there, and the port on the machine's loopback that the compose file opens.
    consul_agent.write_agent_file(folder / "local.json", vault, folder / "data", client_addr="0.0.0.0")  # noqa: S104


def _tokens(vault: Vault, services: list[str], folder: Path) -> None:
    """Consul's tokens, all of them, for the container that gives them to it."""
    for name in consul_agent.RETIRED:
        vault.forget_consul_token(name)
    for name in {"master", "agent", "controller", "operator", *services, *vault.consul_names()}:
        _copy(vault.consul_token_file(name), folder / f"{name}.token")
    for left in set(Vault(folder.parent).consul_names()) - set(vault.consul_names()):
        (folder / f"{left}.token").unlink()


def _copy(source: Path, target: Path) -> None:
    text = source.read_text()
    if not target.exists() or target.read_text() != text:
        write_private(target, text)


@app.command()
def databases() -> None:
    """A database and a role of its own for each service that keeps data; safe to repeat."""
    vault = Vault(VAULT)
    with psycopg.connect(
        host="postgres",
        user=SUPERUSER,
        dbname="postgres",
        password=vault.database_password(SUPERUSER),
        autocommit=True,
        connect_timeout=CONNECT_TIMEOUT_S,
    ) as connection:
        for spec in FLEET:
            if spec.database:
                make_database(connection, spec.name, vault.database_password(spec.name))
    log.info("databases ready", services=[spec.name for spec in FLEET if spec.database])


def make_database(connection: psycopg.Connection, name: str, password: str) -> None:
    """The role `name`, which may log in and nothing more, and its database, which no other role may connect to."""
    role = sql.Identifier(name)
    known = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [name]).fetchone()
    verb = sql.SQL("ALTER" if known else "CREATE")
    rights = sql.SQL("LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION PASSWORD")
    connection.execute(sql.SQL("{} ROLE {} {} {}").format(verb, role, rights, sql.Literal(password)))
    if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone():
        connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(role, role))
    connection.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(role))


@app.command()
def tokens() -> None:
    """Give Consul its policies and tokens, and again whenever it has lost them. Does not end."""
    acl = consul_agent.ConsulAcl(os.environ["CONSUL_HTTP_ADDR"], Vault(SEEN))
    production = os.environ.get("CONSUL_PRODUCTION", "") not in {"", "0", "false"}
    consul_agent.keep_tokens(acl, [spec.name for spec in FLEET], production, known=TOKENS_KNOWN.touch)


def _show_step(step: str) -> None:
    print(f"  {step}", file=sys.stderr)


@app.command()
def seed() -> None:
    """Demonstration data through the edge. Prints the administrator's e-mail address and password as JSON."""
    from stack.seed import Seed

    vault = Vault(VAULT)
    counts = Seed(os.environ["EDGE"], vault, None, _show_step).run()
    print(", ".join(f"{count} {name}" for name, count in counts.items()), file=sys.stderr)
    print(json.dumps(json.loads(vault.admin_file.read_text())))


def main() -> int:
    """Errors that an operator can mend come out as lines of text."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    try:
        app()
    except (StackError, psycopg.OperationalError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
