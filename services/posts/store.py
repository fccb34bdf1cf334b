"""Posts, tags and comments in the database. Every function works inside the session of its caller."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from sqlalchemy import (
    BigInteger,
    ForeignKey,
    Integer,
    String,
    Text,
    delete,
    exists,
    func,
    or_,
    select,
    update,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from services.kit.db.fulltext import matches
from services.kit.db.idempotency import Keys
from services.kit.db.portable import NUMBER, insert_new, write
from services.posts.domain import Comment, NewPost, Post, PostChange


class Base(DeclarativeBase):
    pass


class KeyRow(Keys, Base):
    """Idempotency keys."""


class GoneAuthorRow(Base):
    """Authors whose accounts are gone, from `since_us` on: what they wrote is being taken out."""

    __tablename__ = "gone_authors"

    author_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    since_us: Mapped[int] = mapped_column(BigInteger)


class LikeRow(Base):
    __tablename__ = "likes"

    post_number: Mapped[int] = mapped_column(
        NUMBER, ForeignKey("posts.number", ondelete="CASCADE"), primary_key=True
    )
    subject: Mapped[str] = mapped_column(String(64), primary_key=True)


class TagRow(Base):
    __tablename__ = "post_tags"
    post_number: Mapped[int] = mapped_column(
        NUMBER, ForeignKey("posts.number", ondelete="CASCADE"), primary_key=True
    )
    position: Mapped[int] = mapped_column(Integer, primary_key=True)
    tag: Mapped[str] = mapped_column(String(40))


class PostRow(Base):
    __tablename__ = "posts"
    number: Mapped[int] = mapped_column(NUMBER, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(32), unique=True)
    author_id: Mapped[str] = mapped_column(String(64))
    title: Mapped[str] = mapped_column(Text)
    content: Mapped[str] = mapped_column(Text)
    created_us: Mapped[int] = mapped_column(BigInteger)
    updated_us: Mapped[int] = mapped_column(BigInteger)
    version: Mapped[int] = mapped_column(Integer)
    published_us: Mapped[int | None] = mapped_column(BigInteger)
    tags: Mapped[list[TagRow]] = relationship(order_by=TagRow.position, lazy="selectin", viewonly=True)

    def to_post(self) -> Post:
        return Post(
            self.number,
            self.id,
            self.author_id,
            self.title,
            self.content,
            tuple(row.tag for row in self.tags),
            self.created_us,
            self.updated_us,
            self.version,
            self.published_us,
        )


class CommentRow(Base):
    __tablename__ = "comments"
    number: Mapped[int] = mapped_column(NUMBER, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(32), unique=True)
    post_number: Mapped[int] = mapped_column(NUMBER, ForeignKey("posts.number", ondelete="CASCADE"))
    author_id: Mapped[str] = mapped_column(String(64))
    content: Mapped[str] = mapped_column(Text)
    created_us: Mapped[int] = mapped_column(BigInteger)
    updated_us: Mapped[int] = mapped_column(BigInteger)
    parent_id: Mapped[str | None] = mapped_column(
        String(32), ForeignKey("comments.id", ondelete="CASCADE"), index=True
    )


def create_post(session: Session, author_id: str, new: NewPost, now_us: int) -> Post:
    row = PostRow(
        id=uuid.uuid4().hex,
        author_id=author_id,
        title=new.title,
        content=new.content,
        created_us=now_us,
        updated_us=now_us,
        version=1,
        published_us=None if new.draft else now_us,
    )
    session.add(row)
    session.flush()
    _write_tags(session, row.number, new.tags)
    session.refresh(row)
    return row.to_post()


def _write_tags(session: Session, number: int, tags: Sequence[str]) -> None:
    session.execute(delete(TagRow).where(TagRow.post_number == number))
    session.add_all(TagRow(post_number=number, position=i, tag=tag) for i, tag in enumerate(tags))
    session.flush()


def find_post(session: Session, post_id: str, *, hold: bool = False) -> Post | None:
    """With `hold` no other transaction changes it until this one ends."""
    query = select(PostRow).where(PostRow.id == post_id)
    row = session.scalar(query.with_for_update() if hold else query)
    return row.to_post() if row else None


def list_posts(
    session: Session,
    *,
    tag: str | None = None,
    author: str | None = None,
    words: str | None = None,
    before: tuple[int, int] | None = None,
    limit: int,
) -> list[Post]:
    """The published ones, newest first: at most `limit` from the one after (`published_us`, `number`) on, with the tag, by
    the author, holding all the words."""
    published, number = PostRow.published_us, PostRow.number
    query = (
        select(PostRow).where(published.is_not(None)).order_by(published.desc(), number.desc()).limit(limit)
    )
    if before is not None:
        at_us, at = before
        query = query.where(published <= at_us, or_(published < at_us, number < at))
    if author is not None:
        query = query.where(PostRow.author_id == author)
    if tag is not None:
        query = query.where(number.in_(select(TagRow.post_number).where(TagRow.tag == tag)))
    if words:
        query = query.where(matches(session.get_bind().dialect.name, "posts", words))
    return [row.to_post() for row in session.scalars(query)]


def list_drafts(session: Session, author_id: str, before: int | None, limit: int) -> list[Post]:
    """An author's own, newest first: at most `limit` with a number under `before`."""
    query = select(PostRow).where(PostRow.author_id == author_id, PostRow.published_us.is_(None))
    if before is not None:
        query = query.where(PostRow.number < before)
    return [row.to_post() for row in session.scalars(query.order_by(PostRow.number.desc()).limit(limit))]


def publish_post(session: Session, post: Post, now_us: int) -> Post:
    """Publish a draft that is held."""
    row = session.get_one(PostRow, post.number)
    row.published_us = row.updated_us = now_us
    row.version = post.version + 1
    session.flush()
    return row.to_post()


def change_post(session: Session, post: Post, change: PostChange, now_us: int) -> Post:
    """Write the change of a post that is held."""
    row = session.get_one(PostRow, post.number)
    if change.title is not None:
        row.title = change.title
    if change.content is not None:
        row.content = change.content
    row.updated_us, row.version = now_us, post.version + 1
    if change.tags is not None:
        _write_tags(session, post.number, change.tags)
    session.flush()
    session.refresh(row)
    return row.to_post()


def delete_post(session: Session, post: Post) -> int:
    """Delete a post that is held, with its comments, tags and likes; how many comments there were."""
    comments = session.scalar(select(func.count()).where(CommentRow.post_number == post.number)) or 0
    write(session, delete(PostRow).where(PostRow.number == post.number))
    return comments


def like(session: Session, post: Post, subject: str) -> None:
    insert_new(session, LikeRow, post_number=post.number, subject=subject)


def unlike(session: Session, post: Post, subject: str) -> None:
    write(session, delete(LikeRow).where(LikeRow.post_number == post.number, LikeRow.subject == subject))


def likes(session: Session, post: Post, subject: str | None) -> tuple[int, bool]:
    """How many like it, and whether the subject does."""
    of_post = LikeRow.post_number == post.number
    count = session.scalar(select(func.count()).where(of_post)) or 0
    liked = subject is not None and session.get(LikeRow, (post.number, subject)) is not None
    return count, liked


def list_tags(session: Session, limit: int) -> list[tuple[str, int]]:
    """(tag, number of posts), the most used first."""
    count = func.count().label("count")
    query = select(TagRow.tag, count).join(PostRow, PostRow.number == TagRow.post_number)
    query = (
        query.where(PostRow.published_us.is_not(None))
        .group_by(TagRow.tag)
        .order_by(count.desc(), TagRow.tag)
        .limit(limit)
    )
    return [(tag, n) for tag, n in session.execute(query)]


def create_comment(
    session: Session, post: Post, author_id: str, content: str, now_us: int, parent_id: str | None = None
) -> Comment:
    """Raises IntegrityError when the post, or the comment that is answered, has gone in the meantime."""
    row = CommentRow(
        id=uuid.uuid4().hex,
        post_number=post.number,
        author_id=author_id,
        content=content,
        created_us=now_us,
        updated_us=now_us,
        parent_id=parent_id,
    )
    session.add(row)
    session.flush()
    return _comment(row, post.id)


def _comment(row: CommentRow, post_id: str) -> Comment:
    return Comment(
        row.number,
        row.id,
        post_id,
        row.author_id,
        row.content,
        row.created_us,
        row.updated_us,
        row.parent_id,
    )


def find_comment(session: Session, post: Post, comment_id: str) -> Comment | None:
    query = select(CommentRow).where(CommentRow.id == comment_id, CommentRow.post_number == post.number)
    row = session.scalar(query)
    return _comment(row, post.id) if row else None


def list_comments(session: Session, post: Post, *, after: int | None, limit: int) -> list[Comment]:
    """Oldest first: at most `limit` comments with a number above `after`."""
    query = select(CommentRow).where(CommentRow.post_number == post.number)
    if after is not None:
        query = query.where(CommentRow.number > after)
    rows = session.scalars(query.order_by(CommentRow.number).limit(limit))
    return [_comment(row, post.id) for row in rows]


def change_comment(session: Session, comment: Comment, content: str, now_us: int) -> None:
    changed = update(CommentRow).where(CommentRow.number == comment.number)
    write(session, changed.values(content=content, updated_us=now_us))


def delete_comment(session: Session, comment: Comment) -> int | None:
    """Delete it with the answers to it: how many there were. None where it had gone already."""
    replies = session.scalar(select(func.count()).where(CommentRow.parent_id == comment.id)) or 0
    gone = write(session, delete(CommentRow).where(CommentRow.number == comment.number))
    return replies if gone else None


# -- authors whose accounts are gone


def forget_author(session: Session, author_id: str, now_us: int) -> None:
    """Have what the author wrote taken out, bit by bit."""
    insert_new(session, GoneAuthorRow, author_id=author_id, since_us=now_us)
    write(session, delete(LikeRow).where(LikeRow.subject == author_id))


def gone_author(session: Session) -> str | None:
    """One of whom there is something left, and whom no other instance is at."""
    author = GoneAuthorRow.author_id
    left = or_(exists().where(PostRow.author_id == author), exists().where(CommentRow.author_id == author))
    return session.scalars(select(author).where(left).limit(1).with_for_update(skip_locked=True)).first()


def forget_gone_authors(session: Session, before_us: int) -> None:
    """Those that have been gone for longer, and so has all that they wrote."""
    written = exists().where(PostRow.author_id == GoneAuthorRow.author_id)
    old = delete(GoneAuthorRow).where(GoneAuthorRow.since_us < before_us, ~written)
    write(session, old)


def written_by(session: Session, author_id: str, limit: int) -> tuple[list[Post], list[Comment]]:
    """Some of what an author wrote, drafts among it; posts first, for their comments go with them."""
    posts = select(PostRow).where(PostRow.author_id == author_id).limit(limit).with_for_update()
    found = [row.to_post() for row in session.scalars(posts)]
    if found:
        return found, []
    comments = select(CommentRow, PostRow.id).join(PostRow, PostRow.number == CommentRow.post_number)
    comments = comments.where(CommentRow.author_id == author_id).limit(limit)
    return [], [_comment(row, post_id) for row, post_id in session.execute(comments)]
