"""A service for the tests of the life cycle: run as a program of its own, as a stranger's would be."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from flask import Response, request
from pydantic import BaseModel

from services.kit import create_service, current, kit, run

app = create_service("hello", paths=["/api/hello"], auth="public")


class Thing(BaseModel):
    name: str


@app.get("/api/hello")
def hello() -> dict[str, Any]:
    return {"pid": os.getpid()}


@app.get("/api/hello/slow")
def slow() -> dict[str, Any]:
    time.sleep(float(request.args["s"]))
    return {"slept": True}


@app.get("/api/hello/stream")
def stream() -> Response:
    pause_s = float(request.args["s"]) / 5

    def parts() -> Any:
        for number in range(5):
            yield f"{number}\n"
            time.sleep(pause_s)

    return Response(parts(), mimetype="text/plain")


@app.get("/api/hello/quiet")
def quiet() -> Response:
    def parts() -> Any:
        time.sleep(10)
        yield "late"

    return Response(parts(), mimetype="text/event-stream")


@app.get("/api/hello/much")
def much() -> Response:
    return Response(b"x" * 32 * 1024 * 1024, mimetype="text/plain")


@app.post("/api/hello/things")
def add(body: Thing) -> Any:
    return body, 201


@app.post("/api/hello/raw")
def raw() -> dict[str, int]:
    return {"bytes": len(request.get_data())}


@app.get("/api/hello/die")
def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@app.get("/api/hello/peer")
def peer() -> dict[str, Any]:
    answer = kit().client.request("GET", "hello", "/api/hello/headers")
    return {"peer": answer.json(), "mine": current().request_id, "trace": current().traceparent}


@app.get("/api/hello/headers")
def headers() -> dict[str, str]:
    return {name.lower(): value for name, value in request.headers.items()}


if __name__ == "__main__":
    run(app)
