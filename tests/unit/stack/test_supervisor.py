"""supervisord's file says what we mean: read back with supervisord's own parser."""

from __future__ import annotations

from pathlib import Path

import pytest
from supervisor.options import ServerOptions

from stack.errors import NotRunning, StackError
from stack.run.programs import Program, passed_on
from stack.run.supervisor import Supervisor
from stack.settings import StackSettings


@pytest.fixture
def supervisor(tmp_path: Path) -> Supervisor:
    settings = StackSettings(breakwater_var=tmp_path / "an odd, folder")
    for folder in (settings.run_dir, settings.log_dir):
        folder.mkdir(parents=True)
    return Supervisor(settings)


def parsed(supervisor: Supervisor) -> ServerOptions:
    options = ServerOptions()
    options.realize(["-c", str(supervisor.config), "-n"], doc="")
    return options


def test_odd_values_survive(supervisor: Supervisor) -> None:
    wanted = {"A": "50%", "B": "x,y=z", "C": "it's", "D": "a b", "URL": "redis://:p@127.0.0.1:1/0", "E": ""}
    supervisor.write([Program("users-1", ("/bin/echo", "a b", "100%", "it's"), wanted)])
    config = parsed(supervisor).process_group_configs[0].process_configs[0]
    assert dict(config.environment) == wanted
    assert config.command.endswith("""-- /bin/echo 'a b' 100% 'it'"'"'s'""")
    assert config.stdout_logfile == str(supervisor.settings.log_dir / "users-1.log")


def test_instances_drain_restart_and_end_with_supervisord(supervisor: Supervisor) -> None:
    supervisor.write([Program("users-1", ("/bin/true",), {}, 30)])
    config = parsed(supervisor).process_group_configs[0].process_configs[0]
    assert (config.stopsignal, config.stopwaitsecs, config.killasgroup) == (15, 30, True)
    assert config.autostart is False
    assert "--pdeathsig TERM" in config.command


@pytest.mark.parametrize("value", ['a"b', "a\nb", "a ;b"])
def test_value_that_the_file_cannot_hold_is_refused(supervisor: Supervisor, value: str) -> None:
    with pytest.raises(StackError):
        supervisor.write([Program("users-1", ("/bin/true",), {"A": value})])


def test_file_is_private(supervisor: Supervisor) -> None:
    supervisor.write([])
    assert supervisor.config.stat().st_mode & 0o777 == 0o600


def test_nobody_there_is_not_running(supervisor: Supervisor) -> None:
    with pytest.raises(NotRunning):
        supervisor.call("getState")
    assert supervisor.pid() is None


def test_credentials_of_the_shell_stay_there() -> None:
    shell = {
        "AWS_SECRET_ACCESS_KEY": "x",
        "GITHUB_TOKEN": "x",
        "PIP_INDEX_URL": "x",
        "LOG_LEVEL": "debug",
        "EDGE_RATE_SOURCE": "9",
    }
    assert passed_on(shell) == {"LOG_LEVEL": "debug", "EDGE_RATE_SOURCE": "9"}
