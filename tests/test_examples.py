"""The Python examples run, and print what they are about."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fastloss as fl
from fastloss import config

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.skipif("numba" not in fl.engines(), reason="the examples are about Numba, which is not installed")
@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("numba_engine.py", "numba      loss 7.395402"),
        ("numba_logistic_regression.py", "accuracy 0.8"),
        ("custom_losses.py", "taylor_cross_entropy       1.3242"),
    ],
)
def test_example(script, expected, tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(EXAMPLES / script)],
        cwd=tmp_path,
        env={**os.environ, "FASTLOSS_DEBUG": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout


# Each by its formula in NumPy.
CATALOGUE = """\
focal                        0.170865  gradient -0.019658 ...
sigmoid focal                0.114765  gradient -0.000304 ...
hinge                        0.875000  gradient  0.000000 ...
Dice + cross-entropy / 2     0.512312  gradient -0.070989 ...
Dice of each class           0.160617 0.372555 0.351293
cross-entropy                0.434981  top 1: 4, top 2: 5 of 5, entropy 0.584449
Lovasz hinge                 0.750000  slopes 0.333333 0.333333 0.000000
"""


@pytest.mark.skipif("cython" not in fl.engines(), reason="installed without the C library")
def test_catalogue(tmp_path):
    compiler = os.environ.get("CC", "cc").split()
    if shutil.which(compiler[0]) is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"{compiler[0]} is not installed")
    program = tmp_path / "catalogue"
    command = [*compiler, EXAMPLES / "catalogue.c", config.cflags(), *config.libs().split(), "-lm", "-o", program]
    subprocess.run(command, check=True, cwd=tmp_path)
    assert subprocess.run([program], check=True, capture_output=True, text=True).stdout == CATALOGUE
