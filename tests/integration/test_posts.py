"""posts: two real instances on one database, of either kind."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from tests.integration.content import World, pair
from tests.support.databases import Backend, on_both
from tests.support.document import Documented
from tests.support.instances import RunningInstance
from tests.support.matrix import one_always

pytestmark = on_both


@pytest.fixture(scope="module")
def two(
    around: World, backend: Backend, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[RunningInstance]]:
    with pair("posts", backend, around, tmp_path_factory.mktemp("posts")) as instances:
        yield instances


@pytest.fixture
def blog(two: list[RunningInstance]) -> RunningInstance:
    return two[0]


@pytest.fixture
def mark() -> str:
    """A word, a tag and a user that no other test uses."""
    return "m" + uuid.uuid4().hex[:12]


def publish(blog: RunningInstance, around: World, author: str, **values: Any) -> dict[str, Any]:
    body = {"title": "A title", "content": "Some content", **values}
    answer = blog.call("POST", "/api/posts", json=body, token=around.user(author))
    assert answer.status_code == 201, answer.text
    return answer.json()["data"]


def listed(blog: RunningInstance, path: str = "/api/posts", **params: Any) -> list[dict[str, Any]]:
    answer = blog.call("GET", path, params=params)
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]


def test_tags_are_no_post_and_take_none_of_its_methods(blog: RunningInstance, around: World) -> None:
    named = blog.call("OPTIONS", "/api/posts/tags").headers["Allow"]
    assert set(named.split(", ")) == {"GET", "HEAD", "OPTIONS"}
    refused = blog.call("DELETE", "/api/posts/tags", token=around.user("ada"))
    assert (refused.status_code, set(refused.headers["Allow"].split(", "))) == (
        405,
        {"GET", "HEAD", "OPTIONS"},
    )


def test_answers_are_as_the_document_says(blog: RunningInstance, around: World) -> None:
    ask, token = Documented(blog), around.user("ada")
    body = {"title": "T", "content": "C", "tags": ["t"]}
    post = ask("POST", "/api/posts", json=body, token=token)["data"]["id"]
    ask("GET", "/api/posts", params={"limit": 1})
    ask("GET", "/api/posts/tags")
    ask("GET", "/api/posts/{post_id}", post)
    ask("PATCH", "/api/posts/{post_id}", post, json={"title": "U"}, token=token)
    several, one = "/api/posts/{post_id}/comments", "/api/posts/{post_id}/comments/{comment_id}"
    comment = ask("POST", several, post, json={"content": "c"}, token=token)["data"]["id"]
    ask("GET", several, post)
    ask("GET", one, post, comment)
    ask("PATCH", one, post, comment, json={"content": "d"}, token=token)
    ask("DELETE", one, post, comment, token=token)
    ask("DELETE", "/api/posts/{post_id}", post, token=token)


@pytest.mark.parametrize("name", ["/api/posts", "/api/articles"])
def test_published_post_is_read_at_the_other_instance_under_both_names(
    two: list[RunningInstance], around: World, mark: str, name: str
) -> None:
    body = {"title": " Hello ", "content": "World", "tags": ["One", "two", "one"]}
    answer = two[0].call("POST", name, json=body, token=around.user(mark))
    assert answer.status_code == 201
    data = answer.json()["data"]
    assert (data["title"], data["content"], data["tags"]) == ("Hello", "World", ["one", "two"])
    assert (data["authorId"], data["version"]) == (mark, 1)
    assert answer.headers["Location"] == f"{name}/{data['id']}"
    for path in (f"/api/posts/{data['id']}", f"/api/articles/{data['id']}"):
        assert two[1].call("GET", path).json() == {"data": data}
    assert listed(two[1], "/api/articles", author=mark) == [data]


def test_writing_needs_a_token_and_a_fitting_body(blog: RunningInstance, around: World) -> None:
    good = {"title": "t", "content": "c"}
    assert blog.call("POST", "/api/posts", json=good).status_code == 401
    service = around.signer.token("service:x", "service")
    assert blog.call("POST", "/api/posts", json=good, token=service).status_code == 403
    for bad in ({}, [], {**good, "title": ""}, {**good, "content": "\ud800"}, {**good, "tags": ["x"] * 11}):
        answer = blog.call("POST", "/api/posts", json=bad, token=around.user("u"))
        assert answer.status_code in (400, 422)
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert answer.headers["Cache-Control"] == "no-store"


def test_only_author_and_administrator_change_and_delete(
    blog: RunningInstance, around: World, mark: str
) -> None:
    post = publish(blog, around, mark, tags=["old"])
    path = f"/api/posts/{post['id']}"
    for method in ("PATCH", "DELETE"):
        assert blog.call(method, path, json={"title": "x"}).status_code == 401
        assert blog.call(method, path, json={"title": "x"}, token=around.user("other")).status_code == 403
    mine = blog.call("PATCH", path, json={"title": "Mine", "tags": ["new"]}, token=around.user(mark))
    assert (mine.status_code, mine.json()["data"]["title"], mine.json()["data"]["tags"]) == (
        200,
        "Mine",
        ["new"],
    )
    assert mine.json()["data"]["content"] == post["content"]
    ruled = blog.call("PATCH", path, json={"content": "Ruled"}, token=around.admin())
    assert (ruled.json()["data"]["authorId"], ruled.json()["data"]["content"]) == (mark, "Ruled")
    assert blog.call("PATCH", path, json={}, token=around.user(mark)).status_code == 422
    assert blog.call("DELETE", path, token=around.user(mark)).status_code == 204
    for method in ("GET", "PATCH", "DELETE"):
        gone = blog.call(method, path, json={"title": "x"}, token=around.user(mark))
        assert (gone.status_code, gone.headers["Cache-Control"]) == (404, "no-store")
    second = publish(blog, around, mark)
    assert blog.call("DELETE", f"/api/posts/{second['id']}", token=around.admin()).status_code == 204


def test_comments_belong_to_their_author_and_go_with_the_post(
    two: list[RunningInstance], around: World, mark: str
) -> None:
    post = publish(two[0], around, mark)
    base = f"/api/posts/{post['id']}/comments"
    made = two[0].call("POST", base, json={"content": " Nice "}, token=around.user("guest"))
    assert made.status_code == 201
    comment = made.json()["data"]
    assert (comment["content"], comment["authorId"], comment["postId"]) == ("Nice", "guest", post["id"])
    path = made.headers["Location"]
    assert path == f"{base}/{comment['id']}"
    assert two[1].call("GET", path).json() == {"data": comment}
    # The author of the post is not the author of what others write under it.
    for token, status in ((None, 401), (around.user(mark), 403)):
        assert two[0].call("PATCH", path, json={"content": "x"}, token=token).status_code == status
        assert two[0].call("DELETE", path, token=token).status_code == status
    changed = two[1].call("PATCH", path, json={"content": "Better"}, token=around.user("guest"))
    assert (changed.status_code, changed.json()["data"]["content"]) == (200, "Better")
    other = publish(two[0], around, mark)
    assert two[0].call("GET", f"/api/posts/{other['id']}/comments/{comment['id']}").status_code == 404
    assert two[0].call("DELETE", path, token=around.admin()).status_code == 204
    assert listed(two[0], base) == []
    again = two[0].call("POST", base, json={"content": "y"}, token=around.user("guest")).headers["Location"]
    assert two[0].call("DELETE", f"/api/posts/{post['id']}", token=around.user(mark)).status_code == 204
    for gone in (base, again):
        assert two[1].call("GET", gone).status_code == 404
    assert two[0].call("POST", base, json={"content": "z"}, token=around.user("guest")).status_code == 404


def test_comments_come_once_under_a_key_and_oldest_first_in_pages(
    two: list[RunningInstance], around: World, mark: str
) -> None:
    base = f"/api/posts/{publish(two[0], around, mark)['id']}/comments"
    for n in range(5):
        sent = [
            two[turn % 2].call(
                "POST",
                base,
                json={"content": str(n)},
                token=around.user(mark),
                headers={"Idempotency-Key": f"{mark}{n}"},
            )
            for turn in range(2)
        ]
        assert sent[0].json() == sent[1].json()
    first = two[0].call("GET", base, params={"limit": 3}).json()
    assert [c["content"] for c in first["data"]] == ["0", "1", "2"]
    cursor = first["page"]["nextCursor"]
    second = two[0].call("GET", base, params={"limit": 3, "cursor": cursor}).json()
    assert [c["content"] for c in second["data"]] == ["3", "4"]
    assert second["page"] == {"limit": 3, "nextCursor": None}


def test_pages_stay_apart_while_others_write(two: list[RunningInstance], around: World, mark: str) -> None:
    old = [publish(two[n % 2], around, mark, title=str(n))["id"] for n in range(7)]
    seen: list[str] = []
    cursor = None
    for turn in range(20):
        params = {"author": mark, "limit": 2, **({"cursor": cursor} if cursor else {})}
        page = two[turn % 2].call("GET", "/api/posts", params=params).json()
        seen += [post["id"] for post in page["data"]]
        publish(two[0], around, mark, title="new")
        if turn == 0:
            blow = two[0].call("DELETE", f"/api/posts/{seen[-1]}", token=around.user(mark))
            assert blow.status_code == 204, "the post that the cursor stands on"
        cursor = page["page"]["nextCursor"]
        if cursor is None:
            break
    assert cursor is None
    assert seen == list(reversed(old))


def test_cursor_of_another_list_and_odd_limits_are_refused(
    blog: RunningInstance, around: World, mark: str
) -> None:
    for _ in range(2):
        publish(blog, around, mark)
    cursor = blog.call("GET", "/api/posts", params={"author": mark, "limit": 1}).json()["page"]["nextCursor"]
    for params in ({"cursor": cursor}, {"cursor": "x"}, {"cursor": "é"}, {"cursor": cursor[:-2]}):
        answer = blog.call("GET", "/api/posts", params=params)
        assert (answer.status_code, answer.headers["Cache-Control"]) == (400, "no-store")
    for limit in ("0", "101", "-1", "x", "1e9"):
        assert blog.call("GET", "/api/posts", params={"limit": limit}).status_code == 422


def test_search_follows_changes_and_joins_filters(
    two: list[RunningInstance], around: World, mark: str
) -> None:
    one = publish(two[0], around, "anna", title=f"Über {mark}", content="The quick fox", tags=[mark])
    other = publish(two[0], around, "bert", content=f"{mark} slow fox")

    def found(**params: Any) -> list[str]:
        return [post["id"] for post in listed(two[1], **params)]

    assert found(q=mark) == [other["id"], one["id"]]
    assert found(q=f"{mark.upper()} ÜBER QUICK") == [one["id"]]
    assert found(q=f"über {mark}") == [one["id"]]
    assert found(q=mark, author="bert") == [other["id"]]
    assert found(q=mark, tag=mark.upper()) == [one["id"]]
    assert found(q=mark[:-1]) == []
    assert found(q=f"{mark} !!") == found(q=mark)
    two[0].call("PATCH", f"/api/posts/{other['id']}", json={"content": "gone"}, token=around.user("bert"))
    assert found(q=mark) == [one["id"]]
    two[0].call("DELETE", f"/api/posts/{one['id']}", token=around.user("anna"))
    assert found(q=mark) == found(tag=mark) == []


# That no text at all is an error is shown in tests/unit/listing; these go the whole way.
HOSTILE = [
    '"',
    "a OR",
    "NEAR(a b, 5)",
    "title:a",
    "*",
    "'; DROP TABLE posts;--",
    "\\",
    "%_",
    "😀" * 50,
    "a " * 100,
]


def test_hostile_search_is_an_answer(blog: RunningInstance) -> None:
    for words in HOSTILE:
        assert isinstance(listed(blog, q=words), list), words


@pytest.mark.parametrize("value", one_always("%00", "%ff%fe", "%ed%a0%80", "'"))
def test_hostile_bytes_are_refused_or_answered_but_never_500(blog: RunningInstance, value: str) -> None:
    for name in ("q", "tag", "author", "cursor"):
        assert blog.call("GET", f"/api/posts?{name}={value}").status_code in (200, 400, 422), name
    none = "0" * 32
    for path in (value, "..", "a" * 500, none, f"{none}/comments/x", f"{none}/comments"):
        assert blog.call("GET", f"/api/posts/{path}").status_code == 404, path


def test_tags_are_counted(blog: RunningInstance, around: World, mark: str) -> None:
    for tags in ([mark, mark + "b"], [mark], [mark]):
        last = publish(blog, around, mark, tags=tags)
    counts = {row["tag"]: row["count"] for row in listed(blog, "/api/posts/tags", limit=200)}
    assert (counts[mark], counts[mark + "b"]) == (3, 1)
    blog.call("DELETE", f"/api/posts/{last['id']}", token=around.user(mark))
    counts = {row["tag"]: row["count"] for row in listed(blog, "/api/articles/tags", limit=200)}
    assert counts[mark] == 2


def test_unchanged_post_is_304_and_a_stale_writer_is_refused(
    blog: RunningInstance, around: World, mark: str
) -> None:
    path = f"/api/posts/{publish(blog, around, mark)['id']}"
    first = blog.call("GET", path)
    tag = first.headers["ETag"]
    assert first.headers["Cache-Control"] == "public, no-cache"
    same = blog.call("GET", path, headers={"If-None-Match": tag})
    assert (same.status_code, same.content) == (304, b"")
    token = around.user(mark)
    done = blog.call("PATCH", path, json={"title": "2"}, token=token, headers={"If-Match": tag})
    assert done.status_code == 200
    for method in ("PATCH", "DELETE"):
        answer = blog.call(method, path, json={"title": "3"}, token=token, headers={"If-Match": tag})
        assert answer.status_code == 412
    assert blog.call("GET", path, headers={"If-None-Match": tag}).status_code == 200


def test_concurrent_changes_without_a_condition_lose_no_field(
    two: list[RunningInstance], around: World, mark: str
) -> None:
    path = f"/api/posts/{publish(two[0], around, mark)['id']}"
    changes = [{"title": "T"}, {"content": "C"}, {"tags": ["x"]}]
    start = threading.Barrier(3)

    def write(n: int) -> int:
        start.wait(10)
        return two[n % 2].call("PATCH", path, json=changes[n], token=around.user(mark)).status_code

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(write, range(3))) == [200] * 3
    data = two[0].call("GET", path).json()["data"]
    assert (data["title"], data["content"], data["tags"], data["version"]) == ("T", "C", ["x"], 4)


def test_concurrent_posts_are_all_kept(two: list[RunningInstance], around: World, mark: str) -> None:
    def create(number: int) -> str | None:
        """The id, or None where the database was too busy: that one must not be kept."""
        body = {"title": str(number), "content": "c"}
        answer = two[number % 2].call("POST", "/api/posts", json=body, token=around.user(mark))
        assert answer.status_code in (201, 503), answer.text
        return answer.json()["data"]["id"] if answer.status_code == 201 else None

    with ThreadPoolExecutor(8) as pool:
        made = [one for one in pool.map(create, range(40)) if one is not None]
    assert len(made) >= 30
    kept = [post["id"] for post in listed(two[1], author=mark, limit=100)]
    assert sorted(kept) == sorted(made)
    assert len(set(made)) == len(made)
    file = two[0].process.log.parent / "posts.db"
    if file.exists():  # not on PostgreSQL, which keeps its index by itself
        with contextlib.closing(sqlite3.connect(file, timeout=5)) as db:
            db.execute("INSERT INTO posts_search (posts_search, rank) VALUES ('integrity-check', 1)")


def test_of_many_posts_under_one_key_one_is_made(
    two: list[RunningInstance], around: World, mark: str
) -> None:
    body = {"title": "once", "content": "c", "tags": ["a"]}
    start = threading.Barrier(8)

    def create(n: int) -> tuple[int, str | None, str, str]:
        start.wait(10)
        headers = {"Idempotency-Key": mark}
        answer = two[n % 2].call("POST", "/api/posts", json=body, token=around.user(mark), headers=headers)
        return (
            answer.status_code,
            answer.headers.get("Idempotency-Replayed"),
            answer.headers["Location"],
            answer.text,
        )

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(create, range(8)))
    assert {status for status, *_ in answers} == {201}
    assert sorted(str(replayed) for _, replayed, *_ in answers) == ["None"] + ["true"] * 7
    assert len({location for *_, location, _ in answers}) == 1
    assert len({text for *_, text in answers}) == 1
    assert len(listed(two[0], author=mark)) == 1


def test_a_key_gives_its_first_answer_whatever_became_of_the_post(
    blog: RunningInstance, around: World, mark: str
) -> None:
    def create(key: str) -> requests.Response:
        body, headers = {"title": "once", "content": "c"}, {"Idempotency-Key": key}
        return blog.call("POST", "/api/posts", json=body, token=around.user(mark), headers=headers)

    first = create(mark)
    assert blog.call("DELETE", first.headers["Location"], token=around.user(mark)).status_code == 204
    assert create(mark).json() == first.json()
    assert listed(blog, author=mark) == []
    for bad in ("a b", "x" * 129):
        assert create(bad).status_code == 400
