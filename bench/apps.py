"""The applications that are measured: `python -m bench.apps kit|bare|users|products|smart` is one instance.

Part (c) measures the first two, each served by gunicorn with the kit's settings. Part (f) measures with the gateway of the
tutorial (`bench.apps:app_gateway` under gunicorn's sync workers), and the services behind it and behind ours.
"""

from __future__ import annotations

import os
import sys
import time

import requests
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


def serve_bare() -> None:
    settings = ServiceSettings()
    listener = listen(settings.host, settings.port)
    server = BareServer(kit_service(), Kit("bare", settings, route=None), listener)
    listener.close()
    Arbiter(server).run()


# -- the tutorial's gateway, word for word but for where the services are

app_gateway = Flask(__name__)

USER_SERVICE_URL = os.environ.get("USER_SERVICE_URL", "http://localhost:5001/user/")
PRODUCT_SERVICE_URL = os.environ.get("PRODUCT_SERVICE_URL", "http://localhost:5002/product/")


@app_gateway.route("/api/<user_id>/<product_id>")
def get_user_and_product(user_id, product_id):  # type: ignore[no-untyped-def]
    user_response = requests.get(f"{USER_SERVICE_URL}{user_id}")  # noqa: S113 - as the tutorial has it
    user_data = user_response.json()

    product_response = requests.get(f"{PRODUCT_SERVICE_URL}{product_id}")  # noqa: S113
    product_data = product_response.json()

    result = {"user": user_data, "product": product_data}

    return jsonify(result)


# -- the services: the tutorial's answers, given by services of this project's kit

# Ids are 32 hexadecimal digits, as the composed route wants them, and the first says what is asked for.
AT_ONCE, WAITING, KEEPABLE = "0", "a", "c"
WORK_S = 0.02
# Long enough that nothing expires during a run; the edge keeps nothing for longer.
MAX_AGE_S = 300


def _work(item_id: str) -> dict[str, str]:
    """What the id asks for, with the headers."""
    if item_id[0] == WAITING:
        time.sleep(WORK_S)
    return {"Cache-Control": f"public, max-age={MAX_AGE_S}" if item_id[0] == KEEPABLE else "no-store"}


def users() -> ServiceApp:
    """`/user/<id>` for the tutorial's gateway, `/api/users/<id>` for ours."""
    app = create_service("users", paths=["/api/users"], auth="public")

    @app.get("/user/<user_id>", endpoint="tutorial")
    @app.get("/api/users/<user_id>", endpoint="contract")
    def user(user_id: str) -> object:
        headers = _work(user_id)
        data = {"user_id": user_id, "username": f"user_{user_id}", "email": f"user_{user_id}@example.com"}
        return {"data": data}, headers

    return app


def products() -> ServiceApp:
    """`/product/<id>` for the tutorial's gateway, `/api/products/<id>` for ours."""
    return _products(create_service("products", paths=["/api/products"], auth="public"), "/api/products")


def smart() -> ServiceApp:
    """The same at `/api/smart/<id>`, for plain forwarding by our gateway."""
    return _products(
        create_service("smart", paths=["/api/smart"], auth="public", lane="gateway"), "/api/smart"
    )


def _products(app: ServiceApp, path: str) -> ServiceApp:
    @app.get("/product/<product_id>", endpoint="tutorial")
    @app.get(f"{path}/<product_id>", endpoint="contract")
    def product(product_id: str) -> object:
        headers = _work(product_id)
        return {"data": {"product_id": product_id, "name": f"Produit_{product_id}", "price": 19.99}}, headers

    return app


if __name__ == "__main__":
    if sys.argv[1] == "bare":
        serve_bare()
    else:
        run({"kit": kit_service, "users": users, "products": products, "smart": smart}[sys.argv[1]])
