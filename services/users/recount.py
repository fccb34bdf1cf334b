"""Counting posts anew, from what posts has: for an operator who doubts the counts, or has restored a database.

Events may come meanwhile. A post that is counted twice counts once, and one that is missing is asked for by itself before it
is taken out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import discovery
from services.kit.container import Kit
from services.kit.settings import secret
from services.kit.text import now_us
from services.users import store

PAGE = 100
BATCH = 500
DEADLINE_S = 10.0


class PostsAway(Exception):
    """posts did not answer as it should."""


def recount(kit: Kit) -> tuple[int, int]:
    """Bring the counts in step with posts: (posts, accounts whose count was another). Raises PostsAway, SQLAlchemyError."""
    settings = kit.settings
    api = discovery.ConsulApi(settings.consul_http_addr, secret(settings.consul_http_token))
    view = discovery.View(api, services=["posts"])
    view.start()
    try:
        if not view.ready(DEADLINE_S):
            raise PostsAway("Consul does not say where posts is")
        posts = Posts(discovery.ServiceClient(view))
        seen: set[str] = set()
        for page in posts.pages():
            seen.update(post_id for post_id, _ in page)
            with kit.db.session() as session:
                for post_id, author_id in page:
                    store.post_published(session, post_id, author_id, now_us())
        _remove_missing(kit, posts, seen)
    finally:
        view.stop()
    return len(seen), _count_accounts(kit)


class Posts:
    """What posts shows to every reader."""

    def __init__(self, client: discovery.ServiceClient) -> None:
        self._client = client

    def pages(self) -> Iterator[list[tuple[str, str]]]:
        """(post, author) of all posts, page by page. Raises PostsAway."""
        cursor = None
        while True:
            body = self._get(f"/api/posts?limit={PAGE}{f'&cursor={cursor}' if cursor else ''}").json()
            yield [(post["id"], post["authorId"]) for post in body["data"]]
            cursor = body["page"]["nextCursor"]
            if cursor is None:
                return

    def has(self, post_id: str) -> bool:
        """Raises PostsAway."""
        return bool(self._get(f"/api/posts/{post_id}", 404).status != 404)

    def _get(self, path: str, *also: int) -> Any:
        try:
            answer = self._client.request("GET", "posts", path, deadline_s=DEADLINE_S)
        except discovery.CallError as error:
            raise PostsAway(str(error)) from error
        if answer.status not in (200, *also):
            raise PostsAway(f"posts answers {answer.status} for {path}")
        return answer


def _remove_missing(kit: Kit, posts: Posts, seen: set[str]) -> None:
    after = ""
    while True:
        with kit.db.session(read_only=True) as session:
            known = store.authored(session, after, BATCH)
        if not known:
            return
        gone = [each for each in known if each[0] not in seen and not posts.has(each[0])]
        with kit.db.session() as session:
            for post_id, author_id in gone:
                store.post_deleted(session, post_id, author_id, now_us())
        after = known[-1][0]


def _count_accounts(kit: Kit) -> int:
    changed, after = 0, None
    while True:
        with kit.db.session() as session:
            users = store.page(session, after, BATCH)
            changed += sum(store.recount(session, user.id, now_us()) for user in users)
        if len(users) < BATCH:
            return changed
        after = (users[-1].created_us, users[-1].id)
