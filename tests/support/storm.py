"""An upstream of a fixed capacity, and clients that will not take no for an answer: what a retry storm is made of.

Both are asyncio in processes of their own, so that neither disturbs the other nor the test. Times are `time.monotonic()`
seconds, which the processes of one machine share.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import random
import signal
import socket
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from tests.support.eventually import time_scale
from tests.support.load import Answer, Report

START_S = 30.0


# -- the upstream


@dataclass
class Capacity:
    """`workers` requests at once, each taking about `work_s`; the rest queue without bound, whether or not their clients still wait."""

    workers: int
    work_s: float

    @property
    def per_s(self) -> float:
        return self.workers / self.work_s


@dataclass
class RunningUpstream:
    """`seen` asks it how many requests it has begun."""

    port: int
    capacity: Capacity
    pid: int
    _pipe: Connection

    def seen(self) -> int:
        self._pipe.send("seen")
        assert self._pipe.poll(10 * time_scale()), "the upstream does not say what it has seen"
        return int(self._pipe.recv())

    @contextlib.contextmanager
    def hung(self) -> Iterator[None]:
        """Stopped: it takes connections and answers nothing."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)


@contextlib.contextmanager
def limited_upstream(capacity: Capacity) -> Iterator[RunningUpstream]:
    """An upstream on a free loopback port, in a process of its own."""
    with _apart(_upstream, capacity) as (process, pipe):
        assert process.pid is not None
        yield RunningUpstream(pipe.recv(), capacity, process.pid, pipe)


@contextlib.contextmanager
def _apart(
    run: Callable[[Any, Connection], None], plan: object
) -> Iterator[tuple[multiprocessing.process.BaseProcess, Connection]]:
    """`run(plan, pipe)` in a process of its own, which has said its first word."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=run, args=(plan, theirs), daemon=True)
    process.start()
    try:
        assert ours.poll(START_S * time_scale()), f"{run.__name__} did not start"
        yield process, ours
    finally:
        process.kill()
        process.join(5)


def _upstream(capacity: Capacity, pipe: Connection) -> None:
    asyncio.run(_serve(capacity, pipe))


async def _serve(capacity: Capacity, pipe: Connection) -> None:
    places = asyncio.Semaphore(capacity.workers)
    chance = random.Random(5)
    seen = 0
    body = b'{"pears":3}'
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nCache-Control: no-store\r\n"
    answer = head + b"Content-Length: %d\r\n\r\n" % len(body) + body

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal seen
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                async with places:
                    seen += 1
                    # Not all the same, or workers that began together would end together for ever.
                    await asyncio.sleep(capacity.work_s * (0.75 + 0.5 * chance.random()))
                writer.write(answer)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, backlog=1024)
    pipe.send(server.sockets[0].getsockname()[1])
    while True:
        await asyncio.sleep(0.05)
        if pipe.poll():
            pipe.recv()
            pipe.send(seen)


# -- the clients


@dataclass(frozen=True)
class Crowd:
    """`per_s` users, each of which asks again at once when it gets no 200, `attempts` times in all."""

    port: int
    path: str
    per_s: float
    headers: Mapping[str, str] = field(default_factory=dict)
    attempts: int = 3
    timeout_s: float = 3.5
    pause_s: float = 0.2


def goodput(report: Report, since_s: float, until_s: float) -> float:
    """Good answers a second."""
    return sum(since_s <= each.ended_s < until_s for each in report.good()) / (until_s - since_s)


def typical_goodput(report: Report, since_s: float, until_s: float) -> float:
    """Good answers in the median second."""
    seconds = int(until_s - since_s)
    return statistics.median(goodput(report, since_s + at, since_s + at + 1) for at in range(seconds))


def per_second(report: Report, zero_s: float) -> str:
    """For a failing test: what came in each second from `zero_s` on."""
    table: dict[int, Counter[int]] = {}
    for each in report.answers:
        table.setdefault(int((each.ended_s - zero_s) // 1), Counter())[each.status] += 1
    return "\n".join(f"{second:4d} s {dict(table[second])}" for second in sorted(table))


class RunningCrowd:
    """A crowd at work; `stop` ends it."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def stop(self) -> Report:
        """All its attempts: of `status` 0 are those without an answer in time."""
        self._pipe.send("stop")
        assert self._pipe.poll(START_S * time_scale()), "the crowd did not come home"
        return Report(tuple(self._pipe.recv()))


@contextlib.contextmanager
def crowd(plan: Crowd) -> Iterator[RunningCrowd]:
    """The crowd in a process of its own, at work from here on."""
    with _apart(_crowd, plan) as (_, pipe):
        pipe.recv()
        yield RunningCrowd(pipe)


def _crowd(plan: Crowd, pipe: Connection) -> None:
    pipe.send("started")
    pipe.send(asyncio.run(_Users(plan, pipe).run()))


class _Users:
    # More than ever wait at once in a test; beyond it users stay at home, which the figures would show.
    MOST = 4000

    def __init__(self, plan: Crowd, pipe: Connection) -> None:
        self._plan = plan
        self._pipe = pipe
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._answers: list[Answer] = []
        self._random = random.Random(11)
        head = "".join(f"{name}: {value}\r\n" for name, value in plan.headers.items())
        self._head = f"Host: edge.test\r\n{head}\r\n"

    async def run(self) -> list[Answer]:
        users: set[asyncio.Task[None]] = set()
        began, number = time.monotonic(), 0
        while not self._pipe.poll():
            while number < (time.monotonic() - began) * self._plan.per_s:
                number += 1
                if len(users) < self.MOST:
                    task = asyncio.create_task(self._user(number))
                    users.add(task)
                    task.add_done_callback(users.discard)
            await asyncio.sleep(0.01)
        for task in users:
            task.cancel()
        return self._answers

    async def _user(self, number: int) -> None:
        for attempt in range(1, self._plan.attempts + 1):
            began = time.monotonic()
            try:
                async with asyncio.timeout(self._plan.timeout_s):
                    status, retry_after = await self._ask(f"{self._plan.path}/{number}/{attempt}")
            except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError):
                status, retry_after = 0, ""
            self._answers.append(Answer(began, time.monotonic(), status, retry_after=retry_after))
            if status == 200:
                return
            await asyncio.sleep(self._random.random() * self._plan.pause_s * 2**attempt)

    async def _ask(self, path: str) -> tuple[int, str]:
        if self._idle:
            reader, writer = self._idle.pop()
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._plan.port)
            sock: socket.socket = writer.get_extra_info("socket")
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        whole = False
        try:
            writer.write(f"GET {path} HTTP/1.1\r\n{self._head}".encode())
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            lines = head.split("\r\n")
            fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
            await reader.readexactly(int(fields.get("content-length", "0")))
            whole = fields.get("connection", "") != "close"
            return int(lines[0].split(" ")[1]), fields.get("retry-after", "")
        finally:
            if whole:
                self._idle.append((reader, writer))
            else:
                writer.close()
