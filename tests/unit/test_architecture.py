"""Imports point one way, read from the syntax tree: no code runs, and no import inside a function hides."""

from __future__ import annotations

import ast
import graphlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OURS = ("discovery", "haproxy", "gateway", "services", "stack", "bench", "tests")

# Package → the packages of ours that it may import beside itself. The longest name that fits a module rules it.
ALLOWED = {
    "discovery": (),
    "haproxy": ("discovery",),
    "gateway": ("discovery", "services.kit"),
    "services": ("discovery", "services.kit"),
    "services.kit": ("discovery",),
    # The tests on containers start before there is a virtual environment, as everything that `make` calls.
    "stack": ("discovery", "haproxy", "gateway", "services", "tests.support.engine"),
    "bench": ("discovery", "haproxy", "gateway", "services", "stack", "tests.support"),
}
# The shapes of events stand with the service that publishes them, and those of calls by gRPC with the one that answers; others need them.
SHARED = re.compile(r"services\.[a-z]+\.(events|proto)(\.|$)")


def inside(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def imports(source: str, module: str, *, is_package: bool) -> Iterator[str]:
    """The dotted names that a module imports, absolute; `from a import b` gives `a.b`, for b may be a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[
                    : None if is_package and node.level == 1 else -(node.level - is_package)
                ]
                base = ".".join([*parents, *([base] if base else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def owner(module: str) -> str:
    """The package that a module counts as: each service is one of its own, the kit among them."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "services" and len(parts) > 1 else parts[0]


def forbidden(module: str, imported: str) -> bool:
    """Whether `module` must not import `imported`."""
    if not any(inside(imported, ours) for ours in OURS) or inside(imported, owner(module)):
        return False
    if owner(module).startswith("services.") and owner(module) != "services.kit" and SHARED.match(imported):
        return False
    rule = max((p for p in ALLOWED if inside(module, p)), key=len)
    return not any(inside(imported, package) for package in ALLOWED[rule])


def modules() -> list[tuple[str, Path]]:
    found = []
    for package in ALLOWED:
        for path in sorted((ROOT / package.replace(".", "/")).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found.append((".".join(parts[:-1] if parts[-1] == "__init__" else parts), path))
    return sorted(set(found))


def test_every_import_points_the_allowed_way() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {imported}"
        for module, path in modules()
        for imported in imports(path.read_text(), module, is_package=path.name == "__init__.py")
        if forbidden(module, imported)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", ["discovery", "haproxy", "services", "bench"])
def test_no_imports_go_in_a_circle(package: str) -> None:
    """Imports for type annotations alone are counted too: they are in the syntax tree as the others are."""
    within = {module: path for module, path in modules() if inside(module, package)}
    graph: dict[str, set[str]] = {}
    for module, path in within.items():
        names = imports(path.read_text(), module, is_package=path.name == "__init__.py")
        # `from a.b import c` names a class of the module a.b as often as a module a.b.c.
        graph[module] = {
            name if name in within else name.rpartition(".")[0] for name in names
        } & within.keys()
        graph[module].discard(module)
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_only_the_adapter_knows_the_consul_client() -> None:
    users = [
        str(path.relative_to(ROOT))
        for module, path in modules()
        if any(
            inside(name, "consul")
            for name in imports(path.read_text(), module, is_package=path.name == "__init__.py")
        )
    ]
    assert set(users) <= {"discovery/consul/client.py"}


def test_consul_folder_shadows_no_package() -> None:
    """`import consul` would find a package of that name in the checkout before the installed one."""
    assert not list((ROOT / "consul").rglob("*.py"))


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("discovery.consul.catalog", "from discovery.model import Snapshot", False),
        ("discovery.consul.catalog", "from . import model", False),
        ("discovery.consul.catalog", "import haproxy.controller", True),
        ("discovery.consul.catalog", "def f():\n    from services.kit import run", True),
        ("services.users.app", "from services.kit import create_service", False),
        ("services.users.app", "from services.posts import store", True),
        ("services.users.app", "from services import posts", True),
        ("services.posts.authors", "from services.users.proto import users_pb2", False),
        ("services.users.app", "from ..posts import store", True),
        ("services.users.app", "from .store import users", False),
        ("services.kit.app", "from services.users import app", True),
        ("services.kit.app", "import haproxy", True),
        ("haproxy.controller.runtime.diff", "from discovery.model import Route", False),
        ("haproxy.controller.runtime.diff", "from gateway import app", True),
        ("stack.cli", "import services.auth", False),
        ("stack.cli", "import tests.support.load", True),
        ("stack.cli", "import json, flask", False),
    ],
)
def test_rule_tells_right_from_wrong(module: str, source: str, wrong: bool) -> None:
    found = [forbidden(module, name) for name in imports(source, module, is_package=False)]
    assert any(found) == wrong
