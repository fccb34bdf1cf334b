"""What notifications hears, and whom it tells of it. Each function writes in the session that it is given, and calls nobody."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy.orm import Session

from services.auth.events import UserCreated
from services.kit import Kit
from services.kit.text import now_us
from services.notifications import store
from services.notifications.domain import NOBODY, by_comment, by_post, welcome
from services.notifications.mentions import Mentions
from services.posts.events import CommentCreated, CommentDeleted, PostDeleted, PostPublished
from services.users.events import UserDeleted


class Hearing:
    """`available` are the channels that this installation has."""

    def __init__(self, kit: Kit, available: Collection[str]) -> None:
        self._kit = kit
        self._available = available
        self.mentions = Mentions(kit, available)

    def listen(self) -> None:
        """Consume. At the composition of the service."""
        consumes = self._kit.events.consumes
        consumes(UserCreated)(self.user_created)
        consumes(UserDeleted)(self.user_deleted)
        consumes(PostPublished)(self.post_published)
        consumes(PostDeleted)(self.post_deleted)
        consumes(CommentCreated)(self.comment_created)
        consumes(CommentDeleted)(self.comment_deleted)

    def user_created(self, event: UserCreated, session: Session) -> None:
        if store.add_person(session, event.userId, event.email, event.firstName, event.lastName):
            store.notify(session, welcome(event.userId, event.firstName), self._available, now_us())

    def user_deleted(self, event: UserDeleted, session: Session) -> None:
        store.remove_person(session, event.userId, now_us())

    def post_published(self, event: PostPublished, session: Session) -> None:
        new = by_post(NOBODY, event.postId, event.authorId, event.title)
        self.mentions.note(session, new, event.mentions)

    def post_deleted(self, event: PostDeleted, session: Session) -> None:
        store.forget_post(session, event.postId)

    def comment_created(self, event: CommentCreated, session: Session) -> None:
        """An answer to one's comment says more than a comment on one's post, and that more than one's name in it."""
        what = (event.commentId, event.postId, event.authorId, event.content)
        if event.parentAuthorId is not None:
            reply = by_comment(event.parentAuthorId, "reply", *what)
            store.notify(session, reply, self._available, now_us())
        store.notify(session, by_comment(event.postAuthorId, "comment", *what), self._available, now_us())
        self.mentions.note(session, by_comment(NOBODY, "mention", *what), event.mentions)

    def comment_deleted(self, event: CommentDeleted, session: Session) -> None:
        store.forget_comment(session, event.commentId)
