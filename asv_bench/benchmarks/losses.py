"""Time of each loss, alone and with its gradient."""

from __future__ import annotations

from fastloss.bench import calls, cases

from .common import THREADS, Benchmark, each_loss, make_batch, need_threads


def make(loss):
    class Times(Benchmark):
        params = (list(cases.shapes(loss)), THREADS)
        param_names = ("shape", "threads")

        def setup(self, shape, threads):
            need_threads(threads)
            batch = make_batch(cases.Case(loss, shape))
            self.loss_only = calls.loss_only(batch, threads)
            self.fused = calls.fused(batch, threads)

        def time_loss(self, *_):
            self.loss_only()

        def time_loss_and_gradient(self, *_):
            self.fused()

        time_loss.pretty_name = f"{loss}: loss"
        time_loss_and_gradient.pretty_name = f"{loss}: loss and gradient"

    return Times


each_loss(make, globals())
