"""Beyond its inputs and outputs a loss of the compiled engine takes less than 1 MiB a thread."""

import subprocess
import sys

import pytest

import fastloss as fl

SCRIPT = """
import sys
import numpy as np
import fastloss as fl

call, shape = sys.argv[1], tuple(int(n) for n in sys.argv[2].split(","))
both = fl.combine([(1.0, fl.cross_entropy), (1.0, fl.dice_loss)])


def batch(shape):
    z = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    rows = shape[:1] + shape[2:]
    return {"z": z, "y": np.arange(int(np.prod(rows))).reshape(rows) % shape[1], "g": np.ones_like(z)}


def run(arrays):
    eval(call, {"fl": fl, "both": both}, arrays)


def high_water():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


arrays = batch(shape)
run(batch(tuple(min(n, 64) for n in shape)))  # threads and all that a first call brings
with open("/proc/self/clear_refs", "w") as reset:
    reset.write("5")
before = high_water()
run(arrays)
print(high_water() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.skipif("cython" not in fl.engines(), reason="the compiled engine is missing")
@pytest.mark.parametrize(
    ("call", "shape"),
    [
        ("fl.sigmoid_focal_loss(z, z, out_grad=g, num_threads=2)", (2000, 2000)),
        ("fl.soft_margin_loss(z, z, out_grad=g, num_threads=2)", (2000, 2000)),
        ("fl.hinge_loss(z, z, out_grad=g, num_threads=2)", (2000, 2000)),
        ("fl.kl_div(z, z, log_target=True, out_grad=g, num_threads=2)", (2000, 2000)),
        ("fl.focal_cross_entropy(z, y, out_grad=g, num_threads=2)", (512, 8000)),
        ("fl.nll_loss(z, y, out_grad=g, num_threads=2)", (512, 8000)),
        ("fl.multi_margin_loss(z, y, out_grad=g, num_threads=2)", (512, 8000)),
        ("fl.dice_loss(z, y, out_grad=g, num_threads=2)", (4, 16, 256, 256)),
        ("fl.jaccard_loss(z, y, out_grad=g, per_sample=True, num_threads=2)", (4, 16, 256, 256)),
        ("both(z, y, out_grad=g, num_threads=2)", (4, 16, 256, 256)),
        ("fl.evaluate(z, y, num_threads=2)", (512, 8000)),
    ],
)
def test_high_water_mark(call, shape):
    command = [sys.executable, "-c", SCRIPT, call, ",".join(map(str, shape))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= 2 * 1024, f"{done.stdout.strip()} KiB more at the high-water mark"
