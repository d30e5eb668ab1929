"""Time of the same losses and gradients by others, in float32."""

from __future__ import annotations

from . import calls, cases


class NumPy:
    params = list(cases.CASES)
    param_names = ("shape",)
    timeout = 240

    def setup(self, shape):
        batch = cases.make(shape)
        self.call = calls.numpy_call(batch)
        batch.verify(*self.call())

    def time_loss_and_gradient(self, _):
        self.call()


class Torch:
    params = (list(cases.CASES), [1, 2])
    param_names = ("shape", "threads")
    timeout = 240

    def setup(self, shape, threads):
        calls.need_threads(threads)
        batch = cases.make(shape)
        self.call = calls.torch_call(batch, threads)
        batch.verify(*self.call())

    def time_forward_and_backward(self, *_):
        self.call()
