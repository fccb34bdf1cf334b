"""What every service shares. Ten lines make a service:

from services.kit import create_service, run

app = create_service("hello", paths=["/api/hello"], auth="public")

@app.get("/api/hello")
def hello():
    return {"hello": "world"}

if __name__ == "__main__":
    run(app)
"""

from services.kit import early  # isort: skip  # noqa: F401

from services.kit.app import create_service
from services.kit.auth.require import require_scope, require_service
from services.kit.container import Kit, kit
from services.kit.events.event import Event
from services.kit.server.run import run
from services.kit.settings import ServiceSettings
from services.kit.stale.decorator import stale_if_error
from services.kit.web.api import ServiceApp, ServiceBlueprint
from services.kit.web.context import Caller, current
from services.kit.web.problems import Problem

__all__ = [
    "Caller",
    "Event",
    "Kit",
    "Problem",
    "ServiceApp",
    "ServiceBlueprint",
    "ServiceSettings",
    "create_service",
    "current",
    "kit",
    "require_scope",
    "require_service",
    "run",
    "stale_if_error",
]
