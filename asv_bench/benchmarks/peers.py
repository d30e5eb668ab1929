"""How many times longer others take for loss and gradient. Both take turns in one process."""

from __future__ import annotations

from fastloss.bench import calls, cases, timing

from .common import Benchmark, each_loss


def make(loss):
    class Speedup(Benchmark):
        # One thread: others take as many as there are CPUs in a process, where this process cannot tell them.
        params = (list(calls.PEERS), list(cases.shapes(loss)))
        param_names = ("peer", "shape")

        def setup(self, peer, shape):
            batch = cases.make(cases.Case(loss, shape))
            self.calls = {"peer": calls.PEERS[peer](batch, 1), "fastloss": calls.fused(batch, 1)}

        def track_speedup(self, *_):
            times = timing.medians(timing.take_turns(self.calls, seconds=0.5))
            return times["peer"] / times["fastloss"]

        track_speedup.unit = "times"
        track_speedup.pretty_name = f"{loss}: speed-up over others, one thread"

    return Speedup


each_loss(make, globals())
