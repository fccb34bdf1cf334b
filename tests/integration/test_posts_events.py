"""posts tells what happens to posts and comments, and lets go of what deleted authors wrote: on real databases and a real Redis."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from services.users.events import UserDeleted
from tests.integration.content import World, pair
from tests.support.databases import Backend, on_both
from tests.support.eventually import eventually
from tests.support.happened import deliver, told
from tests.support.instances import RunningInstance

pytestmark = on_both


@pytest.fixture(scope="module")
def two(
    around: World, backend: Backend, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[RunningInstance]]:
    with pair("posts", backend, around, tmp_path_factory.mktemp("posts")) as instances:
        yield instances


@pytest.fixture
def ada() -> str:
    return "ada-" + uuid.uuid4().hex[:12]


def write(blog: RunningInstance, token: str, path: str = "/api/posts", **body: Any) -> dict[str, Any]:
    body = {"content": "c", **({"title": "t"} if path.endswith("posts") else {}), **body}
    answer = blog.call("POST", path, json=body, token=token)
    assert answer.status_code == 201, answer.text
    return dict(answer.json()["data"])


def said(around: World, author: str) -> list[tuple[str, dict[str, Any]]]:
    """(type, data) of what posts has told about an author, in its order."""
    return [(e.type, e.data) for e in told(around.state, "posts") if e.data["authorId"] == author]


def test_published_and_deleted_once_each_and_nothing_of_a_draft(
    two: list[RunningInstance], around: World, ada: str
) -> None:
    token = around.user(ada)
    draft = write(two[0], token, draft=True, tags=["x"])
    write(two[0], token, draft=True)
    post = write(two[1], token, content="by @Bob and @bob, not me@carol.example; @carol-1.", tags=["a", "b"])
    where = f"/api/posts/{draft['id']}"
    for blog in two:
        published = blog.call("POST", f"{where}/publish", token=token)
        assert published.status_code == 200, published.text
    for path in (f"/api/posts/{post['id']}", where):
        assert two[0].call("DELETE", path, token=token).status_code == 204
    eventually(lambda: len(said(around, ada)) == 4, 10)
    kinds = sorted((kind, data["postId"]) for kind, data in said(around, ada))
    ids = sorted((draft["id"], post["id"]))
    assert kinds == [(f"post.{what}.v1", each) for what in ("deleted", "published") for each in ids]
    first = next(
        d for kind, d in said(around, ada) if (kind, d["postId"]) == ("post.published.v1", post["id"])
    )
    assert (first["mentions"], first["tags"], first["title"]) == (["bob", "carol-1"], ["a", "b"], "t")
    order = [kind for kind, data in said(around, ada) if data["postId"] == draft["id"]]
    assert order == ["post.published.v1", "post.deleted.v1"]


def test_draft_is_its_authors_alone_until_it_is_published(
    two: list[RunningInstance], around: World, ada: str
) -> None:
    token, other = around.user(ada), around.user("eve")
    draft = write(two[0], token, content=f"word{ada}", tags=[f"t{ada}"], draft=True)
    assert draft["publishedAt"] is None
    where = f"/api/posts/{draft['id']}"

    def listed(**query: str) -> list[str]:
        return [post["id"] for post in two[1].call("GET", "/api/posts", params=query).json()["data"]]

    for path in (where, f"{where}/comments", f"{where}/likes"):
        assert two[1].call("GET", path).status_code == 404
        assert two[1].call("GET", path, token=token).status_code == 404
    for method, path in (
        ("PATCH", where),
        ("DELETE", where),
        ("POST", f"{where}/publish"),
        ("PUT", f"{where}/like"),
    ):
        answer = two[1].call(method, path, json={"title": "x"}, token=other)
        assert answer.status_code == 404, (method, path)
    assert two[1].call("POST", f"{where}/comments", json={"content": "c"}, token=token).status_code == 404
    assert listed(author=ada) == listed(q=f"word{ada}") == listed(tag=f"t{ada}") == []
    assert f"t{ada}" not in {each["tag"] for each in two[1].call("GET", "/api/posts/tags").json()["data"]}
    drafts = two[1].call("GET", "/api/posts/drafts", token=token).json()["data"]
    assert [each["id"] for each in drafts] == [draft["id"]]
    assert two[1].call("GET", "/api/posts/drafts", token=other).json()["data"] == []
    assert two[1].call("GET", "/api/posts/drafts").status_code == 401
    later = write(two[0], token)
    assert two[1].call("PATCH", where, json={"title": "Better"}, token=token).status_code == 200
    assert two[1].call("POST", f"{where}/publish", token=token).json()["data"]["title"] == "Better"
    # Where it stands in lists goes by its publication.
    assert listed(author=ada) == [draft["id"], later["id"]]
    assert listed(q=f"word{ada}") == [draft["id"]]
    assert two[1].call("GET", "/api/posts/drafts", token=token).json()["data"] == []


def test_comments_are_told_with_whom_they_answer_and_go_with_their_answers(
    two: list[RunningInstance], around: World, ada: str
) -> None:
    bob = f"bob{ada}"
    post = write(two[0], around.user(ada))
    where = f"/api/posts/{post['id']}/comments"
    first = write(two[0], around.user(bob), where, content="hello @ada")
    answer = write(two[1], around.user(ada), where, parentId=first["id"])
    write(two[1], around.user(bob), where, parentId=first["id"])
    assert (first["parentId"], answer["parentId"]) == (None, first["id"])
    for wrong in (answer["id"], uuid.uuid4().hex):
        refused = two[0].call("POST", where, json={"content": "c", "parentId": wrong}, token=around.user(bob))
        assert refused.status_code == 422, refused.text
    assert two[0].call("DELETE", f"{where}/{first['id']}", token=around.user(bob)).status_code == 204
    assert two[1].call("GET", where).json()["data"] == []
    write(two[0], around.user(bob), where)
    assert two[0].call("DELETE", f"/api/posts/{post['id']}", token=around.user(ada)).status_code == 204
    eventually(lambda: said(around, ada)[-1][0] == "post.deleted.v1", 10)
    told_of_bob = [(kind, data) for kind, data in said(around, bob) if kind.startswith("comment")]
    assert [kind for kind, _ in told_of_bob] == [
        "comment.created.v1", "comment.created.v1", "comment.deleted.v1", "comment.created.v1",
    ]  # fmt: skip
    assert told_of_bob[0][1]["mentions"] == ["ada"]
    assert (told_of_bob[0][1]["postAuthorId"], told_of_bob[1][1]["parentAuthorId"]) == (ada, bob)
    assert told_of_bob[2][1]["replies"] == 2
    assert said(around, ada)[-1][1]["comments"] == 1


def test_a_post_is_liked_once_by_each(two: list[RunningInstance], around: World, ada: str) -> None:
    post = write(two[0], around.user(ada))
    where = f"/api/posts/{post['id']}"

    def likes(token: str | None = None) -> dict[str, Any]:
        return dict(two[1].call("GET", f"{where}/likes", token=token).json()["data"])

    before = two[0].call("GET", where).headers["ETag"]
    for who in ("bob", "bob", "eve"):
        assert two[0].call("PUT", f"{where}/like", token=around.user(who)).status_code == 204
    assert likes() == {"count": 2, "liked": False}
    assert two[0].call("GET", where).headers["ETag"] == before, "a like is no change of the post"
    for _ in range(2):
        assert two[1].call("DELETE", f"{where}/like", token=around.user("eve")).status_code == 204
    assert likes()["count"] == 1
    assert two[0].call("PUT", f"{where}/like").status_code == 401
    gone = f"/api/posts/{uuid.uuid4().hex}/like"
    assert two[0].call("PUT", gone, token=around.user("bob")).status_code == 404


def test_what_a_deleted_author_wrote_goes(two: list[RunningInstance], around: World, ada: str) -> None:
    token, other = around.user(ada), around.user(f"bob{ada}")
    posts = [write(two[n % 2], token, content=f"word{ada}", draft=n == 0) for n in range(3)]
    kept = write(two[0], other)
    under = f"/api/posts/{kept['id']}/comments"
    write(two[0], token, under)
    stays = write(two[0], other, under)
    two[0].call("PUT", f"/api/posts/{kept['id']}/like", token=token)
    deliver(around.state, UserDeleted(userId=ada, deletedAt=datetime.now(UTC)))

    def left() -> list[Any]:
        lists = [
            two[1].call("GET", "/api/posts", params={"author": ada}).json()["data"],
            two[1].call("GET", "/api/posts", params={"q": f"word{ada}"}).json()["data"],
            two[1].call("GET", "/api/posts/drafts", token=token).json()["data"],
            [each for each in two[1].call("GET", under).json()["data"] if each["id"] != stays["id"]],
        ]
        return [each for part in lists for each in part]

    eventually(lambda: left() == [], 20)
    assert two[1].call("GET", f"/api/posts/{kept['id']}/likes").json()["data"]["count"] == 0
    # Written with a token that is good for a moment longer.
    late = write(two[0], token)
    eventually(lambda: two[0].call("GET", f"/api/posts/{late['id']}").status_code == 404, 20)
    eventually(lambda: [kind for kind, _ in said(around, ada)].count("post.deleted.v1") == 3, 10)
    published = {data["postId"] for kind, data in said(around, ada) if kind == "post.published.v1"}
    deleted = {data["postId"] for kind, data in said(around, ada) if kind == "post.deleted.v1"}
    assert deleted == published == {posts[1]["id"], posts[2]["id"], late["id"]}
