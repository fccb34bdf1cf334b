"""Each service's migrations make what its models say, and can be undone: on a real SQLite file and a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.operations import Operations

from services.kit.db.session import Database
from services.kit.events.tables import event_tables
from tests.support.databases import KINDS, database

MODELS = {
    "auth": "services.auth.store",
    "users": "services.users.store",
    "posts": "services.posts.store",
    "products": "services.products.store",
    "notifications": "services.notifications.tables",
    "analytics": "services.analytics.store",
}
WITH_EVENTS = ("auth", "users", "posts", "notifications", "analytics")
# These models name no indexes, and know nothing of the search: its tables on SQLite, its column on PostgreSQL.
SEARCHED = ("posts", "products")
NOT_IN_MODELS = ("remove_table", "remove_column", "remove_index", "remove_constraint")


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> pytest.FixtureRequest:
    return request


@pytest.fixture(params=MODELS)
def service(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def versions(service: str) -> Path:
    return Path(import_module(f"services.{service}").__file__ or "").parent / "migrations" / "versions"


@pytest.fixture
def metadata(service: str) -> sa.MetaData:
    found: sa.MetaData = import_module(MODELS[service]).Base.metadata
    if service in WITH_EVENTS:
        event_tables(found)  # as create_service does
    return found


@pytest.fixture
def db(
    kind: pytest.FixtureRequest, tmp_path: Path, metadata: sa.MetaData, versions: Path
) -> Iterator[Database]:
    with database(kind, tmp_path, metadata, versions.parent) as made:
        yield made


def test_migrations_make_what_the_models_say(db: Database, service: str, metadata: sa.MetaData) -> None:
    with db.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        drift = compare_metadata(context, metadata)
    if service in SEARCHED:
        drift = [each for each in drift if not (isinstance(each, tuple) and each[0] in NOT_IN_MODELS)]
    assert drift == []


def test_migrations_can_be_undone(db: Database, service: str, versions: Path) -> None:
    names = sorted((file.stem for file in versions.glob("0*.py")), reverse=True)
    with db.engine.begin() as connection, Operations.context(MigrationContext.configure(connection)):
        for name in names:
            import_module(f"services.{service}.migrations.versions.{name}").downgrade()
        assert set(sa.inspect(connection).get_table_names()) <= {"alembic_version", "sqlite_sequence"}
