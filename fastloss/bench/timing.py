"""Times of calls that take turns."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from time import perf_counter, process_time, sleep
from typing import Any

from fastloss.bench.calls import Call

LONG = 0.1  # seconds: a call that does not mind in what state the one before left caches and waiting threads
FEWEST = 3  # rounds
QUIET = 10  # milliseconds without work, after which none is to come
WARM = 0.005  # seconds of untimed calls: a processor that was idle takes milliseconds to reach its speed again


def take_turns(
    calls: dict[str, Call],
    *,
    rounds: int | None = None,
    seconds: float = 1.0,
    sample: float = 0.002,
    progress: Callable[[], Any] = lambda: None,
) -> dict[str, list[float]]:
    """The times of each call, in seconds: so many rounds, or for about so many seconds.

    They take turns, so that a slow phase of the machine meets them all. A call is repeated until it has taken `sample`
    seconds, and made untimed before, at least once and for WARM seconds, so that it does not find the caches, threads
    that wait for work and the clock of the processor as another call or a pause left them. Where seconds count, a call
    of more than a tenth of them takes part in the first three rounds only.
    """
    start = perf_counter()
    numbers = {name: max(1, round(sample / min(_times(call, 3)))) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    done = 0
    while done < (rounds or FEWEST) or (rounds is None and perf_counter() - start < seconds):
        for name, call in calls.items():
            before = times[name]
            if rounds is None and len(before) >= FEWEST and before[0] > seconds / 10:
                continue
            _settle()
            if not before or before[0] < LONG:
                _warm_up(call)
            before.append(_time(call, numbers[name]))
        done += 1
        progress()
    return times


def medians(times: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in times.items()}


def spread(values: Iterable[float]) -> float:
    """The distance of the quartiles, as a share of the median."""
    values = list(values)
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / middle


class Others:
    """Watches what other programs, and other machines on the same hardware, take of the CPUs of this process."""

    def __init__(self) -> None:
        self.start, self.busy, self.own = perf_counter(), _busy(), process_time()

    def share(self) -> float | None:
        """Of the time of these CPUs since then; None where the system does not tell."""
        busy = _busy()
        if busy is None or self.busy is None:
            return None
        available = (perf_counter() - self.start) * len(os.sched_getaffinity(0))
        return max(0.0, busy - self.busy - (process_time() - self.own)) / available


def _busy() -> float | None:
    """The seconds that the CPUs of this process have been busy."""
    try:
        lines = dict(line.split(maxsplit=1) for line in Path("/proc/stat").read_text().splitlines())
        times = [list(map(int, lines[f"cpu{number}"].split())) for number in os.sched_getaffinity(0)]
    except (OSError, KeyError, ValueError):
        return None
    # The columns: user, nice, system, idle, iowait, irq, softirq, steal
    return sum(sum(columns[:3]) + sum(columns[5:8]) for columns in times) / os.sysconf("SC_CLK_TCK")


def _settle() -> None:
    """Waits for threads that the last call left at work: XLA's go on for milliseconds, or begin again after a few,
    returning memory."""
    quiet = 0
    for _ in range(200):
        before = process_time()
        sleep(0.001)
        quiet = quiet + 1 if process_time() - before < 0.0002 else 0
        if quiet == QUIET:
            return


def _warm_up(call: Call) -> None:
    start = perf_counter()
    call()
    while perf_counter() - start < WARM:
        call()


def _times(call: Call, most: int) -> list[float]:
    """Of a few calls made one after the other, of a long one fewer."""
    times = [_time(call, 1)]
    while len(times) < most and times[0] < LONG:
        times.append(_time(call, 1))
    return times


def _time(call: Call, number: int) -> float:
    start = perf_counter()
    for _ in range(number):
        call()
    return (perf_counter() - start) / number
