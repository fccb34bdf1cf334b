"""Follows a page of the documentation: saves its files, runs its commands as they stand, knows what they should print."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stack.run.api import Stack
from stack.settings import REPO
from tests.support.servers import Process

YOUR_OWN_SERVICE = REPO / "docs" / "your-own-service.md"
_SECTION = re.compile(r"^## (.+)$", re.MULTILINE)
_BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
_SAVE_AS = re.compile(r"[Ss]ave as `([^`]+)`:\s*$")

# What the Makefile calls installs things and changes user; the stack's own command line is what it ends in.
_MAKE = """#!/bin/sh
command=$("{make}" --no-print-directory -n -f "{repo}/Makefile" "$@") || exit
eval exec "$(printf '%s' "$command" | sed 's#^python3 -m stack.launch#"{python}" -m stack#')"
"""


@dataclass(frozen=True)
class Block:
    """One fenced block; `file` is the name that the sentence before it says to save it as, or None."""

    language: str
    text: str
    file: str | None


class Page:
    """One section of a page, followed in `folder` on `stack`. `ports`: ports of the page → those here, beside the stack's own."""

    def __init__(
        self, path: Path, section: str, folder: Path, stack: Stack, ports: Mapping[int, int] | None = None
    ) -> None:
        self.folder = folder
        settings = stack.settings
        moved = {8080: settings.edge_http_port, 8500: settings.consul_http_port, **(ports or {})}
        self._ports = {str(here): str(there) for here, there in moved.items()}
        parts = _SECTION.split(path.read_text())
        text = parts[parts.index(section) + 1]
        self.blocks = [
            Block(match[1], self._moved(match[2]), self._file_before(text[: match.start()]))
            for match in _BLOCK.finditer(text)
        ]
        tools = folder / "tools"
        tools.mkdir()
        make = tools / "make"
        make.write_text(_MAKE.format(make=shutil.which("make"), repo=REPO, python=sys.executable))
        make.chmod(0o755)
        own = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        self.env = {**own, "PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(REPO)}
        self.env["BREAKWATER_VAR"] = str(settings.var)

    def save_files(self) -> None:
        """Write every file of the section."""
        for block in self.blocks:
            if block.file:
                (self.folder / block.file).write_text(block.text)

    def commands(self) -> list[str]:
        """The commands of the section, in order."""
        return [block.text.strip() for block in self.blocks if block.language == "sh"]

    def command(self, start: str) -> str:
        """The command that begins so; there must be one."""
        return next(command for command in self.commands() if command.startswith(start))

    def printed_by(self, command: str) -> str:
        """What the page says that the command prints: the block after it."""
        position = next(i for i, block in enumerate(self.blocks) if block.text.strip() == command)
        return self.blocks[position + 1].text

    def run(self, command: str) -> str:
        """Run a command to its end, at most 30 s; answers what it printed. Raises on another code than 0."""
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def start(self, command: str, name: str) -> Process:
        """Start a command that stays in the foreground, as a terminal of its own would."""
        script = f"cd '{self.folder}' && exec {command}"
        process = Process(["/bin/sh", "-c", script], self.folder / f"{name}.log", env=self.env)
        process.start()
        return process

    def _moved(self, text: str) -> str:
        return re.sub(r"\b\d{4}\b", lambda match: self._ports.get(match[0], match[0]), text)

    @staticmethod
    def _file_before(text: str) -> str | None:
        match = _SAVE_AS.search(text)
        return match[1] if match else None
