"""RabbitMQ as the broker of events: its configuration, and which exchanges and queues each service may touch.

Every service is a user of its own; the definitions hold salted digests of the passwords, the vault the passwords. There is no
`guest`. Erlang's port mapper (epmd) is a program of its own: a node would start one that outlives it.
Ref: https://www.rabbitmq.com/docs/access-control, https://www.rabbitmq.com/docs/definitions
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from stack.errors import StackError, TookTooLong
from stack.servers.vault import Vault, write_private
from stack.settings import StackSettings

NAME = "rabbitmq"
EPMD = "rabbitmq-epmd"
VHOST = "breakwater"
OPERATOR = "operator"
"""The user that may do everything with the events. The stack alone has its password."""

EVENTS = "breakwater.events"
DEAD = "breakwater.dead"

# Debian's `rabbitmq-server` on PATH becomes the system's own user, and keeps its data.
SCRIPTS = Path("/usr/lib/rabbitmq/bin")
_LOOPBACK = "-kernel inet_dist_use_interface {127,0,0,1}"
_CONTROL_TIMEOUT_S = 60


@dataclass(frozen=True, slots=True)
class Node:
    """One RabbitMQ on this machine, on loopback alone; all that it keeps is in `folder`."""

    folder: Path
    port: int
    dist_port: int
    epmd_port: int

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def command(self) -> tuple[str, ...]:
        return (str(SCRIPTS / "rabbitmq-server"),)

    @property
    def epmd_command(self) -> tuple[str, ...]:
        return ("epmd", "-address", "127.0.0.1", "-port", str(self.epmd_port))

    @property
    def environment(self) -> dict[str, str]:
        """For the server and for `rabbitmqctl`, on top of PATH."""
        return {
            # With the cookie, by which `rabbitmqctl` is known: made at the first start, mode 400.
            "HOME": str(self.folder),
            "LANG": "C.UTF-8",
            "RABBITMQ_NODENAME": f"breakwater-{self.port}@localhost",
            "RABBITMQ_BASE": str(self.folder),
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "none.conf"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.folder / "none.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(self.folder / "generated"),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_DIST_PORT": str(self.dist_port),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": _LOOPBACK,
            "RABBITMQ_CTL_ERL_ARGS": _LOOPBACK,
            "ERL_EPMD_PORT": str(self.epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            # The script becomes the server, in place of a shell that waits for it and would outlive it.
            "RUNNING_UNDER_SYSTEMD": "true",
        }

    def control(self, *words: str) -> str:
        """`rabbitmqctl …` on the node that runs. Returns what it prints. Raises StackError."""
        try:
            done = subprocess.run(
                [str(SCRIPTS / "rabbitmqctl"), *words],
                env={"PATH": os.environ["PATH"], **self.environment},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_CONTROL_TIMEOUT_S,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise StackError(f"rabbitmqctl {words[0]} failed: {error}") from error
        if done.returncode:
            said = (done.stderr or done.stdout).strip()[-500:]
            raise StackError(f"rabbitmqctl {words[0]} failed: {said}", f"see: make logs SERVICE={NAME}")
        return done.stdout

    def accepts(self) -> bool:
        """Whether it speaks AMQP: its port is open before it does."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as probe:
                probe.sendall(b"AMQP\x00\x00\x09\x01")
                return bool(probe.recv(1))
        except OSError:
            return False

    def wait_ready(self, within_s: float) -> None:
        """Raises TookTooLong."""
        until = time.monotonic() + within_s
        while not self.accepts():
            if time.monotonic() > until:
                raise TookTooLong(f"{NAME} does not take connections", f"see: make logs SERVICE={NAME}")
            time.sleep(0.2)

    def configure(self, passwords: Mapping[str, str]) -> Path:
        """Write what it reads at its start. Returns the file of the users, for `control("import_definitions", …)`."""
        listener = f"listeners.tcp.local = {self.address}"
        return write_configuration(self.folder, passwords, seen=self.folder, listener=listener)


def node(settings: StackSettings) -> Node:
    """The stack's."""
    return Node(
        settings.var / NAME, settings.rabbitmq_port, settings.rabbitmq_dist_port, settings.rabbitmq_epmd_port
    )


def admit(settings: StackSettings, vault: Vault, service: str) -> None:
    """Make a service known to the server that runs now, and to its next start. Raises StackError."""
    if settings.events == NAME:
        vault.rabbitmq_password(service)
        users = node(settings).configure(vault.rabbitmq_passwords())
        node(settings).control("import_definitions", str(users))


def write_configuration(folder: Path, passwords: Mapping[str, str], *, seen: Path, listener: str) -> Path:
    """Into any folder, which the server knows as `seen`. `passwords`: of the operator and of services, by name."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    users = folder / "definitions.json"
    write_private(users, json.dumps(definitions(passwords), indent=2) + "\n")
    lines = [
        listener,
        f"load_definitions = {seen / users.name}",
        # Beyond these, whoever publishes waits; events do so in the database of their service.
        "vm_memory_high_watermark.absolute = 256MB",
        "disk_free_limit.absolute = 200MB",
        # Events are 256 KiB at most.
        "max_message_size = 1048576",
        "log.console.level = info",
    ]
    write_private(folder / "rabbitmq.conf", "\n".join(lines) + "\n")
    write_private(folder / "enabled_plugins", "[].\n")
    return users


def definitions(passwords: Mapping[str, str]) -> dict[str, Any]:
    """What the broker is to know at its start: users and their rights, and the exchanges, which no service may change."""
    services = sorted(set(passwords) - {OPERATOR})
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    rules = [{"user": OPERATOR, **everything}, *({"user": name, **rights(name)} for name in services)]
    return {
        "users": [
            {
                "name": name,
                "password_hash": _digest(password),
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": "",
            }
            for name, password in sorted(passwords.items())
        ],
        "vhosts": [{"name": VHOST}],
        "permissions": [{"vhost": VHOST, **rule} for rule in rules],
        # By the exchange of dead letters, a service reaches its own alone.
        "topic_permissions": [
            {"user": name, "vhost": VHOST, "exchange": DEAD, "write": _only(name), "read": _only(name)}
            for name in services
        ],
        "exchanges": [
            {
                "name": name,
                "vhost": VHOST,
                "type": "topic",
                "durable": True,
                "auto_delete": False,
                "internal": False,
                "arguments": {},
            }
            for name in (EVENTS, DEAD)
        ],
        "queues": [],
        "bindings": [],
    }


def rights(service: str) -> dict[str, str]:
    """What a service may, as regular expressions: make its own two queues, hang them up, read them, and publish.

    Who publishes as another is found out by the consumer: the broker checks the user that a message names.
    """
    queues = f"{service}.events", f"{service}.dead"
    return {
        "configure": _only(*queues),
        "write": _only(*queues, EVENTS, DEAD),
        "read": _only(*queues, EVENTS, DEAD),
    }


def url(service: str, password: str, address: str) -> str:
    """EVENTS_URL of a service."""
    return f"amqp://{quote(service, safe='')}:{quote(password, safe='')}@{address}/{VHOST}"


def _only(*names: str) -> str:
    return f"^({'|'.join(map(re.escape, names))})$"


def _digest(password: str) -> str:
    """Ref: https://www.rabbitmq.com/docs/passwords#computing-password-hash"""
    begin = os.urandom(4)
    return base64.b64encode(begin + hashlib.sha256(begin + password.encode()).digest()).decode()
