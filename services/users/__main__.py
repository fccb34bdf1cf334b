"""`python -m services.users` runs one instance; `recount` counts everybody's posts anew, and ends."""

from __future__ import annotations

import sys

import typer
from sqlalchemy.exc import SQLAlchemyError

from services.kit import run
from services.users import rpc
from services.users.app import app, own
from services.users.recount import PostsAway
from services.users.recount import recount as count_anew

cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@cli.callback(invoke_without_command=True)
def main(context: typer.Context) -> None:
    """Run one instance of users."""
    if context.invoked_subcommand is None:
        run(rpc.serve(app))


@cli.command()
def recount() -> None:
    """Bring every postCount in step with what posts has."""
    try:
        posts, changed = count_anew(own)
    except (PostsAway, SQLAlchemyError, OSError) as error:
        sys.exit(f"users: counted nothing more: {error}")
    print(f"{posts} posts; {changed} accounts had another count")


if __name__ == "__main__":
    cli()
