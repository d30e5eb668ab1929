"""A report of measurements: what it says, as figures and as a table."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from fastloss.bench import cases, timing
from fastloss.bench.calls import PEERS
from fastloss.bench.processes import Result

FORMULAS = ("cross_entropy", "binary_cross_entropy_with_logits")  # which calls.numpy_call has in NumPy
NOISY = 0.15  # a spread from which on a line is not to be trusted
BUSY = 0.1  # the share of the CPUs' time that others take, from which on a line is not to be trusted

Report: TypeAlias = dict[str, Any]  # what --json writes: see command.measure


def median(result: Result, call: str) -> float:
    times: list[float] = result["seconds"][call]
    return statistics.median(times)


def of_copy(result: Result) -> float:
    """The share of the limit that is reached: 1 for a loss and gradient as fast as a copy."""
    return median(result, "copy") / median(result, "fastloss")


def speedup(result: Result, call: str) -> float | None:
    """How many times longer another call takes than fastloss."""
    return median(result, call) / median(result, "fastloss") if call in result["seconds"] else None


def is_noisy(result: Result) -> bool:
    """Whether a line is not to be trusted: times differ, or are all too long because others have the CPUs."""
    spread = max(timing.spread(result["seconds"][call]) for call in ("fastloss", "copy"))
    return spread > NOISY or (result["others"] or 0) > BUSY


def key(result: Result) -> tuple[Any, ...]:
    """What two reports have to agree on where they are compared."""
    return *(result[field.name] for field in dataclasses.fields(cases.Case)), result["threads"]


def over_earlier(result: Result, earlier: dict[tuple[Any, ...], Result]) -> float | None:
    """How many times longer the earlier fastloss took, each in copies of the input on its own machine and day."""
    before = earlier.get(key(result))
    return of_copy(result) / of_copy(before) if before else None


def table(report: Report, extra: dict[str, Callable[[Result], float | None]]) -> str:
    """A block for each loss and number of threads, and what is to be said about them. `extra` has further columns."""
    results = report["results"]
    named = [peer for peer in PEERS if any(peer in result["seconds"] for result in results)]
    columns: dict[str, Callable[[Result], float | None]] = {peer: partial(speedup, call=peer) for peer in named}
    columns |= extra
    lines = []
    for group in dict.fromkeys(block(result) for result in results):
        title = f"{'shape':<20}{'time':>10}{'+-':>6}{'ns/element':>12}{'of copy':>9}"
        lines += ["", group, title + "".join(f"{name:>{width(name)}}" for name in columns)]
        for result in results:
            if block(result) == group:
                lines.append(row(result, columns))
    lines += ["", *notes(report, named)]
    return "\n".join(lines).strip("\n")


def width(name: str) -> int:
    return max(len(name) + 2, 9)


def block(result: Result) -> str:
    parts = [result["loss"], result["dtype"], result["engine"] and f"{result['engine']} engine"]
    return ", ".join([part for part in parts if part] + [plural(result["threads"], "thread")])


def row(result: Result, columns: dict[str, Callable[[Result], float | None]]) -> str:
    case = cases.Case(**{field.name: result[field.name] for field in dataclasses.fields(cases.Case)})
    time, spread = median(result, "fastloss"), timing.spread(result["seconds"]["fastloss"])
    line = f"{case.shape:<20}{duration(time):>10}{spread:>6.0%}{1e9 * time / case.elements:>12.3g}"
    line += f"{of_copy(result):>9.0%}"
    for name, figure in columns.items():
        value = figure(result)
        line += f" {'-' if value is None else f'{value:.3g}x':>{width(name) - 1}}"
    return line + (" ~" if is_noisy(result) else "")


def notes(report: Report, named: list[str]) -> list[str]:
    lines = [
        "time: loss and gradient into a buffer that is used again, median; +-: distance of the quartiles;",
        "of copy: a parallel copy's time over it, 100% is the limit; others: how many times longer they take.",
    ]
    if "NumPy" in named and {result["loss"] for result in report["results"]} - set(FORMULAS):
        lines.append("NumPy, for losses other than these two: fastloss's reference engine, which computes in float64.")
    noisy = sum(map(is_noisy, report["results"]))
    if noisy:
        lines += [
            f"~ {plural(noisy, 'line')} too noisy to trust: quartiles of fastloss's or the copy's times more than "
            f"{NOISY:.0%} of the",
            f"  median apart, or more than {BUSY:.0%} of the CPUs' time taken by others. Close them and try again.",
        ]
    reasons: dict[tuple[str, str], list[str]] = {}
    for result in report["results"]:
        for peer, reason in result["missing"].items():
            reasons.setdefault((peer, reason), []).append(f"{result['loss']}, {result['shape']}")
    for (peer, reason), where in reasons.items():
        places = list(dict.fromkeys(where))
        everywhere = len(where) == len(report["results"])
        lines.append(f"Not compared: {peer}: {reason}" + ("" if everywhere else f" ({'; '.join(places)})"))
    return lines


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


def duration(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-4 else f"{seconds * 1e6:.1f} us"


def read(path: Path) -> dict[tuple[Any, ...], Result]:
    """The results of a report, by what tells them apart. ValueError where the file is none."""
    try:
        return {key(result): result for result in json.loads(path.read_text())["results"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{str(path)!r} is not what bench --json writes") from error
