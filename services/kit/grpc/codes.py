"""gRPC's status codes in HTTP's terms, and back: the kit, its metrics and the guard of calls think in those.

Ref: google/rpc/code.proto, which gives each code its status.
"""

from __future__ import annotations

from collections.abc import Mapping

from grpc import RpcError, StatusCode

from discovery.errors import CallError, ResponseLost, ResponseTimeout

# In the trailing metadata of every answer of the kit's servers: an error without it came from the network, or from gRPC itself.
REQUEST_ID = "x-request-id"
CLIENT_LEFT = 499

_STATUSES: Mapping[StatusCode, int] = {
    StatusCode.OK: 200,
    StatusCode.CANCELLED: CLIENT_LEFT,
    StatusCode.UNKNOWN: 500,
    StatusCode.INVALID_ARGUMENT: 400,
    StatusCode.DEADLINE_EXCEEDED: 504,
    StatusCode.NOT_FOUND: 404,
    StatusCode.ALREADY_EXISTS: 409,
    StatusCode.PERMISSION_DENIED: 403,
    # Also what a server says that has too many calls under way: no failure, or the others would get its load as well.
    StatusCode.RESOURCE_EXHAUSTED: 429,
    StatusCode.FAILED_PRECONDITION: 412,
    StatusCode.ABORTED: 409,
    StatusCode.OUT_OF_RANGE: 400,
    StatusCode.UNIMPLEMENTED: 501,
    StatusCode.INTERNAL: 500,
    StatusCode.UNAVAILABLE: 503,
    StatusCode.DATA_LOSS: 500,
    StatusCode.UNAUTHENTICATED: 401,
}
# Of two codes with one status, the first.
_CODES: Mapping[int, StatusCode] = {
    **{status: code for code, status in reversed(list(_STATUSES.items()))},
    500: StatusCode.INTERNAL,
}
_LOST = frozenset({StatusCode.UNAVAILABLE, StatusCode.CANCELLED})


def status_of(code: StatusCode) -> int:
    """What HTTP would have said."""
    return _STATUSES[code]


def code_of(status: int) -> StatusCode:
    """What a problem with this status is in gRPC."""
    other = StatusCode.INVALID_ARGUMENT if 400 <= status < 500 else StatusCode.INTERNAL
    return _CODES.get(status, other)


def answered(error: RpcError) -> bool:
    """Whether an instance of the kit's answered so: the connection to it works."""
    return any(each.key == REQUEST_ID for each in error.trailing_metadata() or ())


def outcome_of(error: RpcError, service: str, instance_id: str) -> int:
    """The status of an attempt that ended in an error, for the guard. Raises CallError where that is no answer.

    UNAVAILABLE is none, whoever says so: gRPC has it mean that the call may go to another instance.
    """
    code = error.code()
    detail = f"{code.name}: {error.details()}"[:200]
    if code in _LOST:
        raise ResponseLost(service, detail, instance_id=instance_id) from error
    if code is StatusCode.DEADLINE_EXCEEDED and not answered(error):
        late = ResponseTimeout(service, detail, instance_id=instance_id)
        raise late from TimeoutError(detail)
    return status_of(code)


def no_answer(error: RpcError, service: str, instance_id: str) -> CallError | None:
    """The same for an answer that had begun: what it was broken off by, or None where the instance itself ended it."""
    try:
        outcome_of(error, service, instance_id)
    except CallError as broken:
        return broken
    return None
