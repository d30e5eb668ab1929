"""What is paid once, and for every call: the import, the Numba engine's first call, and a call on next to nothing."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import fastloss
from fastloss.bench import calls, cases
from fastloss.catalogue import DOMAINS
from fastloss.engines import engines

from .common import Benchmark, make_batch


class Call(Benchmark):
    params = list(DOMAINS)
    param_names = ("loss",)

    def setup(self, loss):
        self.fused = calls.fused(make_batch(cases.Case(loss, "1 x 2 x 1 x 1" if DOMAINS[loss].regions else "1 x 2")), 1)

    def time_call(self, _):
        self.fused()

    time_call.pretty_name = "a call on two numbers"


class Start(Benchmark):
    def track_import(self):
        """Beyond NumPy's own."""
        return seconds("import fastloss", before="import numpy")

    def track_first_call_of_numba(self):
        if "numba" not in engines():
            raise calls.Missing("there is no numba engine")
        call = "fastloss.cross_entropy(numpy.zeros((2, 3)), numpy.zeros(2, int), return_grad=True, engine='numba')"
        with tempfile.TemporaryDirectory() as cache:  # an empty one
            return seconds(call, before="import numpy, fastloss, numba", runs=1, NUMBA_CACHE_DIR=cache)

    track_import.unit = track_first_call_of_numba.unit = "seconds"
    track_import.pretty_name = "import"
    track_first_call_of_numba.pretty_name = "first call of the Numba engine, nothing cached"


def seconds(code, before, runs=5, **environment):
    """The median time that this code takes in a new Python which ran another one before, with the fastloss that is
    measured."""
    code = f"{before}\nfrom time import perf_counter\nstart = perf_counter()\n{code}\nprint(perf_counter() - start)"
    path = str(Path(fastloss.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": path, **environment}
    times = []
    for _ in range(runs):
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        times.append(float(done.stdout))
    return statistics.median(times)
