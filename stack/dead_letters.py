"""`make dead-letters`: the events that services gave up, listed, shown whole, and handed to their service again.

What is in them came from anywhere: nothing of it reaches the terminal but characters that can be printed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from services.kit.events.event import MAX_BYTES, Envelope, read
from services.kit.events.rabbitmq import RabbitMQ
from services.kit.events.redis_streams import RedisStreams
from services.kit.events.transport import Dead, Transport
from services.kit.redis_client import Away, connect
from stack.errors import BadRequest, StackError
from stack.run.api import Stack
from stack.servers import rabbitmq
from stack.servers.vault import REDIS_OPERATOR

# Of one service, the oldest.
MOST = 1000
CELL_CHARS = 60
TIMEOUT_S = 3.0
# A consumer that runs takes them within a second or two.
TAKEN_WITHIN_S = 10.0


@dataclass(frozen=True, slots=True)
class Letter:
    """What `service` gave up. `envelope` is None where it is no event at all."""

    service: str
    dead: Dead
    envelope: Envelope | None


def run(console: Console, stack: Stack, service: str, handle: str, replay: bool) -> bool:
    """The command; whether all that was to be replayed is with its service. Raises BadRequest, StackError."""
    known = stack.vault.redis_names()
    if service and service not in known:
        raise BadRequest(f"there is no service {service!r}", f"there are: {', '.join(known)}")
    with _broker(stack) as transport:
        letters = find(transport, [service] if service else known, handle)
        if handle and not letters:
            raise BadRequest(f"there is no dead letter {handle!r}", "list them: make dead-letters")
        if replay:
            return _replay(console, transport, letters)
    if handle:
        for letter in letters:
            print_whole(console, letter)
    else:
        print_list(console, letters)
    return True


@contextmanager
def _broker(stack: Stack) -> Iterator[Transport]:
    """As the operator, that may read and write everything. Raises StackError where it does not answer."""
    if stack.settings.events == rabbitmq.NAME:
        password = stack.vault.rabbitmq_password(rabbitmq.OPERATOR)
        broker = RabbitMQ(
            rabbitmq.url(rabbitmq.OPERATOR, password, rabbitmq.node(stack.settings).address), "dead-letters"
        )
        try:
            yield broker
        except Away as error:
            raise _away(error, rabbitmq.NAME) from error
        return
    redis = connect(
        f"redis://127.0.0.1:{stack.settings.redis_state_port}/0",
        stack.vault.redis_password(REDIS_OPERATOR),
        username=REDIS_OPERATOR,
        timeout_s=TIMEOUT_S,
        connections=1,
    )
    assert redis is not None  # there is a URL
    try:
        yield RedisStreams(redis, "dead-letters")
    except Away as error:
        raise _away(error, "redis-state") from error
    finally:
        redis.close()


def _away(error: Away, program: str) -> StackError:
    return StackError(
        f"the broker of the events does not answer ({error})", f"see: make logs SERVICE={program}"
    )


def find(transport: Transport, services: Sequence[str], handle: str = "") -> list[Letter]:
    """The dead letters of these services, or the ones with this handle. Raises Away."""
    return [
        Letter(service, dead, _envelope(dead.body))
        for service in services
        for dead in transport.dead(service, MOST)
        if handle in ("", dead.handle)
    ]


def _envelope(body: bytes) -> Envelope | None:
    try:
        return read(body)
    except ValueError:
        return None


def hand_over(
    transport: Transport,
    letters: Sequence[Letter],
    within_s: float = TAKEN_WITHIN_S,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Letter]:
    """Have each service get its own again, and wait until it has them in its database. Those that it has not taken.

    A letter is let go of by its service alone, once it has the event safe: an end at any line loses nothing, and doing it
    again does nothing twice. Raises Away.
    """
    for letter in letters:
        transport.replay(letter.service, letter.dead)
    left, until = list(letters), time.monotonic() + within_s
    while left and time.monotonic() < until:
        sleep(0.5)
        services = sorted({letter.service for letter in left})
        kept = {(each.service, each.dead.handle) for each in find(transport, services)}
        left = [letter for letter in left if (letter.service, letter.dead.handle) in kept]
    return left


def _replay(console: Console, transport: Transport, letters: Sequence[Letter]) -> bool:
    events = [letter for letter in letters if letter.envelope is not None]
    left = hand_over(transport, events)
    for service in sorted({letter.service for letter in letters}):
        here, waiting = _count(events, service), _count(left, service)
        broken = _count(letters, service) - here
        if here > waiting:
            console.print(
                f"{service}: took {here - waiting} back; what fails again is here again in a minute"
            )
        if waiting:
            console.print(
                f"{service}: has not taken {waiting} yet, which stay here until it does;"
                f" does it run, and does it hear such events? make logs SERVICE={service}"
            )
        if broken:
            console.print(f"{service}: {broken} cannot be replayed, for they are no events")
    if not letters:
        console.print("no dead letters")
    return not left and len(events) == len(letters)


def _count(letters: Sequence[Letter], service: str) -> int:
    return sum(letter.service == service for letter in letters)


def print_list(console: Console, letters: Sequence[Letter]) -> None:
    """A line each: when, of which service, what, why, and the id by which it is shown and replayed."""
    if not letters:
        console.print("no dead letters")
        return
    rows = [("given up", "service", "id", "type", "subject", "reason"), *map(_row, letters)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        # No table: it would cut ids where the terminal is narrow.
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        console.print(Text("  ".join(cells).rstrip()))
    for service in sorted({letter.service for letter in letters}):
        if _count(letters, service) == MOST:
            console.print(f"{service}: these are the {MOST} oldest; there may be more")
    console.print("one whole: make dead-letters ID=…; once the cause is mended: make dead-letters REPLAY=1")


def _row(letter: Letter) -> tuple[str, ...]:
    what = letter.envelope
    kind, subject = (what.type, what.subject) if what else ("no event", "-")
    cells = (letter.dead.at[:19], letter.service, letter.dead.handle, kind, subject, letter.dead.reason)
    return tuple(printable(cell, CELL_CHARS) for cell in cells)


def print_whole(console: Console, letter: Letter) -> None:
    """All that is known of it, the body of an event line by line."""
    head = {
        "service": letter.service,
        "id": letter.dead.handle,
        "given up": letter.dead.at,
        "reason": letter.dead.reason,
    }
    for name, value in head.items():
        console.print(Text(f"{name}: {printable(value)}"))
    text = _text(letter)
    shown = text[:MAX_BYTES]
    console.print(Text("\n".join(printable(line) for line in shown.split("\n"))))
    if shown != text:
        console.print(f"… {len(letter.dead.body)} bytes in all")


def _text(letter: Letter) -> str:
    body = letter.dead.body
    if letter.envelope is not None:
        # Python turns no number of thousands of digits into text.
        with suppress(ValueError):
            return json.dumps(json.loads(body), indent=2, ensure_ascii=False)
    return body.decode(errors="backslashreplace")


def printable(text: str, most: int = MAX_BYTES) -> str:
    """The text with an escape for each character that does something else than to be seen, cut after `most`."""
    cut = text if len(text) <= most else text[: most - 1] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)
