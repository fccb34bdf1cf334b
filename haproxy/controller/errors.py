"""What can go wrong between the controller and HAProxy.

EdgeError
├── Unreachable      the Runtime API or the master CLI gives no answer: HAProxy is down, starting, or stuck
├── BadWord          something that must never be part of a command was about to be; nothing was sent
├── ConfigRefused    `haproxy -c` refuses what was rendered; the file in use stands
└── ReloadFailed     the master could not bring up a new worker; the old one serves on, with the former file
"""

from __future__ import annotations


class EdgeError(Exception):
    """Root of the controller's own errors."""


class Unreachable(EdgeError): ...


class BadWord(EdgeError): ...


class ConfigRefused(EdgeError):
    """HAProxy refuses the configuration. `output` is what it said."""

    def __init__(self, output: str) -> None:
        self.output = output
        super().__init__(f"haproxy -c refuses the configuration: {output[-1500:]}")


class ReloadFailed(EdgeError): ...
