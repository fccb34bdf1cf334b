"""Which user runs the stack when root starts it, and from which folder. Standard library only, as `packages`."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stack.install import packages

SYSTEM_USER = "breakwater"
COPIES = Path("/var/lib/breakwater")
NOT_CODE = {
    "var",
    ".venv",
    ".git",
    "__pycache__",
    ".pytest_cache",
    ".mypy_cache",
    ".ruff_cache",
    ".hypothesis",
}
_HOMEBOUND = ("XDG_RUNTIME_DIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "MAIL", "OLDPWD")


class AccountError(Exception):
    """No user to run the stack as, or none that could. The text says what to do."""


@dataclass(frozen=True)
class Account:
    """An ordinary user. `name` may be a number where /etc/passwd knows none."""

    name: str
    uid: int
    gid: int

    def enter(self) -> None:
        """Become this user for good; only root calls it."""
        if self.name.isdigit():
            os.setgroups([])
        else:
            os.initgroups(self.name, self.gid)
        os.setgid(self.gid)
        os.setuid(self.uid)

    def succeeds(self, argv: Sequence[str]) -> bool:
        """Whether a command succeeds when this user runs it."""
        return packages.succeeds(argv, cwd="/", preexec_fn=None if os.geteuid() else self.enter)


def choose(repo: Path, states: Sequence[Path], environment: Mapping[str, str]) -> Account:
    """The caller, or, for root: BREAKWATER_USER, the owner of the state there is, the user of sudo, the owner of the checkout, a system user."""
    if os.geteuid():
        return _known(os.geteuid())
    named = environment.get("BREAKWATER_USER") or ""
    if named:
        return _by_name(named)
    owners = [folder.stat().st_uid for folder in states if folder.exists()]
    if any(owners):
        return _known(next(filter(None, owners)))
    if environment.get("SUDO_USER", "root") != "root":
        return _by_name(environment["SUDO_USER"])
    owner = repo.stat().st_uid
    return _known(owner) if owner else _system_user()


def _by_name(name: str) -> Account:
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise AccountError(
            f"there is no user {name}\nset BREAKWATER_USER to one that exists, or unset it"
        ) from None
    if entry.pw_uid == 0:
        raise AccountError(
            "the stack does not run as root\nset BREAKWATER_USER to an ordinary user, or unset it"
        )
    return Account(name, entry.pw_uid, entry.pw_gid)


def _known(uid: int) -> Account:
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return Account(str(uid), uid, os.getegid() or uid)
    return Account(entry.pw_name, uid, entry.pw_gid)


def _system_user() -> Account:
    try:
        return _by_name(SYSTEM_USER)
    except AccountError:
        tool = shutil.which("useradd", path="/usr/sbin:/sbin:/usr/bin:/bin")
        argv = [
            tool or "useradd",
            "--system",
            "--user-group",
            "--no-create-home",
            "--home-dir",
            "/nonexistent",
        ]
        argv += ["--shell", "/usr/sbin/nologin", SYSTEM_USER]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise AccountError(
                f"the user {SYSTEM_USER} could not be made: {done.stderr.strip()}\nset BREAKWATER_USER to an ordinary user"
            ) from None
        return _by_name(SYSTEM_USER)


def unreadable(account: Account, repo: Path) -> Path | None:
    """The first folder or file in the way of this user reading the code; None when everything can be read."""
    if os.geteuid():
        return None
    code = code_of(repo)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            account.enter()
            found = first_closed(code)
            os.write(writing, os.fsencode(found) if found else b"")
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return Path(os.fsdecode(answer)) if answer else None


def code_of(repo: Path) -> dict[Path, int]:
    """What has to be read, and how: the way to the checkout, its files, and their folders.

    A folder without a file is none of it: nginx and others make such closed folders where they are started.
    """
    needed = dict.fromkeys([*reversed(repo.parents), repo], os.X_OK)
    for top, folders, files in os.walk(repo):
        folders[:] = [name for name in folders if name not in NOT_CODE]
        if files:
            needed[Path(top)] = os.R_OK | os.X_OK
            needed |= {Path(top) / name: os.R_OK for name in files}
    return needed


def first_closed(needed: Mapping[Path, int]) -> Path | None:
    """The first of these that this process may not use as it should."""
    return next((path for path, how in needed.items() if not os.access(path, how)), None)


def copy_code(repo: Path, target: Path) -> None:
    """Make `target` hold the code of `repo`, readable by all users, and nothing else beside `var` and `.venv`."""
    target.mkdir(parents=True, exist_ok=True)
    wanted: set[Path] = set()
    for top, folders, files in os.walk(repo):
        folders[:] = [name for name in folders if name not in NOT_CODE]
        here = target / Path(top).relative_to(repo)
        here.mkdir(exist_ok=True)
        here.chmod(0o755)
        for name in files:
            source = Path(top) / name
            if source.is_symlink() or not stat.S_ISREG(source.stat().st_mode):
                continue
            wanted.add(here / name)
            _copy_changed(source, here / name)
    for top, folders, files in os.walk(target):
        folders[:] = [name for name in folders if name not in NOT_CODE]
        for name in files:
            if Path(top) / name not in wanted:
                (Path(top) / name).unlink()


def _copy_changed(source: Path, target: Path) -> None:
    old, new = source.stat(), target.stat() if target.exists() else None
    if new is None or (new.st_size, new.st_mtime_ns) != (old.st_size, old.st_mtime_ns):
        shutil.copy2(source, target)
    target.chmod(0o755 if old.st_mode & 0o100 else 0o644)


def give(folder: Path, account: Account) -> None:
    """Make the folder if need be, and make it and all in it this user's. Links are not followed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AccountError(
            f"{folder} cannot be made: {error.strerror}\nchoose another folder for the state: BREAKWATER_VAR=<folder>"
        ) from None
    if os.geteuid():
        if not os.access(folder, os.W_OK | os.X_OK):
            raise AccountError(
                f"{account.name} cannot write to {folder}\nmake it yours, or choose another: BREAKWATER_VAR=<folder>"
            )
        return
    if folder.stat().st_uid == account.uid:
        return
    os.chown(folder, account.uid, account.gid)
    for top, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            os.chown(Path(top) / name, account.uid, account.gid, follow_symlinks=False)


def environment_for(account: Account, environment: Mapping[str, str], var: Path) -> dict[str, str]:
    """The environment after `enter`: nothing that leads back into root's home."""
    kept = {k: v for k, v in environment.items() if k not in _HOMEBOUND and not k.startswith("SUDO_")}
    return {**kept, "HOME": str(var / "home"), "USER": account.name, "LOGNAME": account.name}
