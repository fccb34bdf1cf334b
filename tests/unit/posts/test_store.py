"""What the store keeps of posts, on real databases."""

from __future__ import annotations

from services.kit.db.session import Database
from services.posts import store
from services.posts.domain import NewPost, mentions


def test_pages_go_by_publication_and_number_so_that_each_post_comes_once(db: Database) -> None:
    with db.session() as session:
        for title in "abcd":
            store.create_post(session, "anna", NewPost(title=title, content="c", draft=title == "a"), 1000)
        (draft,) = store.list_drafts(session, "anna", None, 9)
        store.publish_post(session, draft, 2000)
        seen, before = [], None
        while page := store.list_posts(session, before=before, limit=1):
            seen += [post.title for post in page]
            before = (page[-1].published_us or 0, page[-1].number)
    assert seen == ["a", "d", "c", "b"]


def test_what_is_left_of_a_gone_author_is_found_until_nothing_is(db: Database) -> None:
    with db.session() as session:
        post = store.create_post(session, "anna", NewPost(title="t", content="c"), 1000)
        store.create_comment(session, post, "bob", "c", 1000)
        for author in ("bob", "nobody"):
            store.forget_author(session, author, 1000)
        assert store.gone_author(session) == "bob"
        posts, comments = store.written_by(session, "bob", 9)
        assert (posts, [comment.author_id for comment in comments]) == ([], ["bob"])
        assert store.delete_comment(session, comments[0]) == 0
        assert store.delete_comment(session, comments[0]) is None
        assert store.gone_author(session) is None
        store.forget_gone_authors(session, 2000)
        store.create_comment(session, post, "bob", "c", 3000)
        assert store.gone_author(session) is None


def test_mentions_are_user_names_each_once_and_no_addresses() -> None:
    text = "@ada, @Ada and @grace.hopper. mail@carol.example @bob@host @x @-no (@ada-2) @" + "a" * 31
    assert mentions(text) == ("ada", "grace.hopper", "ada-2")
    assert len(mentions(" ".join(f"@user{n}" for n in range(50)))) == 20
