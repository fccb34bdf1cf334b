"""What goes wrong while starting and running the stack, each error with a remedy."""

from __future__ import annotations


class StackError(Exception):
    """A failure that an operator can mend: `what` happened, and `remedy` to try. Printed as two lines, without a traceback."""

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(f"{what}\n{remedy}".rstrip())
        self.what = what
        self.remedy = remedy


class PortInUse(StackError):
    """A fixed port is held by another program."""

    def __init__(self, variable: str, port: int, holder: str) -> None:
        super().__init__(
            f"port {port} ({variable}) is in use by {holder}",
            f"stop that program, or choose another port: make up {variable}=<port>",
        )
        self.variable = variable
        self.port = port
        self.holder = holder


class NotRunning(StackError):
    """A command needs the running stack, and it is down."""

    def __init__(self) -> None:
        super().__init__("the stack is not running", "start it: make up")


class BadRequest(StackError):
    """A service, instance or number that does not exist or makes no sense."""


class TookTooLong(StackError):
    """Something did not get ready in its time. The remedy names the log to read."""
