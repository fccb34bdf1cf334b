"""Whatever sequence events come in, and however often: the same totals and series. By the kit's consumer, from a real Redis."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Sequence

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis
from sqlalchemy import MetaData

from services.analytics import store
from services.analytics.domain import HEARD, STEP_S, happened_us, has_place, kind_of, start_of, to_us
from services.auth.events import UserCreated
from services.kit.db.session import Database
from services.kit.events.consumer import Consumer
from services.kit.events.event import Event, wrap
from services.kit.events.tables import event_tables
from services.posts.events import CommentCreated, CommentDeleted, PostDeleted, PostPublished
from services.users.events import UserDeleted
from tests.contract.events.rig import connect
from tests.support.servers import RedisServer
from tests.unit.analytics import telling
from tests.unit.analytics.telling import at

NOW_US = to_us(at(3 * 1440))
TABLES = event_tables(MetaData())

times = st.sampled_from([-50_000_000, 0, 0.5, 1, 59.99, 60, 1439, 1440, 50_000_000]).map(at)
names = st.sampled_from(["1", "2", "3"])
tags = st.lists(st.sampled_from(["a", "b", "<script>"]), max_size=3)
events = st.one_of(
    st.builds(telling.user, names, times),
    st.builds(telling.user_gone, names, times),
    st.builds(telling.post, names, times, author=names, tags=tags),
    st.builds(telling.post, names, times, author=names, tags=tags),
    st.builds(telling.post_gone, names, times),
    st.builds(telling.comment, names, times),
    st.builds(telling.comment, names, times),
    st.builds(telling.comment_gone, names, times, replies=st.integers(0, 2)),
)


@st.composite
def tellings(draw: st.DrawFn) -> tuple[list[Event], list[int]]:
    """What happened, and the sequence in which it is told: numbers of events, each at least once."""
    happened = draw(st.lists(events, max_size=25))
    numbers = list(range(len(happened)))
    again = draw(st.lists(st.sampled_from(numbers), max_size=10)) if numbers else []
    return happened, draw(st.permutations(numbers + again))


def expected_totals(happened: Sequence[Event]) -> tuple[dict[str, int], Counter[str]]:
    """By looking at all at once, as no consumer can: totals, and the tags in use."""
    lost = {each.postId for each in happened if isinstance(each, PostDeleted)}
    left = {each.userId for each in happened if isinstance(each, UserDeleted)}
    users = {each.userId for each in happened if isinstance(each, UserCreated)} - left
    newest: dict[str, PostPublished] = {}
    comments: Counter[str] = Counter()
    for each in happened:
        if isinstance(each, PostPublished) and each.postId not in lost:
            known = newest.setdefault(each.postId, each)
            newest[each.postId] = max(known, each, key=_age)
        if isinstance(each, CommentCreated):
            comments[each.postId] += 1
        if isinstance(each, CommentDeleted):
            comments[each.postId] -= 1 + each.replies
    written = sum(max(0, number) for of, number in comments.items() if of not in lost)
    used = Counter(tag for one in newest.values() for tag in set(one.tags))
    return {"users": len(users), "posts": len(newest), "comments": written}, used


def _age(event: PostPublished) -> tuple[int, str, list[str]]:
    # Two of one moment: any, but the same each time.
    return max(1, to_us(event.publishedAt)), event.authorId, sorted(set(event.tags))


def expected_counts(happened: Sequence[Event]) -> Counter[tuple[str, str, int]]:
    placed = [each for each in happened if has_place(happened_us(each), NOW_US)]
    return Counter((kind_of(one), by, start_of(happened_us(one), by)) for one in placed for by in STEP_S)


def hear(db: Database, redis: Redis, url: str, messages: Sequence[tuple[str, str]]) -> None:
    """All of it, by one instance of analytics."""
    name = uuid.uuid4().hex
    teller, mine = connect(url, "teller"), connect(url, name)
    for producer, body in messages:
        teller.publish(producer, [body])
    consumer = Consumer(db, TABLES, "analytics", mine)
    for kind in HEARD:
        consumer.consumes(kind)(lambda event, session: store.count(session, event, NOW_US))
    needed = {f"events:{producer}" for producer, _ in messages}

    def behind() -> bool:
        groups = [redis.xinfo_groups(stream) for stream in needed]
        return not all(each and each[0]["lag"] == 0 and each[0]["pending"] == 0 for each in groups)

    while behind():
        consumer.turn()
    mine.release("analytics")


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(telling_=tellings())
def test_any_sequence_and_repetition_gives_the_same(
    tables: Database, redis_server: RedisServer, telling_: tuple[list[Event], list[int]]
) -> None:
    happened, sequence = telling_
    messages = [(event.PRODUCER, wrap(event, NOW_US).to_json()) for event in happened]
    with tables.session() as session:
        for table in store.Base.metadata.sorted_tables:
            session.execute(table.delete())
    with Redis.from_url(redis_server.url) as redis:
        redis.flushall()
        hear(tables, redis, redis_server.url, [messages[number] for number in sequence])
    totals, used = expected_totals(happened)
    with tables.session(read_only=True) as session:
        assert store.read_totals(session) == totals
        assert {tag.tag: tag.count for tag in store.list_tags(session, 100)} == used
        rows = session.query(store.CountRow).all()
        counted = {(row.kind, row.step, row.start_s): row.count for row in rows}
    assert counted == expected_counts(happened)
