"""The configuration file and the reload: render, check, replace, reload, and make sure that the new worker came up."""

from __future__ import annotations

import contextlib
import hashlib
import json
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

import structlog

from discovery.errors import ContractError
from discovery.model import Route
from haproxy.controller.config.files import put_in_place, write_atomically, write_if_changed, written_beside
from haproxy.controller.config.model import EdgeState, VerifyKey
from haproxy.controller.config.template import prepare_files, render
from haproxy.controller.errors import ConfigRefused, ReloadFailed, Unreachable
from haproxy.controller.runtime.observed import down_lines
from haproxy.controller.runtime.socket import Master, ProcessInfo, Runtime, command
from haproxy.controller.settings import EdgeSettings

log = structlog.get_logger(__name__)

# Measured: `haproxy -c` takes 0.1 s for 5,000 servers, a reload 0.13 s; a machine under load many times that.
CHECK_TIMEOUT_S = 30.0
RELOAD_TIMEOUT_S = 20.0
_POLL_S = 0.005
_TEMPLATE = Path(__file__).resolve().parents[2] / "haproxy.cfg.j2"


def fingerprint(routes: Mapping[str, Route], keys: Iterable[VerifyKey], settings: EdgeSettings) -> str:
    """What a reload is needed for: it changes with routes, keys, settings and the template, not with servers."""
    digest = hashlib.sha256(_settings_print(settings).encode())
    for key in keys:
        digest.update(f"{key.kid}\n".encode() + key.pem)
    for name in sorted(routes):
        digest.update(json.dumps(asdict(routes[name]), sort_keys=True).encode())
    return digest.hexdigest()


def _settings_print(settings: EdgeSettings) -> str:
    digest = hashlib.sha256(_TEMPLATE.read_bytes())
    digest.update(settings.model_dump_json(exclude={"consul_http_token"}).encode())
    return digest.hexdigest()


class Reloader:
    """Owns the file. Not thread-safe, but for `loaded`: `Reloads` calls it from one thread."""

    def __init__(self, settings: EdgeSettings, runtime: Runtime, master: Master) -> None:
        self._settings = settings
        self._runtime = runtime
        self._master = master
        self._marker = settings.edge_dir.absolute() / "loaded.json"
        self._settings_mark = settings.edge_dir.absolute() / "settings.sha256"

    def loaded(self, process: ProcessInfo) -> str | None:
        """The fingerprint that this worker was loaded with; None when it was not loaded by a controller of ours."""
        try:
            marker = json.loads(self._marker.read_bytes())
            if (marker["pid"], marker["started"]) == (process.pid, process.started):
                return str(marker["fingerprint"])
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return None

    def written_for_these_settings(self) -> bool:
        """Whether the file at hand was: its ports may be another stack's by now."""
        try:
            return self._settings_mark.read_text() == _settings_print(self._settings)
        except OSError:
            return False

    def write(self, state: EdgeState) -> None:
        """Bring the file up to date without a reload. Raises ConfigRefused, OSError."""
        text = _rendered(state, self._settings)
        if text.encode() != self._present():
            self._prepare(state)
            self._replace(text, hurry=False)

    def reload(self, state: EdgeState) -> ProcessInfo:
        """Put a new worker in place, and return it as soon as it answers. Raises ConfigRefused, ReloadFailed, Unreachable, OSError.

        The file always holds every server that may serve now; those on their way out are not in it, and finish in the old worker.
        """
        before = self._runtime.info()
        self._prepare(state)
        former, text = self._present(), _rendered(state, self._settings)
        if text.encode() != former:
            self._replace(text, hurry=True)
        try:
            self._keep_down_servers()
            return self._new_worker(before)
        except BaseException:
            # The next start of HAProxy must not meet a file that no worker has come up with.
            if text.encode() != former:
                write_atomically(self._settings.config_path, former)
            raise
        finally:
            self._settings.server_state_file.unlink(missing_ok=True)

    def mark(self, process: ProcessInfo, print_: str) -> None:
        """Note what a worker was loaded with, so that a controller to come need not load it again. Raises OSError."""
        marker = {"pid": process.pid, "started": process.started, "fingerprint": print_}
        write_atomically(self._marker, json.dumps(marker).encode())

    def _prepare(self, state: EdgeState) -> None:
        """Make the files that the configuration of this state refers to."""
        prepare_files(state, self._settings)
        for key in state.keys:
            if key.pem:
                write_if_changed(Path(key.pem_path), key.pem)

    def _present(self) -> bytes:
        path = self._settings.config_path
        return path.read_bytes() if path.exists() else b""

    def _replace(self, text: str, *, hurry: bool) -> None:
        """Put the text in place once HAProxy has found it good."""
        path = self._settings.config_path
        with written_beside(path, text.encode(), mode=0o600) as new:
            check_config(new, self._settings.haproxy_binary, hurry=hurry)
            put_in_place(new, path)
        write_atomically(self._settings_mark, _settings_print(self._settings).encode())

    def _keep_down_servers(self) -> None:
        try:
            with self._runtime.session() as session:
                text = down_lines(session.send(command("show", "servers", "state")))
            write_atomically(self._settings.server_state_file, text.encode(), mode=0o600)
        except (Unreachable, OSError) as error:
            log.warning("servers that are down are not handed over", error=str(error))

    def _new_worker(self, before: ProcessInfo) -> ProcessInfo:
        try:
            known = self._master.info()
            self._master.reload()
        except Unreachable as error:
            raise ReloadFailed(f"the master's CLI does not answer: {error}") from error
        until = time.monotonic() + RELOAD_TIMEOUT_S
        while time.monotonic() < until:
            time.sleep(_POLL_S)
            # The master restarts itself in place, so that its socket is away for a moment.
            with contextlib.suppress(Unreachable):
                now = self._master.info()
                if now.failed > 0 and now.reloads > known.reloads:
                    raise ReloadFailed("the master could not start a new worker; its log says why")
                fresh = set(now.workers) - set(known.workers) - {before.pid}
                info = self._runtime.info()
                if info.pid in fresh:
                    return info
        raise ReloadFailed(f"no new worker within {RELOAD_TIMEOUT_S} s")


def _rendered(state: EdgeState, settings: EdgeSettings) -> str:
    try:
        return render(state, settings)
    except ContractError as error:
        raise ConfigRefused(str(error)) from error


def check_config(path: Path, binary: str = "haproxy", *, hurry: bool = True) -> None:
    """`haproxy -c`; without `hurry` it gives way to what else runs on the machine, HAProxy first of all.

    Raises ConfigRefused with what HAProxy says, also when it does not end in time or is missing.
    """
    # At 19 a busy machine gave it so little that it did not end in 30 s.
    patience = [] if hurry else ["nice", "-n", "5"]
    try:
        done = subprocess.run(
            [*patience, binary, "-c", "-q", "-f", str(path)],
            capture_output=True,
            timeout=CHECK_TIMEOUT_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigRefused(f"{binary} -c did not run: {error}") from error
    if done.returncode != 0:
        # The name is another one each time, and the same refusal is logged once.
        output = (done.stdout + done.stderr).decode(errors="replace")
        raise ConfigRefused(output.replace(str(path), "haproxy.cfg"))
