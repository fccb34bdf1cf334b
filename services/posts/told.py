"""What posts tells other services, from what it keeps. Pure."""

from __future__ import annotations

from datetime import UTC, datetime

from services.posts.domain import Comment, Post, mentions
from services.posts.events import CommentCreated, CommentDeleted, PostDeleted, PostPublished


def published(post: Post) -> PostPublished:
    """Of a post that is no draft."""
    assert post.published_us is not None
    return PostPublished(
        postId=post.id,
        authorId=post.author_id,
        title=post.title,
        tags=post.tags,
        mentions=mentions(post.content),
        publishedAt=_at(post.published_us),
    )


def deleted(post: Post, comments: int, now_us: int) -> PostDeleted:
    return PostDeleted(
        postId=post.id, authorId=post.author_id, tags=post.tags, comments=comments, deletedAt=_at(now_us)
    )


def commented(post: Post, comment: Comment, parent: Comment | None) -> CommentCreated:
    """`parent` is the comment that it answers."""
    return CommentCreated(
        commentId=comment.id,
        postId=post.id,
        postAuthorId=post.author_id,
        authorId=comment.author_id,
        parentAuthorId=parent.author_id if parent is not None else None,
        content=comment.content,
        mentions=mentions(comment.content),
        createdAt=_at(comment.created_us),
    )


def comment_deleted(comment: Comment, replies: int, now_us: int) -> CommentDeleted:
    return CommentDeleted(
        commentId=comment.id,
        postId=comment.post_id,
        authorId=comment.author_id,
        replies=replies,
        deletedAt=_at(now_us),
    )


def _at(time_us: int) -> datetime:
    return datetime.fromtimestamp(time_us / 1e6, UTC)
