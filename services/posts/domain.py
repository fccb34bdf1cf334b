"""What a post, a comment and a tag are, and who may change them. No I/O."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field, StringConstraints

from services.kit.text import ID_PATTERN, SOME_LINE, SOME_PROSE, Words, described, iso, one_line, prose
from services.kit.web.paging import Page
from services.kit.web.resources import ChangeBody

MAX_TITLE = 200
MAX_CONTENT = 20_000
MAX_COMMENT = 4_000
MAX_TAGS = 10
MAX_TAG = 40
MAX_MENTIONS = 20

_TAG = re.compile(r"\w[\w .+#-]*")
# `@ada`, of the shape that user names have; not the second half of an e-mail address.
_MENTION = re.compile(r"(?<![\w.@-])@([a-z0-9][a-z0-9._-]{1,28}[a-z0-9])(?![\w@])", re.ASCII | re.IGNORECASE)


def clean_tag(tag: str) -> str:
    """A tag as it is stored and looked up: NFC, lower case, single spaces. Raises ValueError."""
    folded = " ".join(unicodedata.normalize("NFC", prose(tag)).lower().split())
    if len(folded) > MAX_TAG or not _TAG.fullmatch(folded):
        raise ValueError(
            f"a tag is 1-{MAX_TAG} letters, digits, spaces and . + # - _, led by a letter or digit"
        )
    return folded


def mentions(text: str) -> tuple[str, ...]:
    """The user names that a text mentions, in lower case, each once: the first `MAX_MENTIONS`."""
    names = dict.fromkeys(name.lower() for name in _MENTION.findall(text))
    return tuple(names)[:MAX_MENTIONS]


def _clean_tags(tags: list[str]) -> list[str]:
    return list(dict.fromkeys(clean_tag(tag) for tag in tags))


Title = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_TITLE),
    AfterValidator(one_line),
    SOME_LINE,
]
Content = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_CONTENT),
    AfterValidator(prose),
    SOME_PROSE,
]
CommentText = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_COMMENT),
    AfterValidator(prose),
    SOME_PROSE,
]
# Longer than the longest tag, whose white space is folded.
_TagText = Annotated[
    str,
    StringConstraints(max_length=4 * MAX_TAG),
    described(pattern=f"^{_TAG.pattern}$", maxLength=MAX_TAG),
]
Tags = Annotated[
    list[_TagText],
    Field(max_length=MAX_TAGS),
    AfterValidator(_clean_tags),
]
Identifier = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_:-]{1,64}$")]


class NewPost(BaseModel):
    """Body of POST /api/posts. The author is the caller; a draft is seen by nobody else until it is published."""

    title: Title
    content: Content
    tags: Tags = []
    draft: bool = False


class PostChange(ChangeBody):
    """Body of PATCH /api/posts/<id>."""

    title: Title | None = None
    content: Content | None = None
    tags: Tags | None = None


class NewComment(BaseModel):
    """Body of POST of a comment; `parentId` is the comment that it answers, which answers none itself."""

    content: CommentText
    parentId: Annotated[str, Field(pattern=f"^{ID_PATTERN}$")] | None = None  # noqa: N815 - the wire's spelling


class CommentChange(BaseModel):
    """Body of PATCH of a comment."""

    content: CommentText


class PostQuery(Page):
    """Query of GET /api/posts: newest first; the filters are joined by *and*. A blank `q` searches nothing."""

    tag: Annotated[_TagText, AfterValidator(clean_tag)] | None = None
    author: Identifier | None = None
    q: Words | None = None


class TagQuery(BaseModel):
    """Query of GET /api/posts/tags: the most used first."""

    limit: int = Field(50, ge=1, le=200)


@dataclass(frozen=True, slots=True)
class Post:
    """One post. Times are microseconds since 1970 (UTC); lists go by `published_us`, None of a draft, and then by `number`,
    which grows with each new post."""

    number: int
    id: str
    author_id: str
    title: str
    content: str
    tags: tuple[str, ...]
    created_us: int
    updated_us: int
    version: int
    published_us: int | None

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "authorId": self.author_id,
            "title": self.title,
            "content": self.content,
            "tags": list(self.tags),
            "publishedAt": None if self.published_us is None else iso(self.published_us),
            "createdAt": iso(self.created_us),
            "updatedAt": iso(self.updated_us),
            "version": self.version,
        }


@dataclass(frozen=True, slots=True)
class Comment:
    """One comment of the post `post_id`, or an answer to its comment `parent_id`."""

    number: int
    id: str
    post_id: str
    author_id: str
    content: str
    created_us: int
    updated_us: int
    parent_id: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "postId": self.post_id,
            "parentId": self.parent_id,
            "authorId": self.author_id,
            "content": self.content,
            "createdAt": iso(self.created_us),
            "updatedAt": iso(self.updated_us),
        }


def may_change(subject: str, scopes: Collection[str], author_id: str) -> bool:
    """The author may change and delete what is the author's; an administrator everything."""
    return "admin" in scopes or subject == author_id
