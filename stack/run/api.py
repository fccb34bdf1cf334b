"""The stack as an object: start it, end it, and act on its processes. Commands and tests drive this same class."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from haproxy.controller.settings import EdgeSettings
from stack.errors import BadRequest, NotRunning, StackError
from stack.fleet import FLEET, MAX_INSTANCES, ServiceSpec
from stack.run import processes
from stack.run.programs import DRAIN_WAIT_S, Catalogue, Program
from stack.run.startup import Startup, wait_serving
from stack.run.state import Slot, State
from stack.run.supervisor import Supervisor
from stack.servers import consul_agent, rabbitmq, redis_servers
from stack.servers.vault import Vault
from stack.settings import StackSettings

INFRASTRUCTURE = ("consul", "consul-tokens", *redis_servers.SERVERS, "mail", "haproxy", "controller")


@dataclass(frozen=True, slots=True)
class InstanceInfo:
    """One supervised instance. `state` is supervisord's (RUNNING, STOPPED, …) or PAUSED; `pid` 0 when it does not run."""

    id: str
    service: str
    number: int
    port: int
    pid: int
    state: str
    uptime_s: float

    @property
    def running(self) -> bool:
        return self.state == "RUNNING"


class Stack:
    """One stack, started or not. Not for use from several threads at once; several processes are kept apart by a lock.

    `fleet` says which services; `counts` changes their number of instances. `env` is given to every program,
    `service_env[service]` to the instances of one service.
    """

    def __init__(
        self,
        settings: StackSettings | None = None,
        *,
        fleet: Sequence[ServiceSpec] = FLEET,
        counts: Mapping[str, int] | None = None,
        env: Mapping[str, str] | None = None,
        service_env: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        wanted = settings or StackSettings()
        self.state = State.load(wanted.var / "stack.json")
        running = Supervisor(wanted).pid() is not None
        # A running stack stays where it is, whatever the environment of this command says.
        self.settings = StackSettings(**self.state.settings) if running and self.state.settings else wanted
        self.fleet = {spec.name: spec for spec in fleet}
        self.counts = {spec.name: spec.instances for spec in fleet} | dict(counts or {})
        self.vault = Vault(self.settings.secrets_dir)
        self.supervisor = Supervisor(self.settings)
        self.catalogue = Catalogue(self.settings, self.vault, env or {}, service_env or {})

    def up(self, progress: Callable[[str], None] = lambda step: None, within_s: float = 120.0) -> bool:
        """Start everything and wait until every service answers through the edge. False when it ran already.

        On a failure everything that was started is ended again, and the StackError comes out.
        """
        with self._locked():
            if self.running():
                return False
            self._end_leftovers(progress)
            try:
                Startup(self, progress, time.monotonic() + within_s).run()
            except BaseException:
                progress("ending what had been started")
                self._down()
                raise
            return True

    def down(self, progress: Callable[[str], None] = lambda step: None) -> int:
        """End everything: instances drain first, at the same time. Returns how many processes there were."""
        with self._locked():
            found = len(processes.of_stack(self.settings.var))
            self._down(progress)
            return found

    def running(self) -> bool:
        """Whether this stack's supervisord answers."""
        return self.supervisor.pid() is not None

    def _down(self, progress: Callable[[str], None] = lambda step: None) -> None:
        if self.running():
            processes.send(signal.SIGCONT, processes.of_stack(self.settings.var))
            known = self.supervisor.states()
            instances = [slot.id for slot in self.state.slots if slot.id in known]
            progress(f"draining {len(instances)} instances")
            self._stop_together(instances, DRAIN_WAIT_S + 5)
            progress("stopping the edge, Redis and Consul")
            servers = (*INFRASTRUCTURE, rabbitmq.NAME, rabbitmq.EPMD)
            self._stop_together([name for name in servers if name in known], 15)
            self.supervisor.shutdown()
            self.supervisor.reap(5)
        self._end_leftovers(progress)

    def _end_leftovers(self, progress: Callable[[str], None]) -> None:
        left = processes.wait_gone(processes.of_stack(self.settings.var), 2.0)
        if left:
            progress(f"ending {len(left)} processes that an earlier start left")
            processes.end(left, within_s=10)
        self.supervisor.socket.unlink(missing_ok=True)

    def _stop_together(self, names: Sequence[str], within_s: float) -> None:
        for name in names:
            self.supervisor.stop_program(name)
        self.supervisor.wait(names, {"STOPPED", "EXITED", "FATAL"}, within_s)

    def instances(self, service: str | None = None) -> list[InstanceInfo]:
        """All instances, or those of one service, sorted by service and number. Raises NotRunning, BadRequest."""
        if service is not None:
            self._spec(service)
        self._refresh()
        states = self.supervisor.states()
        slots = self.state.slots if service is None else self.state.of(service)
        return [self._info(slot, states.get(slot.id, {})) for slot in slots]

    @staticmethod
    def _info(slot: Slot, record: Mapping[str, object]) -> InstanceInfo:
        state, pid = str(record.get("statename", "STOPPED")), int(str(record.get("pid", 0)))
        if state == "RUNNING" and processes.is_stopped(pid):
            state = "PAUSED"
        uptime = float(str(record.get("now", 0))) - float(str(record.get("start", 0))) if pid else 0.0
        return InstanceInfo(slot.id, slot.service, slot.number, slot.port, pid, state, uptime)

    def pid(self, name: str) -> int:
        """Of an instance or of a server (`consul`, `haproxy`, …); 0 when it does not run."""
        states = self.supervisor.states()
        if name not in states:
            raise BadRequest(f"there is no {name!r} here", f"there are: {', '.join(sorted(states))}")
        return int(states[name]["pid"])

    def kill(self, name: str) -> int:
        """SIGKILL to all processes of an instance or server, at once; supervisord starts it again. Returns the pid it had."""
        pid = self._live(name)
        processes.send(signal.SIGKILL, processes.tree(pid))
        return pid

    def crash(self, *names: str) -> list[int]:
        """As `kill`, all of these at once, but they stay away until `start`. Returns the pids that they had."""
        pids = [self._live(name) for name in names]
        all_of_them = [one for pid in pids for one in processes.tree(pid)]
        # Stopped first: so SIGTERM, by which supervisord notes that they are meant to be away, cannot begin a drain.
        processes.send(signal.SIGSTOP, all_of_them)
        for name in names:
            self.supervisor.stop_program(name)
        processes.send(signal.SIGKILL, all_of_them)
        self.supervisor.wait(names, {"STOPPED", "EXITED"}, 10)
        return pids

    def pause(self, name: str) -> None:
        """SIGSTOP to all processes of an instance or server: it hangs."""
        processes.send(signal.SIGSTOP, processes.tree(self._live(name)))

    def resume(self, name: str) -> None:
        processes.send(signal.SIGCONT, processes.tree(self._live(name)))

    def stop(self, *names: str, within_s: float = DRAIN_WAIT_S + 5) -> None:
        """SIGTERM to these instances or servers together (instances drain), and wait until they have ended."""
        self._stop_together(names, within_s)

    def start(self, *names: str, within_s: float = 30.0) -> None:
        """Start these together and wait until they run. That they serve is for the caller to see."""
        for name in names:
            self.pid(name)
            self.supervisor.start_program(name)
        self.supervisor.wait(names, {"RUNNING"}, within_s)

    def stop_service(self, service: str, count: int | None = None) -> list[str]:
        """Drain and stop all instances of a service, or `count` of them (the highest numbers first). Returns their ids."""
        names = [one.id for one in reversed(self.instances(service)) if one.pid]
        names = names[: self._count(count, len(names))]
        processes.send(signal.SIGCONT, [p for name in names for p in processes.tree(self.pid(name))])
        self.stop(*names)
        return names

    def start_service(self, service: str, count: int | None = None) -> list[str]:
        """Start the stopped instances of a service, or `count` of them (the lowest numbers first). Returns their ids."""
        names = [one.id for one in self.instances(service) if not one.pid]
        names = names[: self._count(count, len(names))]
        self.start(*names)
        return names

    def scale(self, service: str, count: int) -> tuple[list[str], list[str]]:
        """Make the service have `count` instances. Returns the ids added and those drained and removed."""
        spec = self._spec(service)
        if not 0 <= count <= MAX_INSTANCES:
            raise BadRequest(
                f"N={count}: cannot run that many", f"0 to {MAX_INSTANCES} instances of one service"
            )
        self.need_running()
        with self._locked():
            self._refresh()
            gone = [slot for slot in self.state.of(service) if slot.number > count]
            self._stop_together([slot.id for slot in gone], DRAIN_WAIT_S + 5)
            self.state.slots = [slot for slot in self.state.slots if slot not in gone]
            made = self.assign([(spec.name, number) for number in range(1, count + 1)])
            self.state.save()
            self.supervisor.write(self.programs())
            self.supervisor.reread()
            self.start(*(slot.id for slot in made))
        return [slot.id for slot in made], [slot.id for slot in gone]

    def wait_serving(self, within_s: float) -> None:
        """Until every instance that is not stopped serves: passing in Consul, up in HAProxy, its service answered at the edge.

        Raises TookTooLong, naming what is missing.
        """
        wait_serving(self, time.monotonic() + within_s, lambda step: None)

    def assign(self, wanted: Sequence[tuple[str, int]]) -> list[Slot]:
        """Slots for (service, number) pairs that have none yet."""
        settings = self.settings
        return self.state.assign(wanted, settings.instance_port_base, settings.fixed_ports.values())

    def programs(self) -> list[Program]:
        """All programs of the stack as it is wanted now."""
        instances = [
            self.catalogue.instance(self.fleet[slot.service], slot.number, slot.port)
            for slot in self.state.slots
        ]
        return [*self.catalogue.infrastructure(), *instances]

    def environment(self, service: str) -> dict[str, str]:
        """For a program outside supervisord that registers as `service`."""
        return {**self.catalogue.base_environment(), **self.catalogue.service_environment(service)}

    def admit(self, service: str) -> None:
        """Make all that `environment` names, for a service that the fleet does not know: its tokens and passwords.

        Several commands may ask at once, for the same new name as well. Raises NotRunning, StackError; OSError when Consul
        does not answer.
        """
        self.need_running()
        acl = consul_agent.ConsulAcl(self.settings.consul_address, self.vault)
        # Each step looks before it makes: two commands that looked at the same moment would both make.
        with self._locked():
            acl.apply([service], self.settings.consul_production)
            self.vault.redis_password_file(service)
            for name in redis_servers.SERVERS:
                redis_servers.configure(self.settings, self.vault, name)
            redis_servers.admit(self.settings, self.vault, service)
            rabbitmq.admit(self.settings, self.vault, service)
            self.vault.write_clients([*self.fleet, service])

    def edge_environment(self) -> dict[str, str]:
        """For the controller's own commands."""
        return {**self.catalogue.base_environment(), **self.catalogue.edge_environment()}

    def edge_settings(self) -> EdgeSettings:
        """The edge's settings as the controller will read them. Raises ValidationError, which names the variable."""
        given = {**os.environ, **self.catalogue.extra}
        values: dict[str, Any] = {name.lower(): value for name, value in given.items()}
        return EdgeSettings(**{name: values[name] for name in EdgeSettings.model_fields if name in values})

    def need_running(self) -> None:
        """Raises NotRunning."""
        if not self.running():
            raise NotRunning

    def log_file(self, name: str) -> Path:
        """Where the output of an instance or server goes."""
        return self.settings.log_dir / f"{name}.log"

    def _refresh(self) -> None:
        self.state = State.load(self.state.path)

    def _spec(self, service: str) -> ServiceSpec:
        if service not in self.fleet:
            raise BadRequest(
                f"there is no service {service!r}", f"there are: {', '.join(sorted(self.fleet))}"
            )
        return self.fleet[service]

    @staticmethod
    def _count(count: int | None, most: int) -> int:
        if count is not None and not 1 <= count <= max(most, 1):
            raise BadRequest(f"N={count}: there are {most} to choose from", "N counts instances, from 1")
        return most if count is None else count

    def _live(self, name: str) -> int:
        pid = self.pid(name)
        if not pid:
            raise BadRequest(
                f"{name} does not run", f"start it: make start SERVICE={name.rpartition('-')[0] or name}"
            )
        return pid

    @contextlib.contextmanager
    def _locked(self, within_s: float = 60.0) -> Iterator[None]:
        """One `up`, `down`, `scale` or new name at a time for this stack."""
        self.settings.run_dir.mkdir(parents=True, exist_ok=True)
        with (self.settings.run_dir / "stack.lock").open("w") as file:
            until = time.monotonic() + within_s
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > until:
                        raise StackError(
                            "another command is working on this stack", "wait until it has ended"
                        ) from None
                    time.sleep(0.1)
            yield
