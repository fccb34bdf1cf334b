"""`python -m services.auth` runs one instance; `rotate` and `grant-admin <email>` work on its database and end."""

from __future__ import annotations

import sys
from datetime import UTC, datetime

import typer
from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError

from services.auth import store
from services.auth.app import create_app
from services.auth.keyring import KekError
from services.auth.service import Auth
from services.kit import ServiceApp, run
from services.kit.db.migrate import MigrationError
from services.kit.server.run import in_child

cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def _app() -> ServiceApp:
    try:
        return create_app()
    except (KekError, ValidationError, ValueError) as error:
        sys.exit(f"auth: cannot start: {error}")


def _auth(app: ServiceApp) -> Auth:
    """auth on a migrated database, with a signing key that it can read: an instance that could not sign never starts."""
    kit = app.extensions["kit"]
    auth: Auth = app.extensions["auth"]
    try:
        kit.db.migrate()
        auth.ring.signing_key()
    except KekError as error:
        sys.exit(f"auth: cannot start: {error}")
    except (MigrationError, SQLAlchemyError, OSError) as error:
        sys.exit(f"auth: database not ready: {error}")
    return auth


def _checked_app() -> ServiceApp:
    app = _app()
    in_child(lambda: _auth(app))
    return app


@cli.callback(invoke_without_command=True)
def main(context: typer.Context) -> None:
    """Run one instance of auth."""
    if context.invoked_subcommand is None:
        run(_checked_app)


@cli.command()
def rotate() -> None:
    """Publish a new signing key."""
    rotated = _auth(_app()).ring.rotate()
    when = datetime.fromtimestamp(rotated.active_from, UTC)
    print(
        f"{'new key' if rotated.created else 'under way'}: {rotated.kid}, signs from {when:%Y-%m-%d %H:%M:%S} UTC"
    )


@cli.command("grant-admin")
def grant_admin(email: str) -> None:
    """Make the account of this e-mail address an administrator. Tokens made from now on say so."""
    with _auth(_app()).kit.db.session() as session:
        granted = store.grant(session, email, "admin")
    if granted is None:
        sys.exit(f"auth: no account has the address {email}")
    print(f"{granted.email} ({granted.id}): {' '.join(granted.scopes)}")


if __name__ == "__main__":
    cli()
