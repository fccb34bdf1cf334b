"""`program.py` with views that check tokens: such a service waits for auth's keys for a while before it serves."""

from __future__ import annotations

from typing import Any

from services.kit import current, kit, require_scope, run
from tests.contract.kit.program import app


@app.get("/api/hello/me")
@require_scope("user")
def me() -> dict[str, Any]:
    return {"subject": current().subject}


@app.get("/internal/hello/caller")
@require_scope("service")
def caller() -> dict[str, Any]:
    return {"subject": current().subject}


@app.get("/api/hello/as-service")
def as_service() -> Any:
    answer = kit().client.request("GET", "hello", "/internal/hello/caller")
    return answer.json(), answer.status


if __name__ == "__main__":
    run(app)
