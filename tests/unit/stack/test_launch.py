"""Choosing the user that runs the stack, and the folder, and what is installed: the parts that change nothing on the machine."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

import pytest

from stack import launch
from stack.install import account, packages


def test_caller_that_is_not_root_runs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1234567)
    assert account.choose(tmp_path, [], {"SUDO_USER": "daemon"}).uid == 1234567


@pytest.fixture
def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)


@pytest.mark.usefixtures("as_root")
def test_root_becomes_the_user_of_sudo_or_the_one_that_is_named() -> None:
    environment = {"SUDO_USER": "daemon"}
    assert account.choose(Path("/usr"), [Path("/nonexistent")], environment).name == "daemon"
    assert account.choose(Path("/usr"), [], environment | {"BREAKWATER_USER": "nobody"}).name == "nobody"


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize("name", ["root", "no such user"])
def test_user_that_cannot_be_is_refused(name: str) -> None:
    with pytest.raises(account.AccountError, match="BREAKWATER_USER"):
        account.choose(Path("/usr"), [], {"BREAKWATER_USER": name})


def test_copy_of_the_code_follows_it_and_keeps_the_state(tmp_path: Path) -> None:
    repo, copy = tmp_path / "repo", tmp_path / "copy"
    for name in (
        "a/x.py",
        "a/old.py",
        "run.sh",
        ".git/config",
        "var/secrets/token",
        ".venv/bin/python",
        "a/__pycache__/x.pyc",
    ):
        (repo / name).parent.mkdir(parents=True, exist_ok=True)
        (repo / name).write_text(name)
    (repo / "run.sh").chmod(0o700)
    (repo / "link").symlink_to("/etc/passwd")
    account.copy_code(repo, copy)
    (copy / "var").mkdir()
    (copy / "var" / "state").write_text("kept")
    (repo / "a" / "x.py").write_text("changed")
    (repo / "a" / "old.py").unlink()
    account.copy_code(repo, copy)
    files = {str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file()}
    assert files == {"a/x.py", "run.sh", "var/state"}
    assert (copy / "a" / "x.py").read_text() == "changed"
    assert (copy / "run.sh").stat().st_mode & 0o777 == 0o755
    assert (copy / "a" / "x.py").stat().st_mode & 0o777 == 0o644


def test_closed_folder_on_the_way_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = tmp_path / "a" / "repo"
    (repo / "code").mkdir(parents=True)
    (repo / "code" / "x.py").write_text("")
    (repo / "tmp").mkdir()
    closed = {tmp_path / "a"}
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) not in closed and real(path, mode))

    def first_closed() -> Path | None:
        return account.first_closed(account.code_of(repo))

    assert first_closed() == tmp_path / "a"
    closed.clear()
    assert first_closed() is None
    closed.add(repo / "code" / "x.py")
    assert first_closed() == repo / "code" / "x.py"
    closed.add(repo / "code")
    assert first_closed() == repo / "code"
    # As nginx leaves one: nothing of the project is in it.
    closed.clear()
    closed.add(repo / "tmp")
    assert first_closed() is None


def test_environment_of_the_ordinary_user_leads_not_into_roots_home(tmp_path: Path) -> None:
    user = account.Account("dev", 1000, 1000)
    roots = tmp_path / "roots"
    given = {"HOME": str(roots), "SUDO_USER": "dev", "XDG_CACHE_HOME": str(roots / "cache"), "PATH": "/bin"}
    found = account.environment_for(user, given, tmp_path)
    assert found == {"PATH": "/bin", "HOME": str(tmp_path / "home"), "USER": "dev", "LOGNAME": "dev"}


def test_missing_package_without_root_and_sudo_says_what_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1234567)
    monkeypatch.setattr(packages, "SEARCH", ())
    (tmp_path / "apt-get").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        packages.InstallError,
        match=r"there is no sudo\nas root: apt-get install haproxy redis-server util-linux",
    ):
        packages.install_packages("run", sys.executable)


def test_virtual_environment_of_the_same_locks_is_left_alone(tmp_path: Path) -> None:
    venv, repo = tmp_path / "venv", tmp_path / "repo"
    for name in ("bin", "tools/bin", "lib"):
        (venv / name).mkdir(parents=True)
    (venv / "bin" / "python").symlink_to(sys.executable)
    (venv / "tools" / "bin" / "consul").touch()
    repo.mkdir()
    for name in packages.LOCKS["test"]:
        (repo / name).write_text(f"# {name}\n")
    digests = {
        name: hashlib.sha256((repo / name).read_bytes()).hexdigest() for name in packages.LOCKS["test"]
    }
    (venv / "breakwater.json").write_text(json.dumps(digests))
    broken = "/nonexistent/python"
    packages.install_venv(venv, repo, "test", broken)
    packages.install_venv(venv, repo, "run", broken)
    (repo / "requirements-dev.lock").write_text("# changed\n")
    packages.install_venv(venv, repo, "run", broken)
    with pytest.raises(packages.InstallError, match="could not be made"):
        packages.install_venv(venv, repo, "test", broken)
    left = [str(path.relative_to(venv)) for path in venv.rglob("*")]
    assert sorted(left) == ["tools", "tools/bin", "tools/bin/consul"], "all but Consul is made anew"


@pytest.mark.parametrize("known", [None, "", "default", "full"])
def test_backends_that_tests_take(known: str | None) -> None:
    launch.check_backends({} if known is None else {"BACKENDS": known})


def test_unknown_backends_end_the_tests_before_anything_is_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BACKENDS", "oracle")
    assert launch.main(["test"]) == 1
    assert capsys.readouterr().err == "error: BACKENDS=oracle is unknown\nit takes: default, full\n"


def test_command_before_anything_is_installed_says_how_to_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch, "REPO", tmp_path)
    monkeypatch.setattr(os, "umask", lambda mode: 0o022)
    assert launch.main(["status"]) == 1
    assert "make up" in capsys.readouterr().err


def test_look_for_ports_leaves_no_compiled_code_that_is_roots(tmp_path: Path) -> None:
    """The stack's user could not replace it, and each of its programs would compile everything at every start."""
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(tmp_path), "PYTHONPATH": str(launch.REPO)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    assert launch.port_holders(sys.executable, environment).startswith("{")
    assert not list(tmp_path.iterdir())
