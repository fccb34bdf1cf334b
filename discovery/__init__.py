"""Discovery: register instances in Consul, follow the catalog, and call services through it."""

from discovery.breaker import Breaker, BreakerSettings, BreakerSnapshot, Transition, Who
from discovery.client import ServiceClient
from discovery.client_settings import ClientSettings
from discovery.clock import SYSTEM_CLOCK, Clock, SystemClock
from discovery.consul_api import ConsulApi
from discovery.errors import (
    AnswerTooLarge,
    BreakerOpen,
    BudgetExhausted,
    CallError,
    ConnectFailed,
    ConsulError,
    ContractError,
    DeadlineExceeded,
    DiscoveryError,
    NoInstance,
    NotSent,
    ResponseLost,
    ResponseTimeout,
)
from discovery.http_headers import Headers
from discovery.model import Change, HttpCheck, Instance, Registration, Route, Snapshot
from discovery.observer import Observer
from discovery.outlier import OutlierSettings
from discovery.registration import Keeper
from discovery.retry import RetrySettings
from discovery.static_view import Reading, StaticView
from discovery.transport import Response
from discovery.view import View

__all__ = [
    "SYSTEM_CLOCK",
    "AnswerTooLarge",
    "Breaker",
    "BreakerOpen",
    "BreakerSettings",
    "BreakerSnapshot",
    "BudgetExhausted",
    "CallError",
    "Change",
    "ClientSettings",
    "Clock",
    "ConnectFailed",
    "ConsulApi",
    "ConsulError",
    "ContractError",
    "DeadlineExceeded",
    "DiscoveryError",
    "Headers",
    "HttpCheck",
    "Instance",
    "Keeper",
    "NoInstance",
    "NotSent",
    "Observer",
    "OutlierSettings",
    "Reading",
    "Registration",
    "Response",
    "ResponseLost",
    "ResponseTimeout",
    "RetrySettings",
    "Route",
    "ServiceClient",
    "Snapshot",
    "StaticView",
    "SystemClock",
    "Transition",
    "View",
    "Who",
]
