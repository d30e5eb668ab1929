"""Time of fastloss, over shapes, dtypes and threads."""

from __future__ import annotations

from . import calls, cases

DTYPES = ["float32", "float64", "float16", "bfloat16"]
THREADS = [1, 2]


class _Loss:
    timeout = 120

    def setup(self, shape, dtype, threads):
        calls.need_threads(threads)
        if dtype == "bfloat16":
            calls.need("ml_dtypes")
        batch = cases.make(shape, dtype)
        self.loss_only = calls.loss_only(batch, threads)
        self.reused = calls.fused(batch, threads)
        self.recycled = calls.recycled(batch, threads)
        batch.verify(self.loss_only())
        batch.verify(*self.reused())
        batch.verify(*self.recycled())

    def time_loss(self, *_):
        self.loss_only()

    def time_gradient_into_reused_buffer(self, *_):
        self.reused()

    def time_gradient_into_recycled_memory(self, *_):
        self.recycled()


class CrossEntropy(_Loss):
    params = (list(cases.CROSS_ENTROPY), ["float32"], THREADS)
    param_names = ("shape", "dtype", "threads")


class CrossEntropyDtypes(_Loss):
    params = (["65536 x 10", "4096 x 1000", "1024 x 32000"], DTYPES[1:], THREADS)
    param_names = ("shape", "dtype", "threads")


class BinaryCrossEntropyWithLogits(_Loss):
    params = (list(cases.BINARY), DTYPES, THREADS)
    param_names = ("shape", "dtype", "threads")
