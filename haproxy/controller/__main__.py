"""`python -m haproxy.controller init|run|plan`."""

from __future__ import annotations

import logging
import os
import sys

import structlog
import typer
from pydantic import ValidationError
from rich.console import Console

from discovery.errors import DiscoveryError
from haproxy.controller import app as controller
from haproxy.controller.errors import EdgeError
from haproxy.controller.loop.plan_command import look, show
from haproxy.controller.settings import EdgeSettings

cli = typer.Typer(
    add_completion=False, no_args_is_help=True, help="The edge controller: HAProxy in step with Consul."
)


@cli.command()
def run() -> None:
    """Follow Consul and keep HAProxy in step, until SIGTERM."""
    controller.run(_settings())


@cli.command()
def init() -> None:
    """Write a valid configuration, certificate and error pages where there are none, so that HAProxy can start."""
    settings = _settings()
    written = controller.initialise(settings)
    print(f"{settings.config_path}: {'written' if written else 'valid, left alone'}", file=sys.stderr)


@cli.command()
def plan() -> None:
    """Show desired beside observed, what would be done now, and why. Changes nothing."""
    show(look(_settings()), Console(width=None if sys.stdout.isatty() else 200))


def _settings() -> EdgeSettings:
    settings = EdgeSettings()
    settings.policy()
    return settings


def _set_up_logging() -> None:
    level = logging.getLevelNamesMapping().get(os.environ.get("LOG_LEVEL", "INFO").upper(), logging.INFO)
    console = os.environ.get("LOG_FORMAT", "json") == "console"
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.dev.ConsoleRenderer() if console else structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def main() -> None:
    """Run a command; an error that an operator can mend is one line, not a traceback."""
    _set_up_logging()
    try:
        cli()
    except ValidationError as error:
        for one in error.errors():
            print(f"controller: {str(one['loc'][0]).upper()}={one['input']}: {one['msg']}", file=sys.stderr)
        sys.exit(1)
    except (EdgeError, DiscoveryError, OSError) as error:
        print(f"controller: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
