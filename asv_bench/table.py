"""Measures what fastloss is asked to reach, and prints it beside what it reaches.

    python asv_bench/table.py [--json FILE] [--isa x86-64-v3 ...] [--only "64 x 10" ...]

Each number of threads is a process of its own that has as many CPUs, where everything takes turns: fastloss into a
reused buffer, the parallel copy, and the peers that are installed. Figures are ratios of medians. It takes minutes.

With --isa, peers keep what the CPU has. To hold them to AVX2 as well, ATEN_CPU_CAPABILITY=avx2 is for torch, and
XLA_FLAGS=--xla_cpu_max_isa=AVX2 for JAX.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import fastloss as fl
from fastloss.bench import calls, cases, machine, processes, timing

THREADS = (1, 2)

# shape: (at most so many copies on 1 and on 2 threads, at least so many times torch, at least so many times JAX)
ASKED = {
    "64 x 10": (None, 20, 8),
    "65536 x 10": ((8, 6.5), 8, 3.5),
    "65536 x 32": ((3.5, 5.5), 5, 3.5),
    "65536 x 100": ((3.0, 1.8), 6, 2.5),
    "4096 x 1000": ((2.2, 2.2), 5.5, 2.3),
    "1024 x 32000": ((1.35, 1.25), 20, 8),
    "256 x 128256": ((1.3, 1.0), 20, 7),
    "8 x 21 x 512 x 512": ((3, 3), 10, None),
    "BCE, 2e7": ((2.7, 2.7), 15, 15),
}
ASKED_SKLEARN = {"65536 x 100": 12}
LARGE = ("1024 x 32000", "256 x 128256")

Times = dict[str, dict[str, float]]  # of a group of calls that took turns, by its name, by the call's
Figure = tuple[str, str, float, float, bool]  # what, unit, asked, reached, whether asked is the least or the most


# ---- In the process of a number of threads --------------------------------------------------------------------------


def make(name: str, dtype: str = "float32") -> cases.Batch:
    if name == "BCE, 2e7":
        return cases.make(cases.Case("binary_cross_entropy_with_logits", "20000000", dtype, "cython"))
    return cases.make(cases.Case("cross_entropy", name, dtype, "cython"))


def main_group(name: str, threads: int) -> dict[str, calls.Call]:
    batch = make(name)
    group = {"fastloss": calls.fused(batch, threads), "copy": calls.copy(batch, threads)}
    wanted = ["torch"] + ["JAX"] * (ASKED[name][2] is not None) + ["scikit-learn"] * (name in ASKED_SKLEARN)
    found, missing = calls.peers(batch, threads, tuple(wanted))
    for peer, reason in missing.items():
        tqdm.write(f"{name}: {peer}: {reason}", file=sys.stderr)
    return group | found


def variants_group(name: str, threads: int) -> dict[str, calls.Call]:
    """Loss only, in place, and in memory that is recycled."""
    batch = make(name)
    return {
        "fastloss": calls.fused(batch, threads),
        "copy": calls.copy(batch, threads),
        "loss only": calls.loss_only(batch, threads),
        "recycled": calls.recycled(batch, threads),
        "in place": calls.in_place(make(name), threads),
    }


def dtypes_group(name: str, threads: int, dtypes: tuple[str, ...]) -> dict[str, calls.Call]:
    group = {}
    for dtype in dtypes:
        batch = make(name, dtype)
        group[dtype] = calls.fused(batch, threads)
        if dtype == "float64":
            group["copy"] = calls.copy(batch, threads)
    return group


def calls_group(threads: int) -> dict[str, calls.Call]:
    """Whole calls on small batches, as a user makes them."""
    group = {}
    for n, classes in ((1, 2), (64, 10)):
        logits = np.random.default_rng(7).standard_normal((n, classes), dtype=np.float32)
        group[f"{n} x {classes}"] = partial(
            fl.cross_entropy, logits, np.zeros(n, np.int64), out_grad=np.zeros_like(logits)
        )
    return group


def chosen(groups: dict[str, Any], only: list[str]) -> dict[str, Any]:
    """Those that --only names, or all."""
    for name in only:
        if name not in groups:
            sys.exit(f"--only {name!r}: no such measurement; there are {', '.join(map(repr, groups))}")
    return {name: make for name, make in groups.items() if not only or name in only}


def measure(threads: int, rounds: int, only: list[str]) -> dict[str, Any]:
    halves = ("float32", "float16", "bfloat16")
    groups: dict[str, Callable[[], dict[str, calls.Call]]] = {"calls": partial(calls_group, threads)}
    groups |= {name: partial(main_group, name, threads) for name in ASKED}
    groups |= {f"{name}, variants": partial(variants_group, name, threads) for name in LARGE}
    for name, dtypes in (("4096 x 1000", ("float64",)), ("1024 x 32000", ("float64",)), ("1024 x 32000", halves)):
        groups[f"{name}, {dtypes[-1]}"] = partial(dtypes_group, name, threads, dtypes)
    groups = chosen(groups, only)
    times: Times = {}
    with tqdm(total=rounds * len(groups), unit="round", file=sys.stderr) as bar:
        for name, make in groups.items():
            bar.set_description(f"{threads} thread{'s' * (threads > 1)}, {name}")
            times[name] = timing.medians(timing.take_turns(make(), rounds=rounds, progress=bar.update))
    return {"isa": machine.isa(), "times": times}


def in_own_process(threads: int, isa: str | None, arguments: argparse.Namespace) -> dict[str, Any]:
    """measure() in a process that has as many CPUs as threads."""
    command = [__file__, "--threads", str(threads), "--rounds", str(arguments.rounds)]
    command += ["--only", *arguments.only] if arguments.only else []
    try:
        return json.loads(list(processes.run(command, threads, isa))[-1])
    except processes.WorkerFailed as error:
        sys.exit(str(error))


# ---- Asked and reached ----------------------------------------------------------------------------------------------


def figures(times: Times, threads: int) -> list[Figure]:
    """All that was measured."""
    rows: list[Figure] = []

    def add(group: str, what: str, unit: str, asked: float, call: str, other: str, factor: float = 1) -> None:
        """Compares the times of two calls: `call` in units of `other`, or of microseconds."""
        measured = times.get(group, {})
        if call in measured and (other in measured or not other):
            reached = measured[call] / measured[other] * factor if other else measured[call] * 1e6
            rows.append((what, unit, asked, reached, unit.startswith("x ")))

    add("calls", "call, 1 x 2", "us", 3, "1 x 2", "")
    add("calls", "call, 64 x 10", "us", 4, "64 x 10", "")
    for name, (copies, over_torch, over_jax) in ASKED.items():
        if copies:
            add(name, name, "copies", copies[THREADS.index(threads)], "fastloss", "copy")
        for peer, asked in (("torch", over_torch), ("JAX", over_jax), ("scikit-learn", ASKED_SKLEARN.get(name))):
            if asked:
                add(name, name, f"x {peer}", asked, peer, "fastloss")
    for name in LARGE:
        add(f"{name}, variants", f"{name}, in place", "copies", 1.1, "in place", "copy")
        add(f"{name}, variants", f"{name}, loss only", "of fused", 0.6, "loss only", "fastloss")
        add(f"{name}, variants", f"{name}, recycled", "of reused", 1.15, "recycled", "fastloss")
    add("4096 x 1000, float64", "4096 x 1000, float64", "copies", 2.8, "float64", "copy")
    add("1024 x 32000, float64", "1024 x 32000, float64", "copies", 2.1, "float64", "copy")
    for dtype in ("float16", "bfloat16"):
        add("1024 x 32000, bfloat16", f"1024 x 32000, {dtype}", "of float32", 1.0, dtype, "float32")
    return rows


def print_figures(title: str, rows: list[tuple[int, Figure]]) -> None:
    """Figures, each with its number of threads."""
    print(f"\n{title}\n{'threads':>7}  {'what':<36}{'':<16}{'asked':>11}{'reached':>10}")
    missed = 0
    for threads, (what, unit, asked, reached, least) in rows:
        met = reached >= asked if least else reached <= asked
        missed += not met
        sign = ">=" if least else "<="
        print(f"{threads:>7}  {what:<36}{unit:<16}{sign:>4}{asked:>7g}{reached:>10.2f}{'' if met else '  missed'}")
    print(f"{missed} missed" if missed else "all met")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="a file for all medians, in seconds")
    parser.add_argument("--isa", nargs="*", default=[None], help="instruction sets; without it, the one in use")
    parser.add_argument("--rounds", type=int, default=15, help="turns that each call takes (default: 15)")
    parser.add_argument("--only", nargs="*", default=[], help="groups to measure, as the progress bar names them")
    parser.add_argument("--threads", type=int, choices=THREADS, help=argparse.SUPPRESS)  # in the process started here
    arguments = parser.parse_args()
    if arguments.threads:
        processes.take_cpus(arguments.threads)
        print(json.dumps(measure(arguments.threads, arguments.rounds, arguments.only)))
        return
    complaint = machine.complaint()
    if complaint:
        print(complaint, file=sys.stderr)
    everything = {}
    for isa in arguments.isa:
        measured = {threads: in_own_process(threads, isa, arguments) for threads in THREADS}
        runs = {threads: result["times"] for threads, result in measured.items()}
        name = measured[THREADS[0]]["isa"]
        print_figures(name, [(threads, row) for threads, times in runs.items() for row in figures(times, threads)])
        everything[name] = runs
    if arguments.json:
        known = {"machine": machine.machine(), "versions": machine.versions()}
        arguments.json.write_text(json.dumps({**known, "seconds": everything}))


if __name__ == "__main__":
    main()
