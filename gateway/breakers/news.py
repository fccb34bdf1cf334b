"""What gateways publish of their breakers in Redis: under which keys, in what shape, and what is ignored.

    channel  gateway:<group>:breakers                        trips and closings of the group's own processes
    key      gateway:<group>:breaker:<service>               the last trip, for as long as it holds
    channel  gateway:shared:breakers:orders:<group>          what operators order, at any gateway
    key      gateway:shared:breakers:hand:<group>:<service>  an opening by hand, for as long as it holds
    key      gateway:shared:breakers:<group>:<instance>      a process's picture of its breakers, a few seconds long

Only the gateways may write there (Redis' users see to it). Everything is checked all the same: what is not of this shape is ignored.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from discovery.model import Domain
from discovery.resilience.breaker import BreakerStatus, State

GROUPS: tuple[Domain, ...] = get_args(Domain)
# Seconds: the longest opening that an operator may order.
LONGEST_HOLD_S = 86_400
# Longer messages are ignored.
MAX_NEWS_BYTES = 4096
MAX_PICTURE_BYTES = 256 * 1024
MAX_REFS = 8

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]
Id = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._:/-]{1,250}$")]
Text = Annotated[str, StringConstraints(max_length=300)]

AnyModel = TypeVar("AnyModel", bound=BaseModel)


class _Shape(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


class News(_Shape):
    """A change of one breaker. `at_ms` is Unix time; `for_ms` how long the news holds from then on.

    A trip (`who` `local`, `open`) holds until its process tries again; a closing names in `of` the trips that are over. An
    order (`hand`) to open holds until the operator's time is over, and `first` is the instance that then tries
    again before the others; `request_id` is of the request that ordered it.
    """

    id: Id
    origin: Id
    service: Name
    state: State
    who: Literal["local", "hand"]
    at_ms: int = Field(ge=0, le=2**53)
    for_ms: int = Field(ge=0, le=LONGEST_HOLD_S * 1000)
    of: Annotated[tuple[Id, ...], Field(max_length=MAX_REFS)] = ()
    reason: Text = ""
    first: str = Field(default="", max_length=250)
    request_id: str = Field(default="", max_length=64)

    def left_s(self, now: float) -> float:
        """Seconds for which it still holds at Unix time `now`; a clock that is behind ours makes it no longer."""
        return min(self.for_ms, self.at_ms + self.for_ms - now * 1000) / 1000


class Picture(_Shape):
    """One process's breakers at `at` (Unix time). `sharing`: whether it hears of the others; `obeyed`: ids of orders carried out."""

    instance: Id
    group: Domain
    at: float
    sharing: bool
    obeyed: Annotated[tuple[Id, ...], Field(max_length=64)] = ()
    breakers: dict[Name, BreakerStatus]


def read(model: type[AnyModel], data: bytes | None, most: int) -> AnyModel | None:
    """What was found in Redis, or None when it is not that, or longer than `most` bytes."""
    if not data or len(data) > most:
        return None
    try:
        return model.model_validate_json(data)
    except ValidationError:
        return None


def trips_channel(group: str) -> str:
    return f"gateway:{group}:breakers"


def orders_channel(group: str) -> str:
    return f"gateway:shared:breakers:orders:{group}"


def trip_key(group: str, service: str) -> str:
    return f"gateway:{group}:breaker:{service}"


def hand_key(group: str, service: str) -> str:
    return f"gateway:shared:breakers:hand:{group}:{service}"


def picture_key(group: str, instance: str) -> str:
    return f"gateway:shared:breakers:{group}:{instance}"
