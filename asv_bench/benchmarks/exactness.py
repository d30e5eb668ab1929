"""The largest errors of losses and of gradients against float64, in units in the last place (ULP) of the largest value.

Of float32, and of the largest: the relative error of a tiny difference of large values says nothing.
"""

from __future__ import annotations

import numpy as np

from fastloss.bench import cases
from fastloss.catalogue import DOMAINS, LOSSES

from .common import Benchmark, make_batch


class Exactness(Benchmark):
    params = list(DOMAINS)
    param_names = ("loss",)

    def setup(self, loss):
        batch = make_batch(cases.Case(loss, "4 x 16 x 32 x 32" if DOMAINS[loss].regions else "512 x 200"))
        batch.repeats = 1
        batch.__dict__.pop("expected", None)
        reduction = "none" if not DOMAINS[loss].regions else "mean"
        double = batch.input.astype(np.float64)
        options = {"reduction": reduction, "return_grad": True}
        self.expected = LOSSES[loss](double, batch.target, engine="reference", **options)
        self.found = LOSSES[loss](batch.input, batch.target, **options)

    def track_loss(self, _):
        return ulps(self.found[0], self.expected[0])

    def track_gradient(self, _):
        return ulps(self.found[1], self.expected[1])

    track_loss.unit = track_gradient.unit = "ULP"
    track_loss.pretty_name = "largest error of a loss"
    track_gradient.pretty_name = "largest error of a gradient entry"


def ulps(found, expected):
    error = np.abs(np.asarray(found, np.float64) - expected).max()
    return float(error / np.spacing(np.float32(np.abs(expected).max())))
