"""The gateway's own refusals. `gateway.problems` turns them, and discovery's errors, into answers: one place."""

from __future__ import annotations


class GatewayError(Exception):
    """Root of what the gateway refuses by itself. `service` is the upstream concerned, empty for none."""

    def __init__(self, service: str, detail: str, *, retry_after_s: float = 1.0) -> None:
        self.service = service
        self.detail = detail
        self.retry_after_s = retry_after_s
        super().__init__(f"{service}: {detail}" if service else detail)


class Overloaded(GatewayError):
    """No room for one more request: in the group (`scope` `group`) or towards the upstream (`upstream`).

    Nothing was `sent`, unless it was the answer that found no room.
    """

    def __init__(self, service: str, scope: str, *, retry_after_s: float = 1.0, sent: bool = False) -> None:
        self.scope = scope
        self.sent = sent
        super().__init__(service, f"too much at once ({scope})", retry_after_s=retry_after_s)


class LimitExceeded(GatewayError):
    """The caller has used up what it may ask. `headers` are RateLimit and RateLimit-Policy of the answer."""

    def __init__(self, service: str, headers: list[tuple[str, str]], *, retry_after_s: float) -> None:
        self.headers = headers
        super().__init__(service, "rate limit exceeded", retry_after_s=retry_after_s)


class RouteUnknown(GatewayError):
    """No service of this gateway's domain holds the path."""


class Refused(GatewayError):
    """The request cannot be passed on as it came, or its answer not be made. `status` is the answer's.

    `headers` go out with it, `members` into the problem object. Below 500 it is the caller's to mend.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        service: str = "",
        headers: list[tuple[str, str]] | None = None,
        members: dict[str, object] | None = None,
        retry_after_s: float = 1.0,
    ) -> None:
        self.status = status
        self.headers = headers or []
        self.members = members or {}
        super().__init__(service, detail, retry_after_s=retry_after_s)


class PartFailed(Refused):
    """A composed answer without a part that it needs: `members` has `part` (its name) and `parts` (how each of them went).

    `attempts` were made for that part.
    """

    attempts = 0


class ClientGone(BaseException):
    """The client has closed the connection: no answer is waited for any more.

    Raised where the request waits for an upstream. No Exception, so that nothing between there and the pipeline takes it
    for a failure, of the upstream's least of all.
    """
