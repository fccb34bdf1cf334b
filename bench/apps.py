"""The two applications of part (c), each served by gunicorn with the kit's settings: `python -m bench.apps kit|bare`."""

from __future__ import annotations

import sys

from flask import Flask, jsonify
from gunicorn.arbiter import Arbiter

from services.kit import Kit, ServiceSettings, create_service, run
from services.kit.server.run import Server, listen
from services.kit.web.api import ServiceApp

PATH = "/api/bench/1"
BODY = {"data": {"id": 1, "text": "x" * 170}}  # about 200 bytes as JSON


def kit_service() -> ServiceApp:
    """A service as docs/your-own-service.md makes it."""
    app = create_service("bench", paths=["/api/bench"], auth="public")

    @app.get(PATH)
    def answer() -> dict[str, object]:
        return BODY

    return app


def bare_flask() -> Flask:
    """The same answer, and nothing else."""
    app = Flask("bare")

    @app.get(PATH)
    def answer() -> object:
        return jsonify(BODY)

    return app


class BareServer(Server):
    """gunicorn exactly as the kit configures it, around another application."""

    def load(self) -> Flask:  # type: ignore[override]
        return bare_flask()

    def _started(self) -> None:
        """The kit's part of the start has nothing to do here."""


def main() -> None:
    if sys.argv[1] == "kit":
        run(kit_service)
    settings = ServiceSettings()
    listener = listen(settings.host, settings.port)
    server = BareServer(kit_service(), Kit("bare", settings, route=None), listener)
    listener.close()
    Arbiter(server).run()


if __name__ == "__main__":
    main()
