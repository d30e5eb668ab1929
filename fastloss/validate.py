"""Checks what the user gave and builds one frozen problem for an engine.

Every user error is raised here, before an output is written. Two need the targets' values, which only an engine
reads: it calls `raise_bad_index` and `check_denominator` before it writes."""

from __future__ import annotations

import math
import numbers
import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Literal, Protocol, SupportsFloat, SupportsIndex, TypeAlias

    from numpy.typing import ArrayLike

    class SupportsDLPack(Protocol):
        def __dlpack__(self, *args: Any, **kwargs: Any) -> Any: ...

    Array: TypeAlias = ArrayLike | SupportsDLPack
    Number: TypeAlias = SupportsFloat
    Index: TypeAlias = SupportsIndex
    NDArray: TypeAlias = np.ndarray[Any, Any]
    Reduced: TypeAlias = Literal["mean", "sum"]
    Reduction: TypeAlias = Literal["mean", "sum", "none"]
    Empty: TypeAlias = Literal["nan", "zero", "raise"]

REDUCTIONS = ("mean", "sum", "none")
EMPTY = ("nan", "zero", "raise")
MAX_CLASSES = 2**31 - 1
# numpy.shares_memory is exact and may take exponential time: past this much work an overlap is assumed.
OVERLAP_WORK = 10_000

_FLOAT_NAMES = frozenset({"float32", "float64", "float16", "bfloat16"})
_FLOAT_TEXT = "float32, float64, float16 or bfloat16"


@dataclass(frozen=True, slots=True, eq=False)
class CrossEntropyProblem:
    logits: NDArray  # float32, float64, float16 or bfloat16; native and aligned, any strides
    axis: int  # the class axis, not negative
    classes: int
    target: NDArray  # indices: integer, native, C-contiguous, row_shape; probabilities: compute_dtype, logits.shape
    is_probabilities: bool
    weight: NDArray | None  # compute_dtype, contiguous, (classes,)
    sample_weight: NDArray | None  # compute_dtype, C-contiguous, row_shape
    ignore_index: int  # fits in int64
    label_smoothing: float
    z_loss: float
    softcap: float | None
    reduction: Reduction
    normalizer: float | None
    empty: Empty
    grad_output: float | NDArray  # an array only for reduction "none": compute_dtype, C-contiguous, row_shape
    want_grad: bool
    out_grad: NDArray | None  # the user's own array, any of the four dtypes, maybe not native or not aligned
    num_threads: int | None

    @property
    def compute_dtype(self) -> np.dtype[Any]:
        return compute_dtype(self.logits.dtype)

    @property
    def row_shape(self) -> tuple[int, ...]:
        return row_shape(self.logits, self.axis)


@dataclass(frozen=True, slots=True, eq=False)
class BinaryProblem:
    logits: NDArray  # native and aligned, any strides and dimensions
    target: NDArray  # boolean, integer or floating; native and aligned, logits.shape, any strides
    weight: NDArray | None  # compute_dtype, broadcasts to logits.shape
    pos_weight: NDArray | None  # compute_dtype, broadcasts to logits.shape
    label_smoothing: float
    ignore_index: float | None  # already rounded to the target's dtype
    reduction: Reduction
    grad_output: float | NDArray  # an array only for reduction "none": compute_dtype, C-contiguous, logits.shape
    want_grad: bool
    out_grad: NDArray | None
    num_threads: int | None

    @property
    def compute_dtype(self) -> np.dtype[Any]:
        return compute_dtype(self.logits.dtype)


@dataclass(frozen=True, slots=True, eq=False)
class SoftmaxProblem:
    kind: Literal["softmax", "log_softmax", "logsumexp", "entropy"]
    logits: NDArray  # native and aligned, any strides
    axis: int
    classes: int
    num_threads: int | None

    @property
    def compute_dtype(self) -> np.dtype[Any]:
        return compute_dtype(self.logits.dtype)

    @property
    def row_shape(self) -> tuple[int, ...]:
        return row_shape(self.logits, self.axis)


@dataclass(frozen=True, slots=True, eq=False)
class MapProblem:
    kind: Literal["sigmoid", "log_sigmoid", "softplus"]
    x: NDArray  # native and aligned, any strides and dimensions
    num_threads: int | None


def cross_entropy(
    logits: Any,
    target: Any,
    *,
    weight: Any,
    sample_weight: Any,
    ignore_index: Any,
    label_smoothing: Any,
    z_loss: Any,
    softcap: Any,
    axis: Any,
    normalizer: Any,
    empty: Any,
    reduction: Any,
    return_grad: Any,
    out_grad: Any,
    grad_output: Any,
    num_threads: Any,
) -> CrossEntropyProblem:
    given_logits = _floats("logits", logits)
    axis, classes = _class_axis(given_logits, axis)
    rows = row_shape(given_logits, axis)
    dtype = compute_dtype(given_logits.dtype)

    given_target = _array("target", target)
    if given_target.size == 0 and given_target.shape == rows and isinstance(target, (list, tuple)):
        given_target = given_target.astype(np.int64)  # an empty list has no dtype of its own
    is_probabilities = _check_target(given_target, given_logits.shape, rows, axis)
    ignore_index = _index("ignore_index", ignore_index)
    if not -(2**63) <= ignore_index < 2**63:
        raise ValueError(f"ignore_index must fit in a signed 64-bit integer, not {ignore_index}")
    if is_probabilities and ignore_index >= 0:
        raise ValueError(
            f"ignore_index is {ignore_index}, but the target holds probabilities, of which none can be ignored: "
            "leave ignore_index at its default, and use sample_weight to leave rows out"
        )

    given_weight = _numbers("weight", weight)
    if given_weight is not None and given_weight.shape != (classes,):
        raise ValueError(
            f"weight has shape {given_weight.shape}, but {classes} classes need one entry each: shape ({classes},)"
        )
    given_sample_weight = _numbers("sample_weight", sample_weight)
    if given_sample_weight is not None and given_sample_weight.shape != rows:
        raise ValueError(
            f"sample_weight has shape {given_sample_weight.shape}, but needs one entry a target: shape {rows}"
        )
    reduction = _choice("reduction", reduction, REDUCTIONS)
    given_grad_output, grad_output = _grad_output(grad_output, reduction, rows, dtype)
    _check_out_grad(
        out_grad,
        given_logits,
        {
            "target": given_target,
            "weight": given_weight,
            "sample_weight": given_sample_weight,
            "grad_output": given_grad_output,
        },
    )
    return CrossEntropyProblem(
        logits=_native(given_logits),
        axis=axis,
        classes=classes,
        target=_convert(given_target, dtype) if is_probabilities else _native(given_target, contiguous=True),
        is_probabilities=is_probabilities,
        weight=None if given_weight is None else _convert(given_weight, dtype, contiguous=True),
        sample_weight=None if given_sample_weight is None else _convert(given_sample_weight, dtype, contiguous=True),
        ignore_index=ignore_index,
        label_smoothing=_number("label_smoothing", label_smoothing, "in [0, 1]", low=0.0, high=1.0),
        z_loss=_number("z_loss", z_loss, "finite and at least 0", low=0.0),
        softcap=None if softcap is None else _number("softcap", softcap, "None, or finite and above 0", above=0.0),
        reduction=reduction,
        normalizer=(
            None if normalizer is None else _number("normalizer", normalizer, "None, or finite and above 0", above=0.0)
        ),
        empty=_choice("empty", empty, EMPTY),
        grad_output=grad_output,
        want_grad=bool(return_grad) or out_grad is not None,
        out_grad=out_grad,
        num_threads=threads(num_threads),
    )


def binary_cross_entropy_with_logits(
    logits: Any,
    target: Any,
    *,
    weight: Any,
    pos_weight: Any,
    label_smoothing: Any,
    ignore_index: Any,
    reduction: Any,
    return_grad: Any,
    out_grad: Any,
    grad_output: Any,
    num_threads: Any,
) -> BinaryProblem:
    given_logits = _floats("logits", logits)
    shape = given_logits.shape
    dtype = compute_dtype(given_logits.dtype)
    given_target = _numbers("target", target, optional=False)
    assert given_target is not None
    if given_target.shape != shape:
        raise ValueError(
            f"target has shape {given_target.shape}, but needs one entry a logit: the logits' shape {shape}"
        )
    given_weight = _broadcastable("weight", weight, shape)
    given_pos_weight = _broadcastable("pos_weight", pos_weight, shape)
    reduction = _choice("reduction", reduction, REDUCTIONS)
    given_grad_output, grad_output = _grad_output(grad_output, reduction, shape, dtype)
    _check_out_grad(
        out_grad,
        given_logits,
        {
            "target": given_target,
            "weight": given_weight,
            "pos_weight": given_pos_weight,
            "grad_output": given_grad_output,
        },
    )
    if ignore_index is not None:
        ignore_index = _in_dtype(_number("ignore_index", ignore_index, "None, or finite"), given_target.dtype)
    return BinaryProblem(
        logits=_native(given_logits),
        target=_native(given_target),
        weight=None if given_weight is None else _convert(given_weight, dtype),
        pos_weight=None if given_pos_weight is None else _convert(given_pos_weight, dtype),
        label_smoothing=_number("label_smoothing", label_smoothing, "in [0, 1]", low=0.0, high=1.0),
        ignore_index=ignore_index,
        reduction=reduction,
        grad_output=grad_output,
        want_grad=bool(return_grad) or out_grad is not None,
        out_grad=out_grad,
        num_threads=threads(num_threads),
    )


def softmax(kind: Any, logits: Any, axis: Any, num_threads: Any) -> SoftmaxProblem:
    given = _floats("logits", logits)
    axis, classes = _class_axis(given, axis)
    return SoftmaxProblem(kind, _native(given), axis, classes, threads(num_threads))


def elementwise(kind: Any, x: Any, num_threads: Any) -> MapProblem:
    return MapProblem(kind, _native(_floats("x", x)), threads(num_threads))


def raise_bad_index(problem: CrossEntropyProblem) -> None:
    """Raises IndexError for the first target that is neither a class nor ignore_index; returns where there is none."""
    target, classes, ignore = problem.target, problem.classes, problem.ignore_index
    bad = ((target < 0) | (target >= classes)) & (target != ignore)
    if not np.any(bad):
        return
    position = np.unravel_index(int(np.argmax(bad)), target.shape)
    where = f"[{', '.join(str(int(i)) for i in position)}]" if position else ""
    raise IndexError(
        f"target{where} is {int(target[position])}, but logits have {classes} "
        f"{'class' if classes == 1 else 'classes'} on axis {problem.axis}: "
        f"expected 0 <= target < {classes}, or ignore_index={ignore}"
    )


def check_denominator(problem: CrossEntropyProblem, denominator: float) -> None:
    """Raises ValueError for the mean over nothing where the user asked for that."""
    if problem.reduction == "mean" and problem.normalizer is None and problem.empty == "raise" and denominator == 0:
        raise ValueError(
            "the mean is over nothing: "
            + ("there are no targets" if 0 in problem.row_shape else "every target is ignored or has weight 0")
            + " (empty='raise')"
        )


def compute_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The type that logits of dtype are computed in, which is also that of a loss with reduction "none"."""
    return _FLOAT64 if dtype.kind == "f" and dtype.itemsize == 8 else _FLOAT32


def row_shape(logits: NDArray, axis: int) -> tuple[int, ...]:
    """The logits' shape without the class axis."""
    shape: tuple[int, ...] = logits.shape
    return shape[:axis] + shape[axis + 1 :]


_FLOAT32 = np.dtype(np.float32)
_FLOAT64 = np.dtype(np.float64)


def threads(value: Any) -> int | None:
    """None, or a number of threads."""
    if value is None:
        return None
    count = _index("num_threads", value)
    if count < 1:
        raise ValueError(f"num_threads must be None or at least 1, not {count}")
    return count


def _array(name: str, value: Any) -> NDArray:
    if type(value) is np.ndarray:
        return value
    try:
        if hasattr(value, "__dlpack__") and not hasattr(value, "__array__"):
            return np.from_dlpack(value)
        return np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} can't be read as an array: {error}") from error
    except (TypeError, AttributeError, BufferError, RuntimeError) as error:
        raise TypeError(f"{name} can't be read as an array: {error}") from error


def _floats(name: str, value: Any) -> NDArray:
    array = _array(name, value)
    if array.dtype.name not in _FLOAT_NAMES:
        raise TypeError(f"{name} must be {_FLOAT_TEXT}, not {array.dtype.name}")
    return array


def _is_float(dtype: np.dtype[Any]) -> bool:
    return dtype.kind == "f" or dtype.name == "bfloat16"


def _numbers(name: str, value: Any, *, optional: bool = True) -> NDArray | None:
    if value is None and optional:
        return None
    array = _array(name, value)
    if array.dtype.kind not in "biu" and not _is_float(array.dtype):
        raise TypeError(f"{name} must be boolean, integer or floating, not {array.dtype.name}")
    return array


def _broadcastable(name: str, value: Any, shape: tuple[int, ...]) -> NDArray | None:
    array = _numbers(name, value)
    if array is not None:
        missing = len(shape) - array.ndim
        if missing < 0 or any(n not in (1, m) for n, m in zip(array.shape, shape[missing:], strict=True)):
            raise ValueError(f"{name} has shape {array.shape}, which does not broadcast to the logits' shape {shape}")
    return array


def _native(array: NDArray, *, contiguous: bool = False) -> NDArray:
    flags = array.flags
    if array.dtype.isnative and flags.aligned and (flags.c_contiguous or not contiguous):
        return array
    return array.astype(array.dtype.newbyteorder("="), order="C" if contiguous else "K")


def _convert(array: NDArray, dtype: np.dtype[Any], *, contiguous: bool = False) -> NDArray:
    if array.dtype != dtype:
        with np.errstate(all="ignore"):
            array = array.astype(dtype, order="C" if contiguous else "K")
    return _native(array, contiguous=contiguous)


def _class_axis(logits: NDArray, axis: Any) -> tuple[int, int]:
    axis = _index("axis", axis)
    ndim = logits.ndim
    if ndim == 0:
        raise ValueError("logits have no dimensions: expected at least one, the class axis")
    if ndim == 1:
        axis = 0
    elif not -ndim <= axis < ndim:
        raise ValueError(f"axis is {axis}, but logits of shape {logits.shape} have axes {-ndim} to {ndim - 1}")
    axis %= ndim
    classes = logits.shape[axis]
    if classes == 0:
        raise ValueError(f"logits of shape {logits.shape} have no classes on axis {axis}: expected at least one")
    if classes > MAX_CLASSES:
        raise ValueError(f"logits have {classes} classes on axis {axis}: expected at most {MAX_CLASSES}")
    return axis, classes


def _check_target(target: NDArray, shape: tuple[int, ...], row_shape: tuple[int, ...], axis: int) -> bool:
    """Whether target holds probabilities."""
    dtype = target.dtype
    if dtype.kind == "b":
        raise TypeError(
            "target is boolean: expected class indices of an integer dtype, or floating probabilities; "
            "for yes-or-no labels see binary_cross_entropy_with_logits"
        )
    if dtype.kind in "iu":
        if target.shape == row_shape:
            return False
        if target.shape == shape:
            raise ValueError(
                f"target has the logits' shape {shape} and integer dtype {dtype.name}, but class indices have shape "
                f"{row_shape}: for one-hot labels give target.argmax(axis={axis}), or floating probabilities"
            )
    elif _is_float(dtype):
        if target.shape == shape:
            return True
        if target.shape == row_shape:
            raise TypeError(
                f"target has the shape of class indices, {row_shape}, but dtype {dtype.name}: "
                "convert it to an integer dtype, as in target.astype('int64')"
            )
    else:
        raise TypeError(f"target must be class indices (integer) or probabilities (floating), not {dtype.name}")
    raise ValueError(
        f"target has shape {target.shape} but logits {shape} with class axis {axis} need targets of shape "
        f"{row_shape}, or probabilities of shape {shape}"
    )


def _number(
    name: str,
    value: Any,
    expected: str,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    above: float = -math.inf,
) -> float:
    number = _float(name, value)
    if not (math.isfinite(number) and low <= number <= high and number > above):
        raise ValueError(f"{name} must be {expected}, not {number:g}")
    return number


def parameter(name: str, value: Any) -> float:
    """A finite number."""
    return _number(name, value, "finite")


def _float(name: str, value: Any) -> float:
    if type(value) is float:
        return value
    dtype = getattr(value, "dtype", None)
    if isinstance(dtype, np.dtype):
        is_number = value.ndim == 0 and (dtype.kind in "iu" or _is_float(dtype))
    else:
        is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        # A scalar of another array library.
        is_number = is_number or (getattr(value, "ndim", None) == 0 and hasattr(value, "__float__"))
    if not is_number:
        raise TypeError(f"{name} must be a number, not {_describe(value)}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} is too large: {value}") from None
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be a number, not {_describe(value)}") from error


def _index(name: str, value: Any) -> int:
    if type(value) is int:
        return value
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, not {_describe(value)}") from None


def _choice(name: str, value: Any, choices: Sequence[str]) -> Any:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be one of {_quoted(choices)}, not {_describe(value)}")
    if value not in choices:
        raise ValueError(f"{name} must be one of {_quoted(choices)}, not {value!r}")
    return value


def _quoted(choices: Sequence[str]) -> str:
    return ", ".join(repr(choice) for choice in choices)


def _describe(value: Any) -> str:
    shape = getattr(value, "shape", None)
    if shape is not None:
        return f"an array of shape {tuple(shape)} and dtype {getattr(value, 'dtype', None)}"
    text = repr(value)
    return text if len(text) <= 40 else type(value).__name__


def _in_dtype(number: float, dtype: np.dtype[Any]) -> float:
    """number as an array of dtype would hold it, so that comparing with such an array finds it."""
    if not _is_float(dtype):
        return number
    with np.errstate(all="ignore"):
        rounded = float(np.asarray(number).astype(dtype))
    return rounded if math.isfinite(rounded) else number


def _grad_output(
    value: Any, reduction: str, loss_shape: tuple[int, ...], dtype: np.dtype[Any]
) -> tuple[NDArray | None, float | NDArray]:
    """The array that the user gave, if any, and the upstream gradient for the problem."""
    if value is None:
        return None, 1.0
    if isinstance(value, numbers.Real):
        return None, _float("grad_output", value)
    array = _numbers("grad_output", value)
    assert array is not None
    if array.ndim == 0:
        return array, _float("grad_output", array)
    if reduction != "none":
        raise ValueError(
            f"grad_output has shape {array.shape}, but the loss with reduction={reduction!r} is a number: "
            "expected a number"
        )
    if array.shape != loss_shape:
        raise ValueError(f"grad_output has shape {array.shape}, but the loss has shape {loss_shape}")
    return array, _convert(array, dtype, contiguous=True)


def _check_output(name: str, out: Any, shape: tuple[int, ...]) -> None:
    if not isinstance(out, np.ndarray):
        raise TypeError(f"{name} must be a numpy.ndarray, not {type(out).__name__}")
    if out.dtype.name not in _FLOAT_NAMES:
        raise TypeError(f"{name} must be {_FLOAT_TEXT}, not {out.dtype.name}")
    if out.shape != shape:
        raise ValueError(f"{name} has shape {out.shape}, but the gradient has the logits' shape {shape}")
    if not out.flags.writeable:
        raise ValueError(f"{name} is read-only: expected a writable array")
    if _has_internal_overlap(out):
        raise ValueError(
            f"{name} has elements that share memory (shape {out.shape}, strides {out.strides}): "
            "expected an element of its own for each entry"
        )


def check_out_hess(out: Any, problem: BinaryProblem) -> None:
    """What receives second derivatives overlaps no other array of the problem."""
    _check_output("out_hess", out, problem.logits.shape)
    grad_output = problem.grad_output if isinstance(problem.grad_output, np.ndarray) else None
    others = {
        "logits": problem.logits,
        "target": problem.target,
        "weight": problem.weight,
        "grad_output": grad_output,
        "out_grad": problem.out_grad,
    }
    for name, array in others.items():
        if array is not None and out.size and _overlap(out, array):
            raise ValueError(f"out_hess overlaps {name} in memory: expected memory of its own")


def _check_out_grad(out: Any, logits: NDArray, others: Mapping[str, NDArray | None]) -> None:
    if out is None:
        return
    _check_output("out_grad", out, logits.shape)
    if out.size == 0:
        return
    if not _is_same_memory(out, logits) and _overlap(out, logits):
        raise ValueError(
            "out_grad partly overlaps logits: expected memory of its own, or exactly the logits "
            "(same address, strides and dtype) to work in place"
        )
    for name, array in others.items():
        if array is not None and _overlap(out, array):
            raise ValueError(f"out_grad overlaps {name} in memory: expected memory of its own")


def _layout(array: NDArray) -> list[tuple[int, int]]:
    """(stride, length) of each axis along which elements differ."""
    return [(stride, n) for stride, n in zip(array.strides, array.shape, strict=True) if n > 1]


def _is_same_memory(a: NDArray, b: NDArray) -> bool:
    return (
        a.dtype == b.dtype
        and a.__array_interface__["data"][0] == b.__array_interface__["data"][0]
        and a.shape == b.shape
        and _layout(a) == _layout(b)
    )


def _overlap(a: NDArray, b: NDArray) -> bool:
    if not np.may_share_memory(a, b):
        return False
    try:
        return bool(np.shares_memory(a, b, max_work=OVERLAP_WORK))  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


def _has_internal_overlap(array: NDArray) -> bool:
    if array.flags.c_contiguous:
        return False
    layout = sorted((abs(stride), n) for stride, n in _layout(array))
    if any(stride == 0 for stride, _ in layout):
        return True
    end = array.itemsize
    for stride, n in layout:
        if stride < end:
            break
        end += stride * (n - 1)
    else:
        return False
    # Axes that interleave, which only as_strided makes: they may or may not overlap, so look at every address.
    offsets = np.zeros(1, np.int64)
    for stride, n in layout:
        offsets = (offsets[:, None] + stride * np.arange(n)).ravel()
    offsets.sort()
    return bool((np.diff(offsets) < array.itemsize).any())
