"""Discovery: register instances in Consul, follow the catalog, and call services through it."""

from discovery.clock import SYSTEM_CLOCK, Clock, SystemClock
from discovery.consul_api import ConsulApi
from discovery.model import Change, HttpCheck, Instance, Registration, Route, Snapshot
from discovery.registration import Keeper
from discovery.view import Reading, StaticView, View

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
