"""supervisord: its configuration, its start and end, and its XML-RPC over a Unix socket."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import time
import xmlrpc.client
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from supervisor.xmlrpc import SupervisorTransport

from stack import STACK_MARK
from stack.errors import NotRunning, StackError, TookTooLong
from stack.run.programs import Program, find_binary
from stack.servers.vault import write_private
from stack.settings import StackSettings

RETRIES = 50
"""Starts in a row that may fail before supervisord gives a program up; each waits a second longer than the one before."""

ALREADY_STARTED, NOT_RUNNING, BAD_NAME, ALREADY_ADDED = 60, 70, 10, 90  # supervisor.xmlrpc.Faults


class Supervisor:
    """One supervisord with its socket in `run_dir`. Programs are groups of one: name and group are the same."""

    def __init__(self, settings: StackSettings) -> None:
        self.settings = settings
        self.socket = settings.run_dir / "supervisor.sock"
        self.config = settings.run_dir / "supervisord.conf"
        self.pid_file = settings.run_dir / "supervisord.pid"
        self._popen: subprocess.Popen[bytes] | None = None

    def write(self, programs: Iterable[Program]) -> None:
        """Write the configuration: replaced as a whole, read by `start` and `reread`."""
        settings = self.settings
        head = [
            "[unix_http_server]",
            f"file={_escape(str(self.socket))}",
            "chmod=0600",
            "[supervisord]",
            f"logfile={_escape(str(settings.log_dir / 'supervisord.log'))}",
            "logfile_maxbytes=5MB",
            "logfile_backups=1",
            f"pidfile={_escape(str(self.pid_file))}",
            f"childlogdir={_escape(str(settings.log_dir))}",
            "nodaemon=true",
            "silent=true",
            "[rpcinterface:supervisor]",
            "supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface",
        ]
        write_private(self.config, "\n".join([*head, *(self._section(p) for p in programs)]) + "\n")

    def _section(self, program: Program) -> str:
        # A program whose supervisord dies gets SIGTERM from the kernel: no orphans.
        command = (find_binary("setpriv"), "--pdeathsig", "TERM", "--", *program.command)
        lines = [
            f"[program:{program.name}]",
            f"command={_escape(shlex.join(command))}",
            f"environment={_environment(program.environment)}",
            f"directory={_escape(str(self.settings.var / 'home'))}",
            "autostart=false",
            "autorestart=true",
            "startsecs=1",
            f"startretries={RETRIES}",
            "stopsignal=TERM",
            f"stopwaitsecs={program.stop_wait_s}",
            "killasgroup=true",
            "redirect_stderr=true",
            f"stdout_logfile={_escape(str(self.settings.log_dir / program.name))}.log",
            "stdout_logfile_maxbytes=10MB",
            "stdout_logfile_backups=2",
        ]
        return "\n".join(lines)

    def start(self, environment: Mapping[str, str]) -> int:
        """Start supervisord in a session of its own, wait for its socket, return its pid. Raises StackError."""
        argv = [sys.executable, "-m", "supervisor.supervisord", "-c", str(self.config)]
        marked = {**environment, STACK_MARK: str(self.settings.var)}
        with (self.settings.log_dir / "supervisord.out").open("wb") as out:
            self._popen = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=marked,
                cwd=self.settings.var / "home",
            )
        until = time.monotonic() + 15
        while time.monotonic() < until:
            if self._popen.poll() is not None:
                said = (self.settings.log_dir / "supervisord.out").read_text(errors="replace")
                raise StackError(f"supervisord ended at once: {said.strip()[-500:]}")
            with contextlib.suppress(OSError, NotRunning):
                if self.call("getState")["statename"] == "RUNNING":
                    return self._popen.pid
            time.sleep(0.05)
        raise TookTooLong(
            "supervisord did not answer within 15 s", f"see {self.settings.log_dir}/supervisord.log"
        )

    def pid(self) -> int | None:
        """Of the supervisord that answers on the socket; None when none does."""
        try:
            return int(self.call("getPID"))
        except (NotRunning, OSError):
            return None

    def call(self, method: str, *args: Any) -> Any:
        """One RPC. Raises NotRunning when nothing listens, xmlrpc.client.Fault when supervisord refuses."""
        transport = SupervisorTransport(None, None, f"unix://{self.socket}")
        proxy = xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport)
        try:
            return getattr(proxy.supervisor, method)(*args)
        except (FileNotFoundError, ConnectionRefusedError, ConnectionResetError) as error:
            raise NotRunning from error
        finally:
            transport.close()

    def states(self) -> dict[str, dict[str, Any]]:
        """Program name → supervisord's record (`statename`, `pid`, `start`, `now`, `spawnerr`, …)."""
        return {record["name"]: record for record in self.call("getAllProcessInfo")}

    def start_program(self, name: str) -> None:
        """Ask for its start and return at once; nothing happens where it runs."""
        with _accepting(ALREADY_STARTED):
            self.call("startProcess", name, False)

    def stop_program(self, name: str) -> None:
        """Ask for its end and return at once; nothing happens where it does not run."""
        with _accepting(NOT_RUNNING):
            self.call("stopProcess", name, False)

    def wait(self, names: Iterable[str], wanted: Iterable[str], within_s: float) -> None:
        """Until each program is in one of the wanted states. Raises TookTooLong."""
        names, wanted = list(names), set(wanted)
        until = time.monotonic() + within_s
        while True:
            states = self.states()
            left = [n for n in names if n in states and states[n]["statename"] not in wanted]
            if not left:
                return
            if time.monotonic() > until:
                seen = ", ".join(
                    f"{n} is {states[n]['statename']} {states[n]['spawnerr']}".strip() for n in left
                )
                raise TookTooLong(
                    f"not {' or '.join(sorted(wanted))} within {within_s:.0f} s: {seen}",
                    f"see {self.settings.log_dir}/{left[0]}.log",
                )
            time.sleep(0.05)

    def reread(self) -> None:
        """Take in programs that `write` added. Programs that have gone must have been stopped."""
        added, _changed, removed = self.call("reloadConfig")[0]
        for name in removed:
            self.call("removeProcessGroup", name)
        for name in added:
            with _accepting(ALREADY_ADDED):
                self.call("addProcessGroup", name)

    def shutdown(self) -> None:
        """Ask supervisord to end; harmless when it is gone."""
        with contextlib.suppress(NotRunning, xmlrpc.client.Fault):
            self.call("shutdown")

    def reap(self, within_s: float) -> None:
        """Reap a supervisord that this process started."""
        if self._popen is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(timeout=within_s)


@contextlib.contextmanager
def _accepting(code: int) -> Iterator[None]:
    try:
        yield
    except xmlrpc.client.Fault as fault:
        if fault.faultCode != code:
            raise


def _escape(value: str) -> str:
    """A value for supervisord's file: no expansion, no second line, no comment."""
    if any(bad in value for bad in ("\n", "\r", "\0", " ;")):
        raise StackError(
            f"supervisord cannot take this value: {value!r}", "paths and settings: one line, no ' ;'"
        )
    return value.replace("%", "%%")


def _environment(values: Mapping[str, str]) -> str:
    parts = []
    for name, value in sorted(values.items()):
        if '"' in value or os.linesep in value:
            raise StackError(f"{name} holds a double quote, which supervisord cannot pass on: {value!r}")
        parts.append(f'{name}="{_escape(value)}"')
    return ",".join(parts)
