"""Calls of the gateway to instances: leave to send from the shedder, then ServiceClient."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import discovery
from discovery.outlier import Identity
from gateway.model import Incoming


class Calls:
    """Sends requests to services by name. Thread-safe.

    `client` carries no token of the gateway's own: what a caller may not do, he may not do through us.
    """

    def __init__(self, client: discovery.ServiceClient) -> None:
        self.client = client

    def send(
        self,
        incoming: Incoming | None,
        method: str,
        service: str,
        target: str,
        *,
        headers: Mapping[str, str],
        body: bytes | Iterable[bytes] | None = None,
        deadline_s: float,
        stream: bool = False,
        source_key: str | None = None,
        max_body_bytes: int | None = None,
        avoid: Collection[Identity] = (),
        tried: set[Identity] | None = None,
    ) -> discovery.Response:
        """Call a service; `target` is path and query. Retries are ServiceClient's. Raises CallError, Overloaded.

        A streamed answer must be read to its end or closed; until then it holds its place. `incoming` is whose request it is;
        for `max_body_bytes`, `avoid` and `tried` see ServiceClient.
        """
        return self.client.request(
            method,
            service,
            target,
            headers=headers,
            body=body,
            deadline_s=deadline_s,
            stream=stream,
            source_key=source_key,
            max_body_bytes=max_body_bytes,
            avoid=avoid,
            tried=tried,
        )

    def breaker(self, service: str) -> str:
        """The state of the service's breaker: `closed`, `open` or `half-open`."""
        known = self.client.breakers().get(service)
        return known.state if known is not None else "closed"
