"""Loss and gradient in copies of the input: the limit is 1. Both take turns in one process, so that a machine that
changes its pace does not matter."""

from __future__ import annotations

from fastloss.bench import calls, cases, timing

from .common import THREADS, Benchmark, each_loss, make_batch, need_threads


def make(loss):
    class Copies(Benchmark):
        params = (list(cases.shapes(loss)), THREADS)
        param_names = ("shape", "threads")

        def setup(self, shape, threads):
            need_threads(threads)
            batch = make_batch(cases.Case(loss, shape))
            self.calls = {"fastloss": calls.fused(batch, threads), "copy": calls.copy(batch, threads)}

        def track_copies(self, *_):
            times = timing.medians(timing.take_turns(self.calls, seconds=0.5))
            return times["fastloss"] / times["copy"]

        track_copies.unit = "copies"
        track_copies.pretty_name = f"{loss}: time in copies of the input"

    return Copies


each_loss(make, globals())
