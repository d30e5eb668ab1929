"""How many times longer others take for loss and gradient, on one thread. Both take turns in one process."""

from __future__ import annotations

import os

from fastloss.bench import calls, cases, processes, timing

from .common import Benchmark, each_loss, make_batch


def make(loss):
    class Speedup(Benchmark):
        params = (list(calls.PEERS), list(cases.shapes(loss)))
        param_names = ("peer", "shape")

        def setup(self, peer, shape):
            # Before they are imported, because some take as many threads as there are CPUs.
            os.environ.update(processes.variables(1))
            processes.take_cpus(1)
            batch = make_batch(cases.Case(loss, shape))
            self.calls = {"peer": calls.PEERS[peer](batch, 1), "fastloss": calls.fused(batch, 1)}

        def track_speedup(self, *_):
            times = timing.medians(timing.take_turns(self.calls, seconds=0.5))
            return times["peer"] / times["fastloss"]

        track_speedup.unit = "times"
        track_speedup.pretty_name = f"{loss}: speed-up over others, one thread"

    return Speedup


each_loss(make, globals())
