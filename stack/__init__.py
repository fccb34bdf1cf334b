"""Running Breakwater on one machine, and what the containers need beside it.

Here is only what programs say to each other by environment variables, in the standard library's Python alone.
"""

STACK_MARK = "BREAKWATER_STACK"
"""supervisord and its children carry it: the stack's folder. Nothing that an operator starts does."""

PORT_HOLDERS = "BREAKWATER_PORT_HOLDERS"
"""What root saw before it became an ordinary user: JSON, port → which program holds it."""
