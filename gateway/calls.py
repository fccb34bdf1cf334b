"""Calls of the gateway to instances: leave to send from the shedder, then ServiceClient."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

import discovery
from discovery.balancing.ejection import Identity
from discovery.calls.client import Relay
from discovery.calls.guard import FAILED_STATUSES
from discovery.model import Domain
from gateway.errors import Overloaded
from gateway.limits.loadshed import Shed, Ticket
from gateway.model import Incoming


class Calls:
    """Sends requests to services by name. Thread-safe.

    `client` carries no token of the gateway's own: what a caller may not do, he may not do through us. `domain_of` tells whose a
    service is: those of identity have priority when there is not room for all.
    """

    def __init__(
        self, client: discovery.ServiceClient, shed: Shed, domain_of: Callable[[str], Domain | None]
    ) -> None:
        self.client = client
        self._shed = shed
        self._domain_of = domain_of

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
        usual_s: float | None = None,
        stream: bool = False,
        relay: Relay | None = None,
        source_key: str | None = None,
        max_body_bytes: int | None = None,
        avoid: Collection[Identity] = (),
        tried: set[Identity] | None = None,
    ) -> discovery.Response:
        """Call a service; `target` is path and query. Retries are ServiceClient's, and so is the rest. Raises CallError, Overloaded.

        A streamed answer must be read to its end or closed; until then it holds its place. `incoming` is whose request it is;
        its client is the `source_key` where there is no other.
        """
        if source_key is None and incoming is not None:
            source_key = incoming.client
        ticket = self._shed.enter(service, priority=self._domain_of(service) == "identity")
        try:
            response = self.client.request(
                method,
                service,
                target,
                headers=headers,
                body=body,
                deadline_s=deadline_s,
                usual_s=usual_s,
                stream=stream,
                relay=relay,
                source_key=source_key,
                max_body_bytes=max_body_bytes,
                avoid=avoid,
                tried=tried,
            )
        except BaseException as error:
            gone = not isinstance(error, Exception)
            ticket.leave(None if gone or getattr(error, "neutral", False) else False)
            raise
        _note(ticket, response, stream)
        return response

    def breaker(self, service: str) -> str:
        """The state of the service's breaker: `closed`, `open` or `half-open`."""
        return self.client.breaker_state(service)


def _note(ticket: Ticket, response: discovery.Response, stream: bool) -> None:
    """Have the ticket know how far the call is, now and when it is over. Raises Overloaded."""
    ok = response.status not in FAILED_STATUSES
    if not stream or response.complete:
        ticket.leave(ok)
        return
    try:
        ticket.head(ok)
    except Overloaded:
        response.close()
        raise
    response.on_end(ticket.leave)
