"""fastloss against a parallel copy of the logits, and against others: medians of calls that take turns in one process.

Loss and gradient into a reused buffer, in float32. These say more than times do where a machine changes its pace.
"""

from __future__ import annotations

from . import calls, cases


class _Ratio:
    param_names = ("shape", "threads")
    timeout = 600

    def setup(self, shape, threads):
        calls.need_threads(threads)
        self.batch = cases.make(shape)
        self.fused = calls.fused(self.batch, threads)
        self.batch.verify(*self.fused())
        self.other = self.make_other(threads)

    def times_fastloss(self, rounds):
        times = calls.medians({"fastloss": self.fused, "other": self.other}, rounds)
        return times["fastloss"] / times["other"]


class Copy(_Ratio):
    params = (list(cases.CASES), [1, 2])

    def make_other(self, threads):
        return calls.copy(self.batch, threads)

    def track_ratio_to_copy(self, *_):
        return self.times_fastloss(rounds=25)

    track_ratio_to_copy.unit = "copies"


class Torch(_Ratio):
    params = (list(cases.CASES), [1, 2])

    def make_other(self, threads):
        call = calls.torch_call(self.batch, threads)
        self.batch.verify(*call())
        return call

    def track_speedup_over_torch(self, *_):
        return 1 / self.times_fastloss(rounds=9)

    track_speedup_over_torch.unit = "times"


class NumPy(_Ratio):
    params = (list(cases.CASES), [1])  # NumPy has no more

    def make_other(self, threads):
        call = calls.numpy_call(self.batch)
        self.batch.verify(*call())
        return call

    def track_speedup_over_numpy(self, *_):
        return 1 / self.times_fastloss(rounds=9)

    track_speedup_over_numpy.unit = "times"
