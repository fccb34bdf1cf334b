"""`docs/your-own-service.md`, followed to the letter on a running stack."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from stack import http
from stack.run.api import Stack
from tests.integration.page import YOUR_OWN_SERVICE, Page
from tests.support.eventually import eventually
from tests.support.servers import Process, accepts, ask_consul, free_port

pytestmark = pytest.mark.needs_stack


@pytest.fixture
def page(stack: Stack, tmp_path: Path) -> Page:
    made = Page(YOUR_OWN_SERVICE, "Ten lines of Python", tmp_path, stack)
    made.save_files()
    return made


def consul(stack: Stack, method: str, path: str, body: object = None, token: str | None = None) -> Any:
    """One call to Consul, by default with all rights. Raises requests.HTTPError for an error status."""
    token = token or stack.vault.consul_token("master")
    return ask_consul(stack.settings.consul_address, method, path, body, token=token)


@contextlib.contextmanager
def started(page: Page, name: str) -> Iterator[Process]:
    process = page.start(page.command("make run"), name)
    try:
        yield process
    finally:
        process.stop(15)


def through_the_edge(stack: Stack) -> requests.Response:
    return http.call(f"127.0.0.1:{stack.settings.edge_http_port}", "GET", "/api/hello")


def instances(stack: Stack) -> int:
    return len(consul(stack, "GET", "/v1/health/service/hello?passing"))


def test_the_page_has_a_service_of_ten_lines(page: Page) -> None:
    lines = [line for line in (page.folder / "hello.py").read_text().splitlines() if line.strip()]
    assert len(lines) <= 10


def test_ten_lines_are_live_at_the_edge_as_the_page_says(stack: Stack, page: Page) -> None:
    curl = page.command("curl")
    with started(page, "first") as first:
        expected = page.printed_by(curl)
        eventually(lambda: page.run(curl) == expected or not first.running, 30, every_s=0.1)
        first.must_run()


def test_second_instance_shares_the_work_and_leaves_without_a_failed_request(
    stack: Stack, page: Page
) -> None:
    with started(page, "first"), started(page, "second") as second:
        eventually(lambda: instances(stack) == 2, 30)
        eventually(lambda: through_the_edge(stack).status_code == 200, 10)
        served_by: set[str] = set()
        failed: list[object] = []
        stop = threading.Event()

        def ask() -> None:
            while not stop.is_set():
                try:
                    answer = through_the_edge(stack)
                    served_by.add(answer.headers.get("X-Served-By", ""))
                    if answer.status_code != 200:
                        failed.append(answer.status_code)
                except OSError as error:
                    failed.append(error)

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            eventually(lambda: len(served_by) == 2, 10)
            os.kill(second.pid, signal.SIGINT)
            assert second.popen is not None
            assert second.popen.wait(30) == 0
        finally:
            stop.set()
            asking.join(10)
        assert failed == []
        assert instances(stack) == 1


def test_route_without_an_instance_answers_503_and_comes_back(stack: Stack, page: Page) -> None:
    with started(page, "first"):
        eventually(lambda: through_the_edge(stack).status_code == 200, 30)
    eventually(lambda: through_the_edge(stack).status_code == 503, 10)
    answer = through_the_edge(stack)
    assert answer.status_code == 503
    assert "Retry-After" in answer.headers
    assert answer.json()["service"] == "hello"
    with started(page, "again"):
        eventually(lambda: through_the_edge(stack).status_code == 200, 30)


# -- the second half: nginx behind the edge by a plain Consul JSON file


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def foreign(stack: Stack, tmp_path: Path, port: int) -> Page:
    made = Page(YOUR_OWN_SERVICE, "A program that is not Python", tmp_path, stack, {8081: port})
    made.save_files()
    return made


@pytest.fixture
def nginx(foreign: Page, port: int) -> Iterator[Process]:
    process = foreign.start(foreign.command("nginx"), "nginx")
    try:
        eventually(lambda: accepts(port) or not process.running, 10)
        process.must_run()
        yield process
    finally:
        process.stop()


def test_nginx_is_live_at_the_edge_as_the_page_says(foreign: Page, nginx: Process) -> None:
    nginx_, register, get, deregister = foreign.commands()
    assert nginx_.startswith("nginx")
    foreign.run(register)
    assert eventually(lambda: (text := foreign.run(get)) == foreign.printed_by(get) and text, 15, every_s=0.1)
    foreign.run(deregister)
    eventually(lambda: '"status":503' in foreign.run(get).replace(" ", ""), 10)


def test_killed_foreign_program_leaves_the_edge_and_returns_to_it(foreign: Page, nginx: Process) -> None:
    _, register, get, deregister = foreign.commands()
    foreign.run(register)
    expected = foreign.printed_by(get)
    eventually(lambda: foreign.run(get) == expected, 15, every_s=0.1)
    nginx.kill()
    eventually(lambda: foreign.run(get) != expected, 10)
    again = foreign.start(foreign.command("nginx"), "nginx-again")
    try:
        eventually(lambda: foreign.run(get) == expected, 20, every_s=0.1)
    finally:
        foreign.run(deregister)
        again.stop()
