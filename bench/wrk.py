"""wrk as the source of load, and rounds that interleave what is compared."""

from __future__ import annotations

import re
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from bench.programs import FEEDING_CORE, cpu_s, pinned

CONNECTIONS = 64
_UNIT_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0}


@dataclass(frozen=True)
class Subject:
    """One thing to measure: the URL to ask, and the process whose processor time counts (with `others`).

    `rest_s` is waited after a run: a server without keep-alive still works off what wrk has left.
    """

    name: str
    url: str
    pid: int
    headers: Mapping[str, str] = field(default_factory=dict)
    others: tuple[int, ...] = ()
    rest_s: float = 0.0

    def cpu_s(self) -> float:
        """Processor seconds used so far."""
        return sum(cpu_s(pid) for pid in (self.pid, *self.others))


@dataclass(frozen=True)
class Sample:
    """One run of wrk. Latencies in ms; `cpu_us` is processor time of the subject per request, in µs."""

    requests_per_s: float
    p50_ms: float
    p99_ms: float
    cpu_us: float
    failed: int


def quantile_ms(text: str, quantile: str) -> float:
    match = re.search(rf"^\s+{quantile}%\s+([\d.]+)(us|ms|s)\s*$", text, re.MULTILINE)
    if match is None:
        raise ValueError(f"wrk printed no {quantile}% latency:\n{text}")
    return float(match[1]) * _UNIT_MS[match[2]]


def failed_requests(text: str) -> int:
    counts = re.findall(r"Non-2xx or 3xx responses: (\d+)", text)
    for numbers in re.findall(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text):
        counts += numbers
    return sum(map(int, counts))


def measure(subject: Subject, seconds: float) -> Sample:
    """One run, with wrk on the core that is not measured. Raises on a failing wrk."""
    sample = drive(pinned(FEEDING_CORE, ["wrk"]), subject, seconds)
    time.sleep(subject.rest_s)
    return sample


def drive(wrk: Sequence[str], subject: Subject, seconds: float, connections: int = CONNECTIONS) -> Sample:
    """One run of `wrk`, a command line."""
    command = [*wrk, "--latency", "-t1", f"-c{connections}", f"-d{max(int(seconds), 1)}s", "--timeout", "10s"]
    for name, value in subject.headers.items():
        command += ["-H", f"{name}: {value}"]
    before = subject.cpu_s()
    run = subprocess.run(
        [*command, subject.url], capture_output=True, text=True, timeout=seconds + 30, check=True
    )
    used_s = subject.cpu_s() - before
    rate = re.search(r"Requests/sec:\s+([\d.]+)", run.stdout)
    count = re.search(r"(\d+) requests in", run.stdout)
    if rate is None or count is None:
        raise ValueError(f"wrk printed no rate:\n{run.stdout}{run.stderr}")
    return Sample(
        requests_per_s=float(rate[1]),
        p50_ms=quantile_ms(run.stdout, "50"),
        p99_ms=quantile_ms(run.stdout, "99"),
        cpu_us=used_s / max(int(count[1]), 1) * 1e6,
        failed=failed_requests(run.stdout),
    )


def interleave(subjects: Sequence[Subject], rounds: int, seconds: float) -> dict[str, list[Sample]]:
    """Name → one sample a round. Every round measures each subject once, so that a drift of the machine hits all alike."""
    for subject in subjects:
        measure(subject, 1)
    samples: dict[str, list[Sample]] = {subject.name: [] for subject in subjects}
    for turn in range(rounds):
        # The start moves by one each round: none always runs after the same neighbour.
        for subject in (*subjects[turn % len(subjects) :], *subjects[: turn % len(subjects)]):
            samples[subject.name].append(measure(subject, seconds))
    return samples


def median(samples: Sequence[Sample]) -> Sample:
    """The median of each figure by itself; failures are summed."""
    rows = [asdict(sample) for sample in samples]
    middle = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
    return Sample(**(middle | {"failed": sum(sample.failed for sample in samples)}))
