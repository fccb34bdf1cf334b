"""`docs/your-own-service.md`, its second half: nginx behind the edge by a plain Consul JSON file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from stack.run.api import Stack
from tests.integration.page import YOUR_OWN_SERVICE, Page, running_stack
from tests.support.eventually import eventually
from tests.support.servers import Process, accepts, free_port


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with running_stack() as one:
        yield one


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def page(stack: Stack, tmp_path: Path, port: int) -> Page:
    made = Page(YOUR_OWN_SERVICE, "A program that is not Python", tmp_path, stack, {8081: port})
    made.save_files()
    return made


@pytest.fixture
def nginx(page: Page, port: int) -> Iterator[Process]:
    process = page.start(page.command("nginx"), "nginx")
    try:
        eventually(lambda: accepts(port) or not process.running, 10)
        process.must_run()
        yield process
    finally:
        process.stop()


def test_nginx_is_live_at_the_edge_as_the_page_says(page: Page, nginx: Process) -> None:
    nginx_, register, get, deregister = page.commands()
    assert nginx_.startswith("nginx")
    page.run(register)
    assert eventually(lambda: (text := page.run(get)) == page.printed_by(get) and text, 15, every_s=0.1)
    page.run(deregister)
    eventually(lambda: '"status":503' in page.run(get).replace(" ", ""), 10)


def test_killed_foreign_program_leaves_the_edge_and_returns_to_it(page: Page, nginx: Process) -> None:
    _, register, get, deregister = page.commands()
    page.run(register)
    expected = page.printed_by(get)
    eventually(lambda: page.run(get) == expected, 15, every_s=0.1)
    nginx.kill()
    eventually(lambda: page.run(get) != expected, 10)
    again = page.start(page.command("nginx"), "nginx-again")
    try:
        eventually(lambda: page.run(get) == expected, 20, every_s=0.1)
    finally:
        page.run(deregister)
        again.stop()
