"""What the benchmarks share."""

from __future__ import annotations

from fastloss.bench import calls, cases
from fastloss.catalogue import DOMAINS, LOSSES
from fastloss.threads import available_cpus

THREADS = [1, 2]


class Benchmark:
    """Settings for asv: what a time is made of, and a version, without which each change of code begins a new graph."""

    timeout = 600
    rounds = 1
    repeat = (3, 10, 0.5)
    warmup_time = 0.05
    version = "1"


def need_threads(threads: int) -> None:
    if threads > available_cpus():
        raise calls.Missing(f"{threads} threads need as many CPUs")


def need_loss(loss: str) -> None:
    """Benchmarks are of all losses of this checkout, so that every revision has the same; it may not have the loss."""
    if loss not in LOSSES:
        raise calls.Missing(f"this fastloss has no {loss}")


def make_batch(case: cases.Case) -> cases.Batch:
    need_loss(case.loss)
    return cases.make(case)


def each_loss(make, namespace: dict) -> None:
    """Adds make(loss), a class, for each loss to a module's namespace: CrossEntropy for cross_entropy."""
    for loss in DOMAINS:
        made = make(loss)
        made.__name__ = made.__qualname__ = "".join(part.capitalize() for part in loss.split("_"))
        made.__module__ = namespace["__name__"]
        namespace[made.__name__] = made
