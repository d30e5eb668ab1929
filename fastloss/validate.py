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
    ReductionOrBatchmean: TypeAlias = Literal["mean", "batchmean", "sum", "none"]
    Mode: TypeAlias = Literal["multiclass", "multilabel", "binary"]
    Empty: TypeAlias = Literal["nan", "zero", "raise"]
    Element: TypeAlias = Literal[
        "bce_with_logits", "bce", "sigmoid_focal", "soft_margin", "hinge", "kl_div", "kl_div_log"
    ]

REDUCTIONS = ("mean", "sum", "none")
MODES = ("multiclass", "multilabel", "binary")
EMPTY = ("nan", "zero", "raise")
MAX_CLASSES = 2**31 - 1
# numpy.shares_memory is exact and may take exponential time: past this much work an overlap is assumed.
OVERLAP_WORK = 10_000

_FLOAT_TEXT = "float32, float64, float16 or bfloat16"


@dataclass(frozen=True, slots=True, eq=False)
class ClassProblem:
    logits: NDArray  # float32, float64, float16 or bfloat16; native and aligned, any strides
    axis: int  # the class axis, not negative
    classes: int
    target: NDArray  # indices: integer, native, C-contiguous, row_shape; probabilities: compute_dtype, logits.shape
    is_probabilities: bool
    weight: NDArray | None  # compute_dtype, contiguous, (classes,)
    sample_weight: NDArray | None  # compute_dtype, C-contiguous, row_shape
    ignore_index: int | None  # fits in int64; None: the loss ignores no target
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
    loss: Literal["cross_entropy", "nll", "multi_margin", "multilabel_margin"] = "cross_entropy"
    focal: float = 0.0  # cross-entropy: each class's loss is multiplied by (1 - focal) + focal * (1 - p)^gamma
    gamma: float = 0.0
    power: int = 1  # multi_margin: 1 or 2
    margin: float = 1.0  # multi_margin

    @property
    def compute_dtype(self) -> np.dtype[Any]:
        return compute_dtype(self.logits.dtype)

    @property
    def row_shape(self) -> tuple[int, ...]:
        return row_shape(self.logits, self.axis)


@dataclass(frozen=True, slots=True, eq=False)
class ElementProblem:
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
    loss: Element = "bce_with_logits"
    normalizer: float | None = None  # the mean's denominator, where it is not the number of elements that count
    alpha: float = -1.0  # sigmoid_focal: the weight of positives, negative for none
    gamma: float = 2.0  # sigmoid_focal
    margin: float = 1.0  # hinge
    zero_one: bool = False  # soft_margin, hinge: targets are 0 and 1 instead of -1 and 1

    @property
    def compute_dtype(self) -> np.dtype[Any]:
        return compute_dtype(self.logits.dtype)


@dataclass(frozen=True, slots=True, eq=False)
class OverlapProblem:
    logits: NDArray  # native and aligned, any strides
    axis: int  # the class axis, not negative
    classes: int
    target: NDArray  # multiclass: indices, integer, native, C-contiguous; else numbers of logits.shape, native
    mode: Literal["multiclass", "multilabel"]
    from_logits: bool  # softmax or sigmoid is applied; else the input holds probabilities
    squared: bool  # the denominators add squares
    ignore_index: int | None
    per_sample: bool  # samples are the first axis
    want_grad: bool
    out_grad: NDArray | None
    num_threads: int | None
    user_out: NDArray | None = None  # the array whose view out_grad is
    is_binary: bool = False
    cross_entropy: float = 0.0  # the weight of a softmax cross-entropy in the same pass, as fl.combine asks for
    class_weight: NDArray | None = None  # of that cross-entropy: compute_dtype, contiguous, (classes,)
    focal: float = 0.0
    gamma: float = 0.0

    @property
    def compute_dtype(self) -> np.dtype[Any]:
        return compute_dtype(self.logits.dtype)

    @property
    def row_shape(self) -> tuple[int, ...]:
        return row_shape(self.logits, self.axis)

    @property
    def groups(self) -> int:
        """Sets of elements that have sums of their own."""
        return self.logits.shape[0] if self.per_sample else 1

    def given_gradient(self, grad: NDArray) -> NDArray:
        """The gradient as the user knows it: without the class axis that binary logits were given."""
        if self.user_out is not None:
            return self.user_out
        return grad[:, 0] if self.is_binary else grad


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


def class_loss(
    logits: Any,
    target: Any,
    *,
    weight: Any = None,
    sample_weight: Any = None,
    ignore_index: Any = -100,
    label_smoothing: Any = 0.0,
    z_loss: Any = 0.0,
    softcap: Any = None,
    axis: Any = 1,
    normalizer: Any = None,
    empty: Any = "nan",
    reduction: Any = "mean",
    return_grad: Any = False,
    out_grad: Any = None,
    grad_output: Any = None,
    num_threads: Any = None,
    loss: Any = "cross_entropy",
    focal: float = 0.0,
    gamma: Any = 0.0,
    power: Any = 1,
    margin: Any = 1.0,
) -> ClassProblem:
    given_logits = _floats("logits", logits)
    axis, classes = _class_axis(given_logits, axis)
    rows = row_shape(given_logits, axis)
    dtype = compute_dtype(given_logits.dtype)

    given_target = _array("target", target)
    if given_target.size == 0 and given_target.shape == rows and isinstance(target, (list, tuple)):
        given_target = given_target.astype(np.int64)  # an empty list has no dtype of its own
    if loss == "multilabel_margin":
        is_probabilities = False
        _check_label_lists(given_target, given_logits.shape)
    else:
        is_probabilities = _check_target(given_target, given_logits.shape, rows, axis, loss == "cross_entropy")
    ignores = loss not in ("multi_margin", "multilabel_margin")
    ignore_index = _ignore_index(ignore_index) if ignores else None
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
    gamma = _number("gamma", gamma, "finite and at least 0", low=0.0)
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
    return ClassProblem(
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
        loss=loss,
        focal=focal if gamma else 0.0,
        gamma=gamma,
        power=_margin_power(power),
        margin=_number("margin", margin, "finite"),
    )


def element_loss(
    logits: Any,
    target: Any,
    *,
    weight: Any = None,
    pos_weight: Any = None,
    label_smoothing: Any = 0.0,
    ignore_index: Any = None,
    reduction: Any = "mean",
    return_grad: Any = False,
    out_grad: Any = None,
    grad_output: Any = None,
    num_threads: Any = None,
    name: str = "logits",
    loss: Any = "bce_with_logits",
    normalizer: float | None = None,
    alpha: Any = None,
    gamma: Any = 2.0,
    margin: Any = 1.0,
) -> ElementProblem:
    given_logits = _floats(name, logits)
    shape = given_logits.shape
    dtype = compute_dtype(given_logits.dtype)
    given_target = _numbers("target", target, optional=False)
    assert given_target is not None
    if given_target.shape != shape:
        raise ValueError(
            f"target has shape {given_target.shape}, but needs one entry for each of the {name}: shape {shape}"
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
    return ElementProblem(
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
        loss=loss,
        normalizer=normalizer,
        alpha=-1.0 if alpha is None else _number("alpha", alpha, "None, or in [0, 1]", low=0.0, high=1.0),
        gamma=_number("gamma", gamma, "finite and at least 0", low=0.0),
        margin=_number("margin", margin, "finite"),
        zero_one=loss in ("soft_margin", "hinge") and given_target.dtype.kind == "b",
    )


def overlap(
    logits: Any,
    target: Any,
    *,
    mode: Any,
    axis: Any,
    weight: Any,
    ignore_index: Any,
    squared: Any,
    from_logits: Any,
    per_sample: Any,
    reduction: Any,
    return_grad: Any,
    out_grad: Any,
    grad_output: Any,
    num_threads: Any,
) -> tuple[OverlapProblem, NDArray, float | NDArray]:
    """The problem, the weight of each class, and the upstream gradient."""
    mode = _choice("mode", mode, MODES)
    given = _floats("logits", logits)
    given_target = _array("target", target)
    if mode == "binary":
        given, given_target, out = _one_class(given, given_target, out_grad, axis)
        axis, classes = 1, 1
    else:
        axis, classes = _class_axis(given, axis)
        out = out_grad
    rows = row_shape(given, axis)
    inner_mode: Literal["multiclass", "multilabel"] = "multiclass" if mode == "multiclass" else "multilabel"
    if inner_mode == "multiclass":
        if _check_target(given_target, given.shape, rows, axis, False):
            raise AssertionError
    else:
        _numbers("target", given_target)
        if given_target.shape != given.shape:
            raise ValueError(
                f"target has shape {given_target.shape}, but mode={mode!r} needs a mask of the logits' shape "
                f"{np.shape(logits)}"
            )
    per_sample = bool(per_sample)
    if per_sample and (given.ndim < 2 or axis == 0):
        raise ValueError(
            f"per_sample needs the samples on axis 0 and the classes on another, but logits have shape {given.shape} "
            f"and class axis {axis}"
        )
    given_weight = _numbers("weight", weight)
    if given_weight is not None:
        if mode == "binary":
            raise ValueError("weight is given, but mode='binary' has one class: expected None")
        if given_weight.shape != (classes,):
            raise ValueError(
                f"weight has shape {given_weight.shape}, but {classes} classes need one entry each: shape ({classes},)"
            )
        if not (given_weight.astype(np.float64) >= 0).all() or not np.any(given_weight):
            raise ValueError("weight must hold numbers that are at least 0, and not only 0")
    reduction = _choice("reduction", reduction, REDUCTIONS)
    shape = ((given.shape[0],) if per_sample else ()) + (classes,)
    given_grad_output, upstream = _grad_output(grad_output, reduction, shape, _FLOAT64)
    _check_out_grad(out, given, {"target": given_target, "weight": given_weight, "grad_output": given_grad_output})
    problem = OverlapProblem(
        logits=_native(given),
        axis=axis,
        classes=classes,
        target=_native(given_target, contiguous=inner_mode == "multiclass"),
        mode=inner_mode,
        from_logits=bool(from_logits),
        squared=bool(squared),
        ignore_index=None if ignore_index is None else _ignore_index(ignore_index),
        per_sample=per_sample,
        want_grad=bool(return_grad) or out_grad is not None,
        out_grad=out,
        num_threads=threads(num_threads),
        user_out=out_grad,
        is_binary=mode == "binary",
    )
    weights = np.ones(classes) if given_weight is None else given_weight.astype(np.float64)
    return problem, weights, upstream


def _one_class(logits: NDArray, target: NDArray, out_grad: Any, axis: Any) -> tuple[NDArray, NDArray, Any]:
    """Binary logits, target and gradient as (N, 1, ...): one class on axis 1, which the target may lack."""
    if logits.ndim == 0:
        raise ValueError("logits have no dimensions: expected at least one")
    axis = _index("axis", axis)
    if target.shape != logits.shape and -logits.ndim <= axis < logits.ndim:
        without = row_shape(logits, axis % logits.ndim)
        if target.shape != without or logits.shape[axis] != 1:
            raise ValueError(
                f"target has shape {target.shape}, but mode='binary' needs a mask of the logits' shape {logits.shape}, "
                f"or without their axis {axis} where that has length 1"
            )
        target = target.reshape(logits.shape)
    if isinstance(out_grad, np.ndarray) and out_grad.shape != logits.shape:
        _check_output("out_grad", out_grad, logits.shape)
    out = np.expand_dims(out_grad, 1) if isinstance(out_grad, np.ndarray) else out_grad
    return np.expand_dims(logits, 1), np.expand_dims(target, 1), out


def softmax(kind: Any, logits: Any, axis: Any, num_threads: Any) -> SoftmaxProblem:
    given = _floats("logits", logits)
    axis, classes = _class_axis(given, axis)
    return SoftmaxProblem(kind, _native(given), axis, classes, threads(num_threads))


def elementwise(kind: Any, x: Any, num_threads: Any) -> MapProblem:
    return MapProblem(kind, _native(_floats("x", x)), threads(num_threads))


def raise_bad_index(problem: ClassProblem | OverlapProblem) -> None:
    """Raises IndexError for the first target that is neither a class nor ignore_index; returns where there is none."""
    target, classes, ignore = problem.target, problem.classes, problem.ignore_index
    bad = (target < 0) | (target >= classes)
    if ignore is not None:
        bad &= target != ignore
    if not np.any(bad):
        return
    position = np.unravel_index(int(np.argmax(bad)), target.shape)
    where = f"[{', '.join(str(int(i)) for i in position)}]" if position else ""
    raise IndexError(
        f"target{where} is {int(target[position])}, but logits have {classes} "
        f"{'class' if classes == 1 else 'classes'} on axis {problem.axis}: "
        f"expected 0 <= target < {classes}" + ("" if ignore is None else f", or ignore_index={ignore}")
    )


def check_probabilities(problem: ElementProblem) -> None:
    """Raises ValueError for the first probability outside [0, 1]."""
    with np.errstate(invalid="ignore"):
        bad = (problem.logits < 0) | (problem.logits > 1)
    if np.any(bad):
        position = np.unravel_index(int(np.argmax(bad)), bad.shape)
        where = f"[{', '.join(str(int(i)) for i in position)}]" if position else ""
        value = float(problem.logits[position])
        text = repr(value) if 0 <= float(f"{value:g}") <= 1 else f"{value:g}"
        raise ValueError(
            f"probs{where} is {text}, but probabilities lie in [0, 1]: for logits see binary_cross_entropy_with_logits"
        )


def check_denominator(problem: ClassProblem, denominator: float) -> None:
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


def length(name: str, value: Any) -> int:
    """The length of the first axis."""
    array = _floats(name, value)
    if array.ndim == 0:
        raise ValueError(f'{name} has no dimensions: reduction="batchmean" divides by the length of the first')
    return int(array.shape[0])


def labels(logits: Any) -> int:
    """The length of the last axis."""
    array = _floats("logits", logits)
    if array.ndim == 0:
        raise ValueError("logits have no dimensions: expected at least one, the labels")
    return int(array.shape[-1])


def last_axis(logits: Any) -> int:
    """The class axis of (N, C) or (C,) logits."""
    shape = _floats("logits", logits).shape
    if len(shape) > 2:
        raise ValueError(f"logits have shape {shape}: expected (N, C) or (C,)")
    return -1


def upstream(value: Any, reduction: Any, shape: tuple[int, ...]) -> float | NDArray:
    """The upstream gradient of a loss of this shape."""
    return _grad_output(value, _choice("reduction", reduction, REDUCTIONS), shape, _FLOAT64)[1]


def scaled(value: Any, weight: float) -> Any:
    """An upstream gradient times a number."""
    if value is None or isinstance(value, float):
        return weight if value is None else weight * value
    given = _numbers("grad_output", value)
    assert given is not None
    return weight * _float("grad_output", value) if given.ndim == 0 else weight * given.astype(np.float64)


def class_weight(value: Any, problem: OverlapProblem) -> NDArray | None:
    """The class weights of a cross-entropy, for the kernels."""
    given = _numbers("weight", value)
    if given is not None and given.shape != (problem.classes,):
        raise ValueError(
            f"weight has shape {given.shape}, but {problem.classes} classes need one entry each: shape "
            f"({problem.classes},)"
        )
    return None if given is None else _convert(given, problem.compute_dtype, contiguous=True)


def upstream_of_samples(value: Any, logits: Any, reduction: Any) -> NDArray | None:
    """For reduction "none" over samples of several labels: the upstream gradient of each label's loss, or None where
    it is the same number for all."""
    if reduction != "none":
        return None
    array = _floats("logits", logits)
    samples, upstream = _grad_output(value, reduction, array.shape[:-1], compute_dtype(array.dtype))
    every = np.empty(array.shape, compute_dtype(array.dtype))
    every[...] = (upstream if samples is None else np.asarray(upstream)[..., None]) / np.asarray(
        max(array.shape[-1], 1)
    )
    return every


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
    if not is_supported_float(array.dtype):
        raise TypeError(f"{name} must be {_FLOAT_TEXT}, not {array.dtype.name}")
    return array


def is_supported_float(dtype: np.dtype[Any]) -> bool:
    """Whether it is one of the dtypes that losses are computed of."""
    # A name takes a microsecond.
    return (dtype.kind == "f" and dtype.char in "fde") or dtype.name == "bfloat16"


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


def _ignore_index(value: Any) -> int:
    index = _index("ignore_index", value)
    if not -(2**63) <= index < 2**63:
        raise ValueError(f"ignore_index must fit in a signed 64-bit integer, not {index}")
    return index


def _margin_power(value: Any) -> int:
    power = _index("p", value)
    if power not in (1, 2):
        raise ValueError(f"p must be 1 or 2, not {power}")
    return power


def _check_label_lists(target: NDArray, shape: tuple[int, ...]) -> None:
    """multilabel_margin_loss: the classes of each row, up to the first -1."""
    if len(shape) > 2:
        raise ValueError(f"logits have shape {shape}: expected (N, C) or (C,)")
    if target.dtype.kind not in "iu":
        raise TypeError(f"target must hold class indices, padded with -1, of an integer dtype, not {target.dtype.name}")
    if target.shape != shape:
        raise ValueError(f"target has shape {target.shape}, but needs the logits' shape {shape}, padded with -1")
    classes = shape[-1]
    bad = (target.astype(np.int64) < -1) | (target >= classes)
    if bad.any():
        position = np.unravel_index(int(np.argmax(bad)), target.shape)
        raise IndexError(
            f"target[{', '.join(str(int(i)) for i in position)}] is {int(target[position])}, but logits have {classes} "
            f"classes: expected 0 <= target < {classes}, or -1 after the last"
        )


def _check_target(
    target: NDArray,
    shape: tuple[int, ...],
    row_shape: tuple[int, ...],
    axis: int,
    may_be_probabilities: bool,
) -> bool:
    """Whether target holds probabilities."""
    dtype = target.dtype
    if not may_be_probabilities and dtype.kind not in "biu":
        raise TypeError(
            f"target must be class indices of an integer dtype and shape {row_shape}, not {dtype.name}"
            + (f": for one-hot labels give target.argmax(axis={axis})" if target.shape == shape else "")
        )
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


def number(name: str, value: Any, *, low: float = -math.inf, above: float = -math.inf) -> float:
    """A finite number that is at least `low`, and above `above`."""
    bound = f" and at least {low:g}" if low > -math.inf else f" and above {above:g}" if above > -math.inf else ""
    return _number(name, value, "finite" + bound, low=low, above=above)


def counts(name: str, values: Any) -> tuple[int, ...]:
    """Numbers that are at least 1."""
    try:
        numbers_given = tuple(_index(name, value) for value in values)
    except TypeError:
        raise TypeError(f"{name} must be a sequence of integers, not {_describe(values)}") from None
    if min(numbers_given, default=1) < 1:
        raise ValueError(f"{name} must hold integers that are at least 1, not {min(numbers_given)}")
    return numbers_given


def probability(name: str, value: Any) -> float:
    """A number between 0 and 1."""
    number = _number(name, value, "in (0, 1)", above=0.0)
    if number >= 1:
        raise ValueError(f"{name} must be in (0, 1), not {number:g}")
    return number


def choice(name: str, value: Any, choices: Sequence[str]) -> str:
    return str(_choice(name, value, choices))


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
    if not is_supported_float(out.dtype):
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


def check_out_hess(out: Any, problem: ElementProblem) -> None:
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
    if np.may_share_memory(out, logits) and not _is_same_memory(out, logits) and _overlap(out, logits):
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
