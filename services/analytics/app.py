"""analytics: how many users, posts and comments there are, and when they came, by what auth, users and posts have told."""

from __future__ import annotations

from typing import Any

from flask import Response
from sqlalchemy.orm import Session

from services.analytics import page, store
from services.analytics.answers import HTML, DetailsAnswer, SeriesAnswer, TagsAnswer, TotalsAnswer
from services.analytics.domain import HEARD, SeriesQuery, TagQuery
from services.kit import Event, create_service, kit, require_scope, stale_if_error
from services.kit.auth.require import Need, authorize
from services.kit.text import iso, now_us
from services.kit.web.paging import page_of
from services.kit.web.resources import conditional, read

# What is counted comes a moment late anyway.
READ = "public, max-age=5, s-maxage=5"
FORGET_EVERY_S = 600.0
TOP_AUTHORS = 20
TOP_TAGS = 10
ADMIN = Need(frozenset({"admin"}))

app = create_service(
    "analytics",
    paths=["/api/analytics"],
    auth="read-public",
    balance="roundrobin",
    domain="business",
    lane="gateway",
    edge_cache=True,
    models_metadata=store.Base.metadata,
    calls=[],
    events=True,
)
own = app.extensions["kit"]


def hear(event: Event, session: Session) -> None:
    store.count(session, event, now_us())


for heard in HEARD:
    own.events.consumes(heard)(hear)


def forget_old() -> None:
    with own.db.session() as session:
        store.forget_old(session, now_us())


own.jobs.every(FORGET_EVERY_S, forget_old)


@app.get("/api/analytics/totals", responses=read(TotalsAnswer))
@stale_if_error(scope="public")
def get_totals() -> Response:
    """What there is now, as far as it has been heard: a moment after it happened."""
    with kit().db.session(read_only=True) as session:
        totals, hearings = store.read_totals(session), store.list_hearings(session)
    last = max(hearings, key=lambda hearing: hearing.heard_us, default=None)
    last_us = max((hearing.last_us for hearing in hearings), default=0)
    data = {
        **totals,
        "asOf": iso(now_us()),
        "lastEventAt": iso(last_us) if last_us else None,
        "delayS": last.to_json()["delayS"] if last else None,
    }
    return conditional({"data": data}, READ)


@app.get("/api/analytics/series", responses=read(SeriesAnswer))
@stale_if_error(scope="public")
def get_series(query: SeriesQuery) -> Response:
    """Events of a kind by day, for all; by hour and minute for administrators: they would show what single persons do.

    Days and hours are those of UTC. At most 1,000 points; where nothing happened the count is 0.
    """
    if query.by != "day":
        authorize(ADMIN)
    starts = query.starts(now_us())
    with kit().db.session(read_only=True) as session:
        counts = store.read_series(session, query.kind, query.by, starts)
    points = [{"start": iso(start * 1_000_000), "count": counts.get(start, 0)} for start in starts]
    data = {"kind": query.kind, "by": query.by, "total": sum(counts.values()), "points": points}
    return conditional({"data": data}, READ if query.by == "day" else "private, no-store")


@app.get("/api/analytics/tags", responses=read(TagsAnswer))
@stale_if_error(scope="public")
def list_tags(query: TagQuery) -> Response:
    """The tags of published posts, the most used first."""
    after = query.after(int, str)
    with kit().db.session(read_only=True) as session:
        tags = store.list_tags(session, query.limit + 1, after)
    return conditional(page_of(tags, query, lambda tag: (tag.count, tag.tag)), READ)


@app.get("/api/analytics/details", responses={200: DetailsAnswer})
@require_scope("admin")
def get_details() -> tuple[dict[str, Any], int, dict[str, str]]:
    """The busiest authors, and what was heard of each kind of event: how many, when, how late."""
    with kit().db.session(read_only=True) as session:
        authors = store.list_authors(session, TOP_AUTHORS)
        hearings = store.list_hearings(session)
    data = {
        "asOf": iso(now_us()),
        "authors": [{"authorId": author, "posts": posts} for author, posts in authors],
        "events": [hearing.to_json() for hearing in hearings],
    }
    return {"data": data}, 200, {"Cache-Control": "private, no-store"}


@app.get("/api/analytics/page", responses=HTML)
def get_page() -> Response:
    """Totals, the last 30 days and the top tags, to look at."""
    at_us = now_us()
    with kit().db.session(read_only=True) as session:
        totals, tags = store.read_totals(session), store.list_tags(session, TOP_TAGS)
        charts = []
        for kind in page.SHOWN:
            starts = SeriesQuery.model_validate({"kind": kind}).starts(at_us)
            charts.append(page.draw(kind, starts, store.read_series(session, kind, "day", starts)))
    response = Response(page.render(totals, iso(at_us), charts, tags), mimetype="text/html")
    response.headers["Cache-Control"] = READ
    response.headers["Content-Security-Policy"] = page.POLICY
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    return response
