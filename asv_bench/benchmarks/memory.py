"""Peak memory of a process that computes one loss with its gradient, the interpreter and the input included."""

from __future__ import annotations

from fastloss.bench import cases
from fastloss.catalogue import DOMAINS, LOSSES

from .common import Benchmark, make_batch


class PeakMemory(Benchmark):
    """16 MB of input. The result is not checked here: that takes more memory than the call."""

    params = list(DOMAINS)
    param_names = ("loss",)

    def setup(self, loss):
        shape = "4 x 16 x 250 x 250" if DOMAINS[loss].regions else "4000 x 1000"
        self.batch = make_batch(cases.Case(loss, shape))
        self.batch.grad = None

    def peakmem_loss_and_gradient(self, loss):
        LOSSES[loss](self.batch.input, self.batch.target, return_grad=True)

    peakmem_loss_and_gradient.pretty_name = "loss and gradient of 16 MB"
