"""One instance of a service that publishes and consumes: `python program.py posts` or `python program.py stats`."""

from __future__ import annotations

import sys
from typing import Any

from pydantic import BaseModel
from sqlalchemy import MetaData, func, insert, select
from sqlalchemy.orm import Session

from services.kit import create_service, kit, run
from tests.contract.events.rig import PostPublished, effects_table

name = sys.argv[1]
metadata = MetaData()
effects = effects_table(metadata)
app = create_service(name, models_metadata=metadata, events=True)
own = app.extensions["kit"]


class New(BaseModel):
    subject: str
    number: int


@app.post("/internal/publish")
def publish(body: New) -> tuple[str, int]:
    with kit().db.session():
        kit().events.publish(PostPublished(postId=body.subject, number=body.number))
    return "", 204


@app.get("/internal/count")
def count() -> dict[str, Any]:
    with kit().db.session(read_only=True) as session:
        return {"count": session.scalar(select(func.count()).select_from(effects))}


if name == "stats":

    @own.events.consumes(PostPublished)
    def note(event: PostPublished, session: Session) -> None:
        session.execute(insert(effects).values(subject=event.postId, number=event.number))


if __name__ == "__main__":
    run(app)
