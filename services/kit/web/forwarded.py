"""Where a request came from, in which words: the edge says so in `X-Forwarded-*`, and only the edge is believed.

So `request.scheme`, `.host` and `.remote_addr` are the client's, and a redirect or `url_for(…, _external=True)` leads back to
where the client is. A gateway passes the edge's words on unchanged: one value of each counts, in both lanes.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

from werkzeug.middleware.proxy_fix import ProxyFix

App = Callable[..., Iterable[bytes]]


class Forwarded:
    """WSGI middleware: reads the headers of clients in one of `networks`."""

    def __init__(self, inner: App, networks: str) -> None:
        self._inner = inner
        self._fixed = ProxyFix(inner, x_for=1, x_proto=1, x_host=1, x_prefix=1)
        self._networks = [ipaddress.ip_network(part.strip()) for part in networks.split(",")]
        self._believed = lru_cache(maxsize=256)(self._contains)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        believed = self._believed(environ.get("REMOTE_ADDR", ""))
        return (self._fixed if believed else self._inner)(environ, start_response)

    def _contains(self, peer: str) -> bool:
        try:
            address = ipaddress.ip_address(peer)
        except ValueError:
            return False
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        return any(address in network for network in self._networks)
