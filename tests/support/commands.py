"""Commands run in this process: what they print and how they end, without the second that an interpreter takes to start."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from subprocess import CompletedProcess
from unittest import mock

import structlog


def run_here(
    main: Callable[[], int], *words: str, env: Mapping[str, str], cwd: Path
) -> CompletedProcess[str]:
    """`main()` with these arguments, in this environment and folder. It must start nothing that outlives it."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["command", *words]),
        mock.patch.dict(os.environ, env, clear=True),
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            status = main()
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else 1
        finally:
            structlog.reset_defaults()
    return CompletedProcess(list(words), status, out.getvalue(), err.getvalue())
