"""The batches that are measured, made from the list of losses, and what their losses and gradients have to be."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from fastloss.catalogue import DOMAINS, LOSSES

if TYPE_CHECKING:
    from fastloss.validate import NDArray

DTYPES = ("float32", "float64", "float16", "bfloat16")

MATRICES = (
    "64 x 10", "65536 x 2", "65536 x 10", "65536 x 32", "65536 x 100", "4096 x 1000", "1024 x 32000", "256 x 128256",
)  # fmt: skip
IMAGES = ("2 x 21 x 128 x 128", "8 x 21 x 512 x 512")
ELEMENTS = ("64 x 10", "4096 x 1000", "20000000")

# How far a gradient entry may be from the reference engine's, in units of the largest.
TOLERANCE = {"float64": 1e-12, "float32": 4e-6, "float16": 2e-3, "bfloat16": 1e-2}


def shapes(loss: str) -> tuple[str, ...]:
    """The shapes that a loss is measured in, smallest first."""
    domain = DOMAINS[loss]
    if domain.regions:
        return IMAGES[: 1 if loss == "lovasz_loss" else None]  # which sorts every pixel: a second a call
    if domain.target in ("zeros and ones", "signs"):
        return ELEMENTS
    if domain.target == "index lists":  # where every label is compared with every class: minutes a call with many
        return tuple(shape for shape in MATRICES if parse_shape(shape)[1] <= 1000)
    return MATRICES + IMAGES[1:] if domain.ignore_index is not None else MATRICES


def parse_shape(text: str) -> tuple[int, ...]:
    """(64, 10) for "64 x 10". ValueError for what is no shape."""
    shape = tuple(int(part) for part in text.split("x"))
    if min(shape) < 1:
        raise ValueError(f"{text!r} has a length below 1")
    return shape


@dataclass(frozen=True)
class Case:
    """A loss, and the shape and dtype of its input. ignored is the share of targets that are ignore_index."""

    loss: str = "cross_entropy"
    shape: str = "4096 x 1000"
    dtype: str = "float32"
    engine: str | None = None
    ignored: float = 0.0

    @property
    def lengths(self) -> tuple[int, ...]:
        return parse_shape(self.shape)

    @property
    def elements(self) -> int:
        return int(np.prod(self.lengths))


@dataclass
class Batch:
    """The arrays of a case, in memory that has been touched; grad is a buffer of the input's shape and dtype.

    Large batches are a block of random rows, `repeats` times over: the block alone says what to expect.
    """

    case: Case
    repeats: int
    input: NDArray
    target: NDArray
    grad: NDArray = field(init=False)

    def __post_init__(self) -> None:
        self.grad = np.zeros_like(self.input)
        self.grad.fill(1)  # zeros alone would leave the pages to the first call that is measured

    @cached_property
    def expected(self) -> tuple[float, NDArray]:
        """The mean loss, and the gradient of the first block, by the reference engine in float64."""
        length = len(self.input) // self.repeats
        function = LOSSES[self.case.loss]
        block = self.input[:length].astype(np.float64)
        loss, grad = function(block, self.target[:length], return_grad=True, engine="reference")
        return loss, grad

    def verify(self, loss: float, grad: Any = None, *, rounded: bool = False) -> None:
        """Raises AssertionError unless these are the mean loss and its gradient, in the first block and in the last.

        A result that is `rounded` may have its loss in the input's dtype, and eight times the error in a gradient, as
        others have.
        """
        expected_loss, expected = self.expected
        error = abs(float(loss) - expected_loss)
        allowed = max(2e-5, TOLERANCE[self.case.dtype] if rounded else 0) * abs(expected_loss)
        assert error <= allowed, f"the loss is off by {error:.2g}: {float(loss):.6g} instead of {expected_loss:.6g}"
        if grad is None:
            return
        grad = np.asarray(grad)
        assert grad.shape == self.input.shape
        scale = np.abs(expected).max()
        tolerance = TOLERANCE[grad.dtype.name] * (8 if rounded else 1) * scale
        if self.case.loss == "lovasz_loss":  # near ties, sorted the other way round, swap their shares
            tolerance = max(tolerance, 1e-3 * scale)
        if grad.dtype == np.float16:
            tolerance += self.repeats * 2.0**-24  # its smallest number: what a mean's gradient is too small for
        for block in {0, self.repeats - 1}:
            rows = slice(block * len(expected), (block + 1) * len(expected))
            difference = grad[rows].astype(np.float64)
            difference *= self.repeats
            difference -= expected
            worst = np.abs(difference, out=difference).max()
            assert worst <= tolerance, f"a gradient is off by {worst / scale:.2g} of the largest, in block {block}"


def make(case: Case) -> Batch:
    """The batch of a case; the same at each call."""
    rng = np.random.default_rng(7)
    shape, domain = case.lengths, DOMAINS[case.loss]
    # Lovász sorts: equal rows would leave it open which of them has which gradient.
    most = 1 if case.loss == "lovasz_loss" else 20
    repeats = next(n for n in range(most, 0, -1) if shape[0] % n == 0 and (n == 1 or case.elements // n >= 2**15))
    block = (shape[0] // repeats, *shape[1:])
    z: NDArray = 3 * rng.standard_normal(block, dtype=np.float32)
    if domain.input == "probabilities":
        z = np.float32(0.05) + np.float32(0.9) / (1 + np.exp(-z))  # half precision would round others to 1
    elif domain.input == "log-probabilities":
        z = _log_softmax(z)
    dtype = _dtype(case.dtype)
    target: NDArray
    if domain.target in ("zeros and ones", "signs"):
        target = rng.integers(0, 2, block).astype(dtype)
        if domain.target == "signs":
            target = 2 * target - target.dtype.type(1)
    elif domain.target == "probabilities":
        target = np.exp(_log_softmax(rng.standard_normal(block, dtype=np.float32))).astype(dtype)
    elif domain.target == "index lists":  # up to three labels a row, then -1
        target = np.full(block, -1)
        count = min(3, block[1])
        target[:, :count] = (rng.integers(0, block[1], (block[0], 1)) + np.arange(count)) % block[1]
    else:
        target = rng.integers(0, block[1], (block[0], *block[2:]))
        if case.ignored and domain.ignore_index is not None:
            target[rng.random(target.shape) < case.ignored] = domain.ignore_index
    return Batch(case, repeats, np.concatenate([z.astype(dtype)] * repeats), np.concatenate([target] * repeats))


def _log_softmax(z: NDArray) -> NDArray:
    """Of axis 1."""
    z = z - z.max(axis=1, keepdims=True)
    z -= np.log(np.exp(z).sum(axis=1, keepdims=True))
    return z


def _dtype(name: str) -> np.dtype[Any]:
    if name == "bfloat16":
        import ml_dtypes

        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    return np.dtype(name)
