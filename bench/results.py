"""What a benchmark found: figures beside their bounds, a table for the reader, raw numbers for later."""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Figure:
    """One result. `bound` None is shown for information; else `at_least` says on which side of it the value must lie."""

    name: str
    value: float
    unit: str = "×"
    bound: float | None = None
    at_least: bool = True

    @property
    def passed(self) -> bool:
        if self.bound is None:
            return True
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    def bound_text(self) -> str:
        return "" if self.bound is None else f"{'≥' if self.at_least else '≤'} {self.bound:g} {self.unit}"

    def verdict(self) -> str:
        if self.bound is None:
            return ""
        return "[green]PASS[/]" if self.passed else "[bold red]short[/]"


@dataclass(frozen=True)
class Result:
    """One part of the benchmarks: its figures, the raw numbers behind them, and rows of detail to print."""

    part: str
    title: str
    figures: tuple[Figure, ...]
    raw: Mapping[str, Any] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


def quantile(values: Sequence[float], part: float) -> float:
    """The smallest value that at least `part` (0–1) of the values do not pass. NaN without values."""
    ordered = sorted(values)
    return ordered[max(math.ceil(part * len(ordered)) - 1, 0)] if ordered else math.nan


def show(result: Result, console: Console) -> None:
    """Print the details, then the figures with their bounds and verdicts."""
    if result.rows:
        details = Table(*result.columns, title=f"({result.part}) {result.title}", title_justify="left")
        for row in result.rows:
            details.add_row(*row)
        console.print(details)
    table = Table(
        "figure", "found", "bound", "", title=f"({result.part}) against the bounds", title_justify="left"
    )
    for figure in result.figures:
        table.add_row(figure.name, f"{figure.value:.3g} {figure.unit}", figure.bound_text(), figure.verdict())
    console.print(table)


def save(results: Sequence[Result], folder: Path, settings: Mapping[str, Any]) -> Path:
    """Write everything as one JSON file, named by the time; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{time.strftime('%Y%m%dT%H%M%S')}-{''.join(r.part for r in results)}.json"
    document = {
        "machine": {
            "cores": os.cpu_count(),
            "kernel": platform.release(),
            "python": platform.python_version(),
        },
        "settings": dict(settings),
        "results": [
            {
                "part": r.part,
                "title": r.title,
                "figures": [asdict(f) | {"passed": f.passed} for f in r.figures],
                "raw": r.raw,
            }
            for r in results
        ],
    }
    path.write_text(json.dumps(document, indent=1))
    return path
