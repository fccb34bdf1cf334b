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
    """No room for one more request: in the group (`scope` `group`) or towards the upstream (`upstream`). Nothing was sent."""

    def __init__(self, service: str, scope: str, *, retry_after_s: float = 1.0) -> None:
        self.scope = scope
        super().__init__(service, f"too much at once ({scope})", retry_after_s=retry_after_s)


class LimitExceeded(GatewayError):
    """The caller has used up what he may ask. `headers` are RateLimit and RateLimit-Policy of the answer."""

    def __init__(self, service: str, headers: list[tuple[str, str]], *, retry_after_s: float) -> None:
        self.headers = headers
        super().__init__(service, "rate limit exceeded", retry_after_s=retry_after_s)


class RouteUnknown(GatewayError):
    """No service of this gateway's domain holds the path."""
