"""Posts, tags and comments in the database. Every function works inside the session of its caller."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from sqlalchemy import BigInteger, ForeignKey, Integer, String, Text, delete, func, select, text, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from services.kit.db.fulltext import matches
from services.kit.db.idempotency import Keys
from services.kit.db.outbox import Owing
from services.kit.db.portable import NUMBER, write
from services.posts.domain import Comment, NewPost, Post, PostChange


class Base(DeclarativeBase):
    pass


class KeyRow(Keys, Base):
    """Idempotency keys."""


class OutboxRow(Owing, Base):
    """Authors whose number of posts users has still to hear of."""


class AuthorCountRow(Base):
    """How many posts an author has, at a version that only grows: the highest one is the truth."""

    __tablename__ = "author_counts"
    author_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    count: Mapped[int] = mapped_column(Integer)
    version: Mapped[int] = mapped_column(BigInteger)


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


def count_posts(session: Session, author_id: str, difference: int, now_us: int) -> dict[str, int]:
    """Count the author's posts on or back: what is owed to users.

    The version is the time, or one more than the last: it goes on growing even after this database was lost
    and started anew, when users would not listen to a version 1.
    """
    counted = session.execute(
        text(
            "INSERT INTO author_counts (author_id, count, version) VALUES (:author, :difference, :now) "
            "ON CONFLICT (author_id) DO UPDATE SET count = author_counts.count + :difference, "
            "version = CASE WHEN author_counts.version < :now THEN :now ELSE author_counts.version + 1 END "
            "RETURNING count, version"
        ),
        {"author": author_id, "difference": difference, "now": now_us},
    ).one()
    return {"count": counted.count, "version": counted.version}


def create_post(session: Session, author_id: str, new: NewPost, now_us: int) -> Post:
    row = PostRow(
        id=uuid.uuid4().hex,
        author_id=author_id,
        title=new.title,
        content=new.content,
        created_us=now_us,
        updated_us=now_us,
        version=1,
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
    before: int | None = None,
    limit: int,
) -> list[Post]:
    """Newest first: at most `limit` posts with a number under `before`, with the tag, by the author, holding all the words."""
    query = select(PostRow).order_by(PostRow.number.desc()).limit(limit)
    if before is not None:
        query = query.where(PostRow.number < before)
    if author is not None:
        query = query.where(PostRow.author_id == author)
    if tag is not None:
        query = query.where(PostRow.number.in_(select(TagRow.post_number).where(TagRow.tag == tag)))
    if words:
        query = query.where(matches(session.get_bind().dialect.name, "posts", words))
    return [row.to_post() for row in session.scalars(query)]


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


def delete_post(session: Session, post: Post) -> None:
    """Delete a post that is held, with its comments and tags."""
    write(session, delete(PostRow).where(PostRow.number == post.number))


def list_tags(session: Session, limit: int) -> list[tuple[str, int]]:
    """(tag, number of posts), the most used first."""
    count = func.count().label("count")
    query = select(TagRow.tag, count).group_by(TagRow.tag).order_by(count.desc(), TagRow.tag).limit(limit)
    return [(tag, n) for tag, n in session.execute(query)]


def create_comment(session: Session, post: Post, author_id: str, content: str, now_us: int) -> Comment:
    """Raises IntegrityError when the post has gone in the meantime."""
    row = CommentRow(
        id=uuid.uuid4().hex,
        post_number=post.number,
        author_id=author_id,
        content=content,
        created_us=now_us,
        updated_us=now_us,
    )
    session.add(row)
    session.flush()
    return _comment(row, post.id)


def _comment(row: CommentRow, post_id: str) -> Comment:
    return Comment(row.number, row.id, post_id, row.author_id, row.content, row.created_us, row.updated_us)


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


def delete_comment(session: Session, comment: Comment) -> None:
    write(session, delete(CommentRow).where(CommentRow.number == comment.number))
