"""The batches that are measured, and what their losses and gradients have to be."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Case:
    shape: tuple[int, ...]
    repeats: int = 1  # the batch is a block of random rows, so many times over: the block alone says what to expect
    binary: bool = False  # binary cross-entropy with logits; else cross-entropy, its classes on axis 1


CROSS_ENTROPY = {
    "64 x 10": Case((64, 10)),
    "65536 x 10": Case((65536, 10), 16),
    "65536 x 32": Case((65536, 32), 16),
    "65536 x 100": Case((65536, 100), 16),
    "4096 x 1000": Case((4096, 1000), 16),
    "1024 x 32000": Case((1024, 32000), 16),
    "256 x 128256": Case((256, 128256), 16),
    "8 x 21 x 512 x 512": Case((8, 21, 512, 512), 8),
}
BINARY = {"BCE, 2e7": Case((20_000_000,), 20, binary=True)}
CASES = CROSS_ENTROPY | BINARY

# How far a gradient entry, times the number of targets, may be from the float64 formula.
TOLERANCE = {"float64": 1e-12, "float32": 4e-6, "float16": 2e-3, "bfloat16": 1e-2}


@dataclass
class Batch:
    """The arrays of a case, in memory that has been touched; grad is a buffer of the logits' shape and dtype."""

    case: Case
    logits: np.ndarray
    target: np.ndarray
    grad: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.grad = np.zeros_like(self.logits)
        self.grad.fill(1)  # zeros alone would leave the pages to the first benchmark

    @cached_property
    def expected(self) -> tuple[float, np.ndarray]:
        """The mean loss, and the gradient of the first block times the number of its targets."""
        length = len(self.logits) // self.case.repeats
        z, y = self.logits[:length].astype(np.float64), self.target[:length]
        if self.case.binary:
            return float(np.mean(np.logaddexp(0, z) - y * z)), 1 / (1 + np.exp(-z)) - y
        z -= z.max(axis=1, keepdims=True)
        y = np.expand_dims(y, 1)
        of_target = np.take_along_axis(z, y, 1)
        p = np.exp(z, out=z)
        total = p.sum(axis=1, keepdims=True)
        loss = float(np.mean(np.log(total) - of_target))
        p /= total
        np.put_along_axis(p, y, np.take_along_axis(p, y, 1) - 1, 1)
        return loss, p

    def verify(self, loss: float, grad: Any = None) -> None:
        """Raises AssertionError unless these are the mean loss and its gradient, in the first block and in the last."""
        expected_loss, expected = self.expected
        np.testing.assert_allclose(loss, expected_loss, rtol=2e-5)
        if grad is None:
            return
        grad = np.asarray(grad)
        assert grad.shape == self.logits.shape
        count = self.target.size
        tolerance = TOLERANCE[grad.dtype.name]
        if grad.dtype == np.float16:
            tolerance += count * 2.0**-24  # its smallest number: what 1 / count is too small for
        for block in {0, self.case.repeats - 1}:
            rows = slice(block * len(expected), (block + 1) * len(expected))
            difference = grad[rows].astype(np.float64)
            difference *= count
            difference -= expected
            worst = np.abs(difference, out=difference).max()
            assert worst <= tolerance, f"a gradient is off by {worst:.2g} in block {block}"


def make(name: str, dtype: str = "float32") -> Batch:
    """The batch of a case; the same at each call."""
    case = CASES[name]
    rng = np.random.default_rng(7)
    block = (case.shape[0] // case.repeats, *case.shape[1:])
    logits = 3 * rng.standard_normal(block, dtype=np.float32)
    if dtype == "bfloat16":
        import ml_dtypes

        logits = logits.astype(ml_dtypes.bfloat16)
    logits = logits.astype(dtype, copy=False)
    if case.binary:
        target = rng.integers(0, 2, block).astype(logits.dtype)
    else:
        target = rng.integers(0, case.shape[1], (block[0], *block[2:]))
    return Batch(case, np.concatenate([logits] * case.repeats), np.concatenate([target] * case.repeats))
