"""Discovery: register instances in Consul, follow the catalog, and call services through it."""

from discovery.clock import SYSTEM_CLOCK, Clock, SystemClock
from discovery.consul_api import ConsulApi
from discovery.model import Change, HttpCheck, Instance, Registration, Route, Snapshot
from discovery.registration import Keeper
from discovery.static_view import Reading, StaticView
from discovery.view import View

__all__ = [
    "SYSTEM_CLOCK",
    "Change",
    "Clock",
    "ConsulApi",
    "HttpCheck",
    "Instance",
    "Keeper",
    "Reading",
    "Registration",
    "Route",
    "Snapshot",
    "StaticView",
    "SystemClock",
    "View",
]
