"""Measurements in processes of their own, each with as many CPUs as threads, so that no library takes more."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fastloss.bench import calls, cases, revisions, timing
from fastloss.threads import available_cpus


class WorkerFailed(Exception):
    """A measuring process ended early; its complaint has gone to standard error."""


def run(command: Sequence[str | Path], threads: int, isa: str | None = None, **given: Any) -> Iterator[str]:
    """The lines that a Python program prints, as they come: `command` without the interpreter.

    The program has to call take_cpus() before it imports what starts threads.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "JAX_PLATFORMS": "cpu"}
    if isa:
        environment["FASTLOSS_ISA"] = isa
    if threads == 1:
        environment["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
    words = [sys.executable, *map(str, command)]
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True, **given) as process:
        assert process.stdout is not None
        yield from process.stdout
    if process.returncode != 0:
        raise WorkerFailed(f"the process for {threads} thread{'s' * (threads > 1)} failed: see above")


def take_cpus(threads: int) -> None:
    """Keeps this process to as many CPUs as threads. Exits where there are fewer."""
    if available_cpus() < threads:
        sys.exit(f"{threads} threads need as many CPUs, and this process may use {available_cpus()}")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one process measures. base is the folder of another build of fastloss, to be compared with this one."""

    threads: int
    cases: tuple[cases.Case, ...]
    seconds: float  # for all of them
    rounds: int | None = None  # or so many for each
    peers: tuple[str, ...] = ()
    base: str | None = None


Result = dict[
    str, Any
]  # of a case: its fields, threads, seconds of each call, what other programs took, what is missing


def measure(plan: Plan, report: Callable[[cases.Case], None] = lambda case: None) -> Iterator[Result]:
    """The result of each case, as it comes. `report` is told of each case before it is measured."""
    command = ["-m", "fastloss.bench.processes", json.dumps(dataclasses.asdict(plan))]
    for line in run(command, plan.threads):
        kind, value = json.loads(line)
        if kind == "case":
            report(cases.Case(**value))
        else:
            yield value


def main(plan_text: str) -> None:
    """The measuring process: prints ["case", ...], then ["result", ...] for each case."""
    given = json.loads(plan_text)
    plan = Plan(**{**given, "cases": tuple(cases.Case(**case) for case in given["cases"])})
    take_cpus(plan.threads)
    engines = {case.engine or "cython" for case in plan.cases}
    base = revisions.load(Path(plan.base), engines) if plan.base else None
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no part of the result

    def say(kind: str, value: Any) -> None:
        print(json.dumps([kind, value]), file=out)

    start = time.perf_counter()
    for number, case in enumerate(plan.cases):
        say("case", dataclasses.asdict(case))
        began = time.perf_counter()
        batch = cases.make(case)
        group = {"fastloss": calls.fused(batch, plan.threads), "copy": calls.copy(batch, plan.threads)}
        missing = {}
        if base is not None:
            if case.loss in base:
                group["base"] = calls.fused(batch, plan.threads, base[case.loss])
            else:
                missing["base"] = f"it has no {case.loss}"
        found, reasons = calls.peers(batch, plan.threads, plan.peers)
        now, others = time.perf_counter(), timing.Others()
        share = (plan.seconds - (now - start)) / (len(plan.cases) - number)
        times = timing.take_turns(group | found, rounds=plan.rounds, seconds=max(0.0, share - (now - began) / 2))
        result = {"threads": plan.threads, "seconds": times, "others": others.share(), "missing": missing | reasons}
        say("result", dataclasses.asdict(case) | result)


if __name__ == "__main__":
    main(sys.argv[1])
