"""Run the benchmarks: `python -m bench [a b c d e f g] [--rounds 5] [--seconds 2] [--strict]`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from bench import convergence, forwarding, gateway, protocols, scale
from bench.results import Result, save, show

PARTS: dict[str, Callable[[int, float], Result]] = {
    "a": forwarding.against_minimum,
    "b": forwarding.against_rivals,
    "c": forwarding.against_flask,
    "d": convergence.one_after_the_other,
    "e": scale.thousand_services,
    "f": gateway.against_tutorial,
    "g": protocols.rest_against_grpc,
}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Measure Breakwater against its bounds."
    )
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="which parts (default: all)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each comparison (default: 5)")
    parser.add_argument("--seconds", type=float, default=2, help="length of one measurement (default: 2)")
    parser.add_argument(
        "--strict", action="store_true", help="exit with 1 when a figure falls short of its bound"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(os.environ.get("BREAKWATER_VAR", "var")) / "bench",
        help="folder for the raw figures",
    )
    return parser.parse_args()


def main() -> int:
    """0: everything was measured. 1: something could not be, or with --strict fell short."""
    arguments, console = _arguments(), Console()
    results, broken = [], False
    for part in arguments.parts or PARTS:
        with console.status(f"measuring ({part}) …"):
            try:
                result = PARTS[part](arguments.rounds, arguments.seconds)
            except Exception:  # one part that cannot run must not cost the figures of the others
                console.print_exception()
                broken = True
                continue
        show(result, console)
        results.append(result)
    path = save(results, arguments.out, {"rounds": arguments.rounds, "seconds": arguments.seconds})
    console.print(f"raw figures: {path}")
    short = [figure.name for result in results for figure in result.figures if not figure.passed]
    if short:
        console.print(f"short of their bounds: {', '.join(short)}")
    return 1 if broken or (arguments.strict and short) else 0


if __name__ == "__main__":
    sys.exit(main())
