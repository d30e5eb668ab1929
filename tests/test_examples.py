"""The Python examples run, and print what they are about."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastloss as fl

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
