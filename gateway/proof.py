"""Who asks, where an answer depends on it."""

from __future__ import annotations

from gateway.errors import Refused
from gateway.model import Incoming
from services.kit.auth.verifier import Identity


def proven(incoming: Incoming, service: str = "") -> Identity:
    """What the request's token says. Raises Refused: 401 without one that proves anything, 503 where none can be checked now."""
    identity = incoming.identify()
    if identity is not None:
        return identity
    if incoming.unchecked():
        raise Refused(503, "Tokens cannot be checked at the moment.", service=service)
    given = "authorization" in incoming.headers
    challenge = 'Bearer realm="breakwater"' + (', error="invalid_token"' if given else "")
    detail = "The token is not valid." if given else "A bearer token is needed."
    raise Refused(401, detail, service=service, headers=[("WWW-Authenticate", challenge)])
