"""The list of losses: what is measured, documented and tested for each of them is found here."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, overload

if TYPE_CHECKING:
    from fastloss.validate import Array, NDArray

LOSSES: dict[str, Callable[..., Any]] = {}

_DIAGNOSE = os.environ.get("FASTLOSS_DIAGNOSE", "") in ("1", "true")

# What the docstrings of all losses say of the arguments that all losses have.
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
