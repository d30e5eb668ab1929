"""The list of losses: what is measured, documented and tested for each of them is found here."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, overload

if TYPE_CHECKING:
    from fastloss.validate import Array, NDArray

LOSSES: dict[str, Callable[..., Any]] = {}


@dataclass(frozen=True)
class Domain:
    """What a loss takes."""

    input: Literal["logits", "log-probabilities", "probabilities"]
    target: Literal["indices", "indices or probabilities", "probabilities", "index lists", "zeros and ones", "signs"]
    ignore_index: int | None = None
    regions: bool = False  # compares regions of images; with other modes it takes other targets


DOMAINS = {
    "cross_entropy": Domain("logits", "indices or probabilities", -100),
    "focal_cross_entropy": Domain("logits", "indices or probabilities", -100),
    "nll_loss": Domain("log-probabilities", "indices", -100),
    "kl_div": Domain("log-probabilities", "probabilities"),
    "multi_margin_loss": Domain("logits", "indices"),
    "multilabel_margin_loss": Domain("logits", "index lists"),
    "binary_cross_entropy_with_logits": Domain("logits", "zeros and ones"),
    "binary_cross_entropy": Domain("probabilities", "zeros and ones"),
    "sigmoid_focal_loss": Domain("logits", "zeros and ones"),
    "multilabel_soft_margin_loss": Domain("logits", "zeros and ones"),
    "soft_margin_loss": Domain("logits", "signs"),
    "hinge_loss": Domain("logits", "signs"),
    "dice_loss": Domain("logits", "indices", regions=True),
    "jaccard_loss": Domain("logits", "indices", regions=True),
    "tversky_loss": Domain("logits", "indices", regions=True),
    "lovasz_loss": Domain("logits", "indices", regions=True),
}

_DIAGNOSE = os.environ.get("FASTLOSS_DIAGNOSE", "") in ("1", "true")

# What several docstrings say in the same words.
_COMMON = {
    "{common parameters}": """return_grad
        Return the gradient as well.
    out_grad
        Array of the input's shape that receives the gradient; implies return_grad. It may be the input itself, and of
        another floating dtype.
    grad_output
        Upstream gradient that multiplies the gradient: a number, or for "none" also an array of the loss's shape.
    engine
        Name of the engine, see `fastloss.engines`.
    num_threads
        Number of threads, see `fastloss.get_num_threads`.""",
    "{returns}": """Returns
    -------
    loss : float or ndarray
        A float in double precision; for "none" an array, float64 for float64 input, float32 for others.
    grad : ndarray
        Only where asked for: out_grad where given, else a new array of the input's shape and dtype, in native byte
        order.""",
    "{overlap parameters}": """axis
        The class axis; one-dimensional logits use their only one.
    weight
        One factor a class; the loss is the weighted mean over the classes. [0, 1, 1, ...] leaves the background out.
    ignore_index
        Targets of this value count for nothing.
    smooth
        Added to numerator and denominator.
    eps
        The denominator is at least this, and with log_loss the score.
    log_loss
        The loss is ``-log(score)`` instead of ``1 - score``.
    from_logits
        Apply softmax or sigmoid; else the input holds probabilities.
    per_sample
        One score a sample (axis 0) and class, instead of one a class.
    squared
        P and Y are sums of squares.
    absent
        The loss of a class that no target has: "zero", or "count" for what the formula gives.
    reduction
        "mean" (over classes and samples), "sum" (over samples, of the mean over classes) or "none" (each class).""",
    "{overlap shape and errors}": """Shape
    -----
    logits (N, C, d1, ...), or with the classes on any other axis. target: "multiclass" that shape without the class
    axis; "multilabel" and "binary" the logits' shape, "binary" also without a class axis of length 1. The loss for
    "none": (C,), or (N, C) with per_sample. weight: (C,).

    Errors
    ------
    ValueError for shapes and values, TypeError for types, IndexError for the first target that is neither a class nor
    ignore_index. Nothing has been written to out_grad then.""",
}

Function = TypeVar("Function", bound=Callable[..., Any])


def register(function: Function) -> Function:
    """Adds a public function to the list."""
    for mark, text in _COMMON.items():
        if function.__doc__:
            function.__doc__ = function.__doc__.replace(mark, text)
    if _DIAGNOSE:
        function = _diagnosed(function)
    LOSSES[function.__name__] = function
    return function


def _diagnosed(function: Function) -> Function:
    """The function, with a look at the first batch that each place gives it."""
    from fastloss.diagnosis import check_first

    first, second = list(inspect.signature(function).parameters)[:2]

    @functools.wraps(function)
    def diagnosed(*args: Any, **options: Any) -> Any:
        given = {**dict(zip((first, second), args, strict=False)), **options}
        if first in given and second in given:
            check_first(function.__name__, given[first], given[second], options)
        return function(*args, **options)

    return diagnosed  # type: ignore[return-value]


def loss(function: Callable[..., Any]) -> Loss:
    """Adds a public function to the list, typed as every loss is."""
    return register(function)


class Loss(Protocol):
    """What every loss can be called with and returns; its own options are in its signature."""

    __name__: str

    @overload
    def __call__(
        self, input: Array, target: Array, /, *, reduction: Literal["none"], return_grad: Literal[False] = ...,
        out_grad: None = ..., **options: Any,
    ) -> NDArray: ...  # fmt: skip
    @overload
    def __call__(
        self, input: Array, target: Array, /, *, reduction: Literal["none"], return_grad: Literal[True],
        out_grad: NDArray | None = ..., **options: Any,
    ) -> tuple[NDArray, NDArray]: ...  # fmt: skip
    @overload
    def __call__(
        self, input: Array, target: Array, /, *, reduction: Literal["none"], return_grad: bool = ..., out_grad: NDArray,
        **options: Any,
    ) -> tuple[NDArray, NDArray]: ...  # fmt: skip
    @overload
    def __call__(
        self, input: Array, target: Array, /, *, return_grad: Literal[False] = ..., out_grad: None = ..., **options: Any
    ) -> float: ...
    @overload
    def __call__(
        self, input: Array, target: Array, /, *, return_grad: Literal[True], out_grad: NDArray | None = ...,
        **options: Any,
    ) -> tuple[float, NDArray]: ...  # fmt: skip
    @overload
    def __call__(
        self, input: Array, target: Array, /, *, return_grad: bool = ..., out_grad: NDArray, **options: Any
    ) -> tuple[float, NDArray]: ...
