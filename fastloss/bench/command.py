"""`python -m fastloss bench`: fastloss against a copy and against its peers, on the machine at hand."""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from tqdm import tqdm

import fastloss as fl
from fastloss.bench import cases, machine, processes, revisions
from fastloss.bench.calls import PEERS
from fastloss.bench.processes import Result
from fastloss.bench.report import Report, over_earlier, plural, read, speedup, table
from fastloss.catalogue import DOMAINS, LOSSES
from fastloss.threads import available_cpus

DEFAULT_LOSSES = ("cross_entropy", "binary_cross_entropy_with_logits")
DEFAULT_PEERS = ("NumPy", "torch", "JAX", "scikit-learn")


class BenchError(Exception):
    """What the user has to change, in one sentence."""


# ---- measuring


def choose_cases(losses: Iterable[str], shapes: Iterable[str], dtype: str, engine: str | None) -> list[cases.Case]:
    chosen = []
    for loss in losses:
        for shape in shapes or cases.shapes(loss):
            axes = len(cases.parse_shape(shape))
            domain = DOMAINS[loss]
            by_element = domain.target in ("zeros and ones", "signs")
            if axes < 2 and not by_element:
                raise BenchError(f"--shape {shape!r} has one axis, and {loss} needs one of samples and one of classes")
            if axes > 2 and not by_element and not set(cases.IMAGES) & set(cases.shapes(loss)):
                raise BenchError(f"--shape {shape!r} has {axes} axes, and {loss} takes two")
            chosen.append(cases.Case(loss, shape, dtype, engine))
    return chosen


def measure(
    chosen: list[cases.Case], threads: list[int], seconds: float, peers: tuple[str, ...], base: Path | None = None
) -> Report:
    """Everything that is reported; a process for each number of threads, one after the other."""
    report: Report = {
        "fastloss": fl.__version__,
        "machine": machine.machine(),
        "isa": machine.isa(),
        "versions": machine.versions(),
        "date": str(datetime.date.today()),
        "results": [],
    }
    layout = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}] {desc}"
    with tqdm(total=len(chosen) * len(threads), file=sys.stderr, bar_format=layout) as bar:
        for number in threads:

            def show(case: cases.Case, number: int = number) -> None:
                bar.set_description_str(f"{case.loss}, {case.shape}, {plural(number, 'thread')}")

            plan = processes.Plan(
                threads=number,
                cases=tuple(chosen),
                seconds=seconds / len(threads),
                peers=peers,
                base=str(base) if base else None,
            )
            for result in processes.measure(plan, show):
                report["results"].append(result)
                bar.update()
        bar.set_description_str("")
    return report


# ---- command line


def whole_number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def a_shape(text: str) -> str:
    try:
        return " x ".join(map(str, cases.parse_shape(text)))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a shape such as 4096x1000") from None


def positive_seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return value


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m fastloss bench",
        description="Measure loss and gradient against a copy of the input, and against what is installed of NumPy, "
        "torch, JAX and scikit-learn. All take turns, and each result is checked.",
    )
    add = parser.add_argument
    names = [*LOSSES, "all"]
    add(
        "--loss",
        nargs="+",
        choices=names,
        default=DEFAULT_LOSSES,
        metavar="NAME",
        help="(default: the two that are used most)",
    )
    add("--shape", nargs="+", type=a_shape, default=[], help="such as 4096x1000 (default: those of the README)")
    add("--dtype", choices=cases.DTYPES, default="float32", help="(default: %(default)s)")
    add("--engine", choices=fl.engines(), help="(default: what fastloss chooses)")
    add("--threads", nargs="+", type=whole_number, metavar="N", help="numbers of threads (default: all CPUs)")
    add(
        "--peers",
        nargs="*",
        choices=list(PEERS),
        default=DEFAULT_PEERS,
        metavar="PEER",
        help=f"of {', '.join(PEERS)}; none: only the copy (default: all but torch.compile)",
    )
    add("--seconds", type=positive_seconds, default=60.0, help="about how long to measure (default: 60)")
    add("--json", type=Path, metavar="FILE", help="write all times there, in seconds")
    add("--plot", type=Path, metavar="FILE", help="write a picture there; measures 1, 2, 4, ... threads unless told")
    add(
        "--against",
        metavar="REV|FILE",
        help="compare with an earlier --json, or with a revision of the checkout in the current folder, which is "
        "built and takes turns with the rest",
    )
    return parser.parse_args(argv)


def bench(options: argparse.Namespace) -> Report:
    for option, path in (("--json", options.json), ("--plot", options.plot)):  # said now, not after a minute
        if path and not path.absolute().parent.is_dir():
            raise BenchError(f"the folder of {option} {str(path)!r} does not exist")
    if options.plot:
        from fastloss.bench import plot

        problem = plot.obstacle(options.plot)
        if problem:
            raise BenchError(f"--plot {str(options.plot)!r} cannot be written: {problem}")
    if options.dtype == "bfloat16":
        need_ml_dtypes()
    cpus = available_cpus()
    threads = options.threads or (powers_of_two(cpus) if options.plot else [cpus])
    if max(threads) > cpus:
        raise BenchError(f"--threads {max(threads)} needs as many CPUs, and this process may use {cpus}")
    losses = list(LOSSES) if "all" in options.loss else list(dict.fromkeys(options.loss))
    chosen = choose_cases(losses, options.shape, options.dtype, options.engine)
    peers = tuple(peer for peer in PEERS if peer in options.peers)
    with tempfile.TemporaryDirectory(prefix="fastloss-") as folder:
        base, earlier = None, {}
        if options.against and Path(options.against).is_file():
            try:
                earlier = read(Path(options.against))
            except ValueError as error:
                raise BenchError(f"--against {error}") from error
        elif options.against:
            print(f"building {options.against}", file=sys.stderr)
            base = revisions.build(options.against, Path.cwd(), Path(folder))
        isa = machine.isa() or "no compiled engine"
        print(f"fastloss {fl.__version__}, {isa}; {machine.machine()}; {machine.versions()}")
        complaint = machine.complaint()
        if complaint:
            print(complaint)
        sys.stdout.flush()
        report = measure(chosen, threads, options.seconds, peers, base)
    extra: dict[str, Callable[[Result], float | None]] = {}
    if base:
        extra[f"over {options.against}"] = partial(speedup, call="base")
    if earlier:
        extra[f"over {Path(options.against).stem}"] = partial(over_earlier, earlier=earlier)
    print("\n" + table(report, extra))
    if options.json:
        options.json.write_text(json.dumps(report))
    if options.plot:
        plot.draw(options.plot, report)
        print(f"Picture: {options.plot}")
    return report


def need_ml_dtypes() -> None:
    try:
        import ml_dtypes  # noqa: F401
    except ImportError:
        raise BenchError("--dtype bfloat16 needs ml_dtypes: pip install ml_dtypes") from None


def powers_of_two(most: int) -> list[int]:
    return sorted({2**k for k in range(most.bit_length()) if 2**k <= most} | {most})


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark with the arguments `argv` (default: the command line's) and return the exit status."""
    options = parse_arguments(argv)
    try:
        bench(options)
    except (BenchError, revisions.RevisionError) as error:
        print(f"fastloss bench: {error}.", file=sys.stderr)
        return 2
    except processes.WorkerFailed as error:
        print(f"fastloss bench: {error}.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nfastloss bench: interrupted, stopped without a result.", file=sys.stderr)
        return 130
    return 0
