"""The stage for composed answers: a real gateway, services that a test scripts, and the worst that a part can do."""

from __future__ import annotations

import contextlib
import gzip
import json
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.gateway_rig import ROOT, Answer, Rig, Service, gateway_rig
from tests.support.scripted import Handler, Upstream

MIB = 1024 * 1024
U, P = "a1" * 16, "0f" * 16
PAIR = f"/api/{U}/{P}"
SHIPPED = (ROOT / "gateway" / "compose" / "business.toml").read_text()
# Short times: what waits here waits for them.
QUICK_HEALTH = SHIPPED.replace("timeout_s = 1.0", "timeout_s = 0.5", 1).replace(
    "remember_s = 1.0", "remember_s = 0.3"
)
REMEMBER_S = 0.3
MORE = """
[[route]]
name = "plates"
path = "/api/plates/<id>"
placeholders = { id = "[a-z0-9]+" }
timeout_s = 1.0
parts.fruit = { service = "fruits", path = "/api/fruits/<id>", take = "data", expect = "object" }
parts.plate = { service = "products", path = "/api/products/<id>", required = true }

[[route]]
name = "needs"
path = "/api/needs/<id>"
placeholders = { id = "[a-z0-9]+" }
timeout_s = 1.0
parts.fruit = { service = "fruits", path = "/api/fruits/<id>", required = true, take = "data", expect = "object" }

[[route]]
name = "words"
path = "/api/words/<word>"
placeholders = { word = ".+" }
parts.word = { service = "products", path = "/api/products/<word>/end?q=<word>", required = true }

[[route]]
name = "hedged"
path = "/api/hedged"
timeout_s = 20.0
parts.nut = { service = "nuts", path = "/api/nuts", required = true, hedge = true }
"""


@dataclass
class Stage:
    """The services as they stand; `set` scripts one for as long as a test lasts."""

    rig: Rig
    services: dict[str, Service]
    token: str
    calm: dict[str, Callable[[Handler], None]] = field(default_factory=dict)

    def set(self, name: str, behave: Callable[[Handler], None]) -> None:
        for each in self.services[name].upstreams:
            each.behave = lambda handler: behave(handler) if not is_check(handler) else ready(name, handler)

    def reset(self) -> None:
        for name, service in self.services.items():
            self.set(name, self.calm[name])
            for each in service.upstreams:
                each.requests.clear()

    def seen(self, name: str) -> list[Any]:
        return [seen for seen in self.services[name].requests if not seen.path.startswith("/health")]

    def get(
        self,
        path: str,
        *,
        token: bool = True,
        method: str = "GET",
        client: str | None = None,
        **headers: str,
    ) -> Answer:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if token:
            sent["Authorization"] = f"Bearer {self.token}"
        return self.rig.ask(method, path, headers=sent, client=client)


def is_check(handler: Handler) -> bool:
    return handler.path == "/health/ready"


def ready(name: str, handler: Handler) -> None:
    handler.answer(200, b"{}", X_Service=name)


def user(handler: Handler) -> None:
    if "authorization" not in handler.seen.headers:
        handler.answer(401, b"{}", WWW_Authenticate='Bearer realm="users"')
    else:
        handler.answer(
            200, b'{"data":{"id":"%s","n":1.50}}\n' % U.encode(), Cache_Control="private, no-cache"
        )


def product(handler: Handler) -> None:
    handler.answer(200, b'{"data":{"price":999}}', Cache_Control="public, max-age=5, s-maxage=5")


def posts(handler: Handler) -> None:
    handler.answer(
        200, b'{"data": [{"title": "x"}], "page": {"limit": 10}}', Cache_Control="public, no-cache"
    )


def fruit(handler: Handler) -> None:
    handler.answer(200, b'{"data":{"kind":"pear"}}')


def body(answer: Answer) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(answer.body)
    return parsed


RELEASE = threading.Event()


def hang(handler: Handler) -> None:
    RELEASE.wait(3)
    handler.hang_up()


def drip(handler: Handler) -> None:
    """A byte now and then, for ever."""
    handler.begin_chunks()
    while not RELEASE.wait(0.05):
        handler.chunk(b" ")


def drip_head(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-A: ")
    while not RELEASE.wait(0.05):
        handler.wfile.write(b"b")


def babble(handler: Handler) -> None:
    while not RELEASE.wait(0.05):
        handler.wfile.write(b"SSH-2.0-OpenSSH ")


def huge(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(50 * MIB))
    handler.end_headers()
    for _ in range(50):
        handler.wfile.write(b'"' + b"x" * (MIB - 1))


def endless(handler: Handler) -> None:
    handler.begin_chunks()
    while not RELEASE.is_set():
        handler.chunk(b"[" * 65536)


def bomb(handler: Handler) -> None:
    handler.answer(200, BOMB, Content_Encoding="gzip")


BOMB = gzip.compress(b'{"data":{"x":"' + b" " * (50 * MIB) + b'"}}')


def cut(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "100")
    handler.end_headers()
    handler.wfile.write(b'{"data":{}}')
    handler.hang_up()


def says(data: bytes, status: int = 200, **headers: str) -> Callable[[Handler], None]:
    return lambda handler: handler.answer(status, data, **headers)


def says_raw(data: bytes) -> Callable[[Handler], None]:
    def behave(handler: Handler) -> None:
        handler.wfile.write(data)
        handler.hang_up()

    return behave


WORST = {
    "hangs": (hang, "timeout"),
    "drips": (drip, "timeout"),
    "drips its head": (drip_head, "timeout"),
    "is 50 MB": (huge, "invalid"),
    "never ends": (endless, "invalid"),
    "unpacks to 50 MB": (bomb, "invalid"),
    "is cut short": (cut, "failed"),
    "hangs up": (lambda handler: handler.hang_up(), "failed"),
    "is empty": (says(b""), "invalid"),
    "is 404": (says(b"{}", 404), "refused"),
    "is 500": (says(b"{}", 500), "failed"),
    "redirects": (says(b"{}", 302, Location="http://127.0.0.1:1/"), "invalid"),
    "is not JSON": (says(b"<html>oops</html>"), "invalid"),
    "is nested deep": (says(b'{"data":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}"), "invalid"),
    "is of another shape": (says(b'{"data":[1,2]}'), "invalid"),
    "adds members": (says(b'{"data":{}},"plate":{"data":{"free":true}'), "invalid"),
    "is no HTTP": (says_raw(b"SSH-2.0-OpenSSH\r\n"), "failed"),
    "babbles": (babble, None),
}


@contextlib.contextmanager
def on_stage() -> Iterator[Stage]:
    """A gateway of the business domain, and the services of the first routes beside `fruits`."""
    calm = {"auth": fruit, "users": user, "products": product, "posts": posts, "fruits": fruit}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="compose-")))
        (folder / "business.toml").write_text(QUICK_HEALTH + MORE)
        env = {"GATEWAY_COMPOSE_DIR": str(folder)}
        rig = stack.enter_context(gateway_rig("business", with_redis=True, env=env))
        services = {
            name: stack.enter_context(rig.service(behave, name=name, lane="direct"))
            for name, behave in calm.items()
        }
        yield Stage(rig, services, rig.signer.token(U), calm)


def answered_by(one: Upstream) -> int:
    return len([seen for seen in one.requests if not seen.path.startswith("/health")])
