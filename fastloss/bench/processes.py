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

import fastloss as fl
from fastloss.bench import calls, cases, revisions, timing
from fastloss.threads import available_cpus


class WorkerFailed(Exception):
    """A measuring process ended early; its complaint has gone to standard error."""


def run(
    command: Sequence[str | Path],
    threads: int,
    isa: str | None = None,
    folder: str | None = None,
    path: Sequence[str | Path] = (),
) -> Iterator[str]:
    """The lines that a Python program prints, as they come: `command` without the interpreter.

    It starts in a folder, and imports from those of `path` first. It has to call take_cpus() before it imports what
    starts threads.
    """
    environment = {**os.environ, **variables(threads)}
    if isa:
        environment["FASTLOSS_ISA"] = isa
    if path:
        environment["PYTHONPATH"] = os.pathsep.join(map(str, path))
    words = [sys.executable, *map(str, command)]
    with subprocess.Popen(words, env=environment, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield from process.stdout
    if process.returncode != 0:
        raise WorkerFailed(f"the process for {threads} thread{'s' * (threads > 1)} failed: see above")


def variables(threads: int) -> dict[str, str]:
    """The environment variables that keep libraries to a number of threads, and XLA to itself."""
    eigen = {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"} if threads == 1 else {}
    return {"OMP_NUM_THREADS": str(threads), "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3", **eigen}


def take_cpus(threads: int) -> None:
    """Keeps this process to as many CPUs as threads. Exits where there are fewer."""
    if available_cpus() < threads:
        sys.exit(f"{threads} threads need as many CPUs, and this process may use {available_cpus()}")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one process measures: the fastloss that is imported here, or the build in the folder `build`.

    base is the folder of another build, to be compared with it.
    """

    threads: int
    cases: tuple[cases.Case, ...]
    seconds: float  # for all of them
    rounds: int | None = None  # or so many for each
    peers: tuple[str, ...] = ()
    build: str | None = None
    base: str | None = None


Result = dict[
    str, Any
]  # of a case: its fields, threads, seconds of each call, what other programs took, what is missing


def measure(
    plan: Plan,
    report: Callable[[cases.Case], None] = lambda case: None,
    program: Sequence[str] = ("-m", "fastloss.bench.processes"),
    path: Sequence[str | Path] = (),
) -> Iterator[Result]:
    """The result of each case, as it comes. `report` is told of each case before it is measured.

    `program`, which imports from the folders of `path` as well, has to call main() with its argument.
    """
    command = [*program, json.dumps(dataclasses.asdict(plan))]
    # Python imports from where it starts, or, told not to, from PYTHONPATH.
    path = [plan.build, *path] if plan.build else path
    for line in run(command, plan.threads, folder=plan.build, path=path):
        kind, value = json.loads(line)
        if kind == "case":
            report(cases.Case(**value))
        else:
            yield value


def main(plan_text: str) -> None:
    """The measuring process: prints ["case", ...], then ["result", ...] for each case."""
    given = json.loads(plan_text)
    plan = Plan(**{**given, "cases": tuple(cases.Case(**case) for case in given["cases"])})
    if plan.build and Path(fl.__file__).resolve().parents[1] != Path(plan.build).resolve():
        sys.exit(f"fastloss was imported from {fl.__file__}, and is to be measured in {plan.build}")
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
