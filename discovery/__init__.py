"""Discovery: register instances in Consul, follow the catalog, and call services through it."""

from discovery.balancing.ejection import OutlierSettings
from discovery.calls.client import Relay, ServiceClient
from discovery.calls.instrumentation import Observer
from discovery.calls.upstream import ClientSettings
from discovery.clock import SYSTEM_CLOCK, Clock, SystemClock
from discovery.consul.api import ConsulApi
from discovery.consul.catalog import View
from discovery.consul.registration import Keeper
from discovery.consul.static import Reading, StaticView
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
from discovery.http.headers import Headers
from discovery.http.response import Response
from discovery.model import Change, GrpcCheck, HttpCheck, Instance, Registration, Route, Snapshot
from discovery.resilience.breaker import Breaker, BreakerSettings, BreakerStatus, Transition, Who
from discovery.resilience.retry import RetrySettings

__all__ = [
    "SYSTEM_CLOCK",
    "AnswerTooLarge",
    "Breaker",
    "BreakerOpen",
    "BreakerSettings",
    "BreakerStatus",
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
    "GrpcCheck",
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
    "Relay",
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
