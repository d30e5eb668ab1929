"""The two losses that are used most over dtypes, engines and ignored targets: loss and gradient."""

from __future__ import annotations

from fastloss.bench import calls, cases
from fastloss.engines import engines

from .common import THREADS, Benchmark, make_batch, need_threads

SHAPES = ["4096 x 1000", "1024 x 32000"]


class _Fused(Benchmark):
    def prepare(self, case, threads):
        need_threads(threads)
        if case.dtype == "bfloat16":
            calls.need("ml_dtypes")
        if case.engine not in (None, *engines()):
            raise calls.Missing(f"there is no {case.engine} engine")
        self.fused = calls.fused(make_batch(case), threads)


class CrossEntropyDtypes(_Fused):
    params = (SHAPES, list(cases.DTYPES), THREADS)
    param_names = ("shape", "dtype", "threads")

    def setup(self, shape, dtype, threads):
        self.prepare(cases.Case("cross_entropy", shape, dtype), threads)

    def time_dtypes(self, *_):
        self.fused()

    time_dtypes.pretty_name = "cross_entropy: dtypes"


class BinaryCrossEntropyDtypes(_Fused):
    params = (["4096 x 1000", "20000000"], list(cases.DTYPES), THREADS)
    param_names = ("shape", "dtype", "threads")

    def setup(self, shape, dtype, threads):
        self.prepare(cases.Case("binary_cross_entropy_with_logits", shape, dtype), threads)

    def time_dtypes(self, *_):
        self.fused()

    time_dtypes.pretty_name = "binary_cross_entropy_with_logits: dtypes"


class Engines(_Fused):
    params = (["cross_entropy", "binary_cross_entropy_with_logits"], ["cython", "numba", "reference"], THREADS)
    param_names = ("loss", "engine", "threads")

    def setup(self, loss, engine, threads):
        self.prepare(cases.Case(loss, "4096 x 1000", engine=engine), threads)

    def time_engines(self, *_):
        self.fused()

    time_engines.pretty_name = "engines, 4096 x 1000"


class Ignored(_Fused):
    params = (["4096 x 1000", "8 x 21 x 512 x 512"], [0.0, 0.5, 0.9], THREADS)
    param_names = ("shape", "share of targets ignored", "threads")

    def setup(self, shape, ignored, threads):
        self.prepare(cases.Case("cross_entropy", shape, ignored=ignored), threads)

    def time_ignored(self, *_):
        self.fused()

    time_ignored.pretty_name = "cross_entropy: ignored targets"
