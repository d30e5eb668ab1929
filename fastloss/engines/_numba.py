"""The Numba engine: compiled at first use, for each loss and dtype, and kept on disk.

Numba's threads know no fork and, with the "workqueue" layer, no second caller: so one call at a time runs in parallel,
another that comes meanwhile runs on its own thread alone, and so does every call in a forked child.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numba
import numpy as np

from fastloss import threads, validate
from fastloss.engines import numba_kernels as kernels

if TYPE_CHECKING:
    from fastloss.validate import BinaryProblem, CrossEntropyProblem, MapProblem, NDArray, SoftmaxProblem

# Elements a thread at least, as in the Cython engine: less work is done sooner than shared.
ELEMENTS_A_THREAD = 16384
# Fewer neighbouring positions than this are not worth loops over them: their classes are brought together.
FEW_POSITIONS = 64
# Seconds that a first call may take before it says why.
PATIENCE = 0.5

_parallel_lock = threading.Lock()
_in_child = False


def _after_fork() -> None:
    global _in_child, _parallel_lock
    _in_child = True
    _parallel_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def cross_entropy(problem: CrossEntropyProblem) -> tuple[float | NDArray, NDArray | None]:
    """(loss, gradient or None) of a validate.CrossEntropyProblem."""
    softcap = problem.softcap or 0.0
    general = problem.is_probabilities or softcap > 0 or (problem.weight is not None and problem.label_smoothing > 0)

    def run(data: _Rows) -> NDArray:
        sums = np.zeros(kernels.cross_entropy_tiles(general, problem.classes, data.inner, data.rows))
        _run(
            kernels.cross_entropy_serial, kernels.cross_entropy_parallel, problem, data.z.size, sums, general, data.z,
            data.grad, data.losses, data.target, data.probabilities, data.weight, data.sample_weight, data.upstream,
            problem.classes, data.inner, data.rows, problem.ignore_index, problem.label_smoothing, problem.z_loss,
            softcap, data.scale,
        )  # fmt: skip
        return sums

    return _over_classes(problem, run)


def rowwise(kernel: Any, problem: CrossEntropyProblem, parameters: tuple[float, ...]) -> Any:
    """(loss, gradient or None) of a custom loss over an axis of classes: see numba_custom.py."""

    def run(data: _Rows) -> NDArray:
        sums = np.zeros(-(-data.rows // max(1, kernels.TILE // problem.classes)))
        _run(
            kernel.serial, kernel.parallel, problem, data.z.size, sums, data.z, data.grad, data.losses, data.target,
            data.weight, data.sample_weight, data.upstream, parameters, problem.classes, problem.ignore_index,
            data.scale,
        )  # fmt: skip
        return sums

    return _over_classes(problem, run, few_positions=math.inf)


@dataclass
class _Rows:
    """A cross-entropy problem's arrays, flat; ones that are not given have no elements."""

    z: NDArray
    grad: NDArray
    losses: NDArray
    target: NDArray
    probabilities: NDArray
    weight: NDArray
    sample_weight: NDArray
    upstream: NDArray
    inner: int
    rows: int
    scale: float


def _over_classes(
    problem: CrossEntropyProblem, run: Callable[[_Rows], NDArray], few_positions: float = FEW_POSITIONS
) -> tuple[float | NDArray, NDArray | None]:
    dtype, classes = problem.compute_dtype, problem.classes
    z, inner = _by_rows(problem.logits, problem.axis, dtype, few_positions)
    rows = z.size // classes
    target, probabilities = _NO_INDEX, _nothing(dtype)
    weight, sample_weight = _flat(problem.weight, dtype), _flat(problem.sample_weight, dtype)
    if problem.is_probabilities:
        probabilities, _ = _by_rows(problem.target, problem.axis, dtype, few_positions)
        denominator = float(rows if problem.sample_weight is None else sample_weight.sum(dtype=np.float64))
    else:
        target = _read_only(_indices(problem))
        denominator = _call(kernels.check_targets, target, classes, problem.ignore_index, weight, sample_weight)
        if math.isnan(denominator):
            validate.raise_bad_index(problem)
    validate.check_denominator(problem, denominator)
    if problem.normalizer is not None:
        denominator = problem.normalizer
    mean = problem.reduction == "mean"
    is_empty = mean and denominator == 0

    grad, out = _gradient(problem, z)
    losses = np.empty(rows if problem.reduction == "none" else 0, dtype)
    scale, upstream = _upstream(problem.grad_output, dtype)
    if mean:
        scale = 0.0 if is_empty else scale / denominator
    sums = run(_Rows(z, grad, losses, target, probabilities, weight, sample_weight, upstream, inner, rows, scale))
    if is_empty:
        grad[...] = 0
    if out is not None and not np.may_share_memory(grad, out):
        _assign(out, _in_shape(grad, out.shape, problem.axis, inner))
    if problem.reduction == "none":
        return losses.reshape(problem.row_shape), out
    if is_empty:
        return (0.0 if problem.empty == "zero" else math.nan), out
    return _reduced(sums, denominator if mean else 1.0), out


def binary_cross_entropy_with_logits(problem: BinaryProblem) -> tuple[float | NDArray, NDArray | None]:
    """(loss, gradient or None) of a validate.BinaryProblem."""
    dtype, shape = problem.compute_dtype, problem.logits.shape
    z = _flat(problem.logits, dtype)
    y = _flat(problem.target, dtype)
    ignores = problem.ignore_index is not None
    ignore = float(np.asarray(problem.ignore_index, dtype)) if ignores else 0.0
    denominator = float(z.size - (np.count_nonzero(y == dtype.type(ignore)) if ignores else 0))
    weight = _broadcast(problem.weight, shape, dtype)
    pos_weight = _broadcast(problem.pos_weight, shape, dtype)
    scale, upstream = _upstream(problem.grad_output, dtype)
    mean = problem.reduction == "mean"
    if mean:
        scale = scale / denominator if denominator else 0.0
    grad, out = _gradient(problem, z)
    losses = np.empty(z.size if problem.reduction == "none" else 0, dtype)
    sums = np.zeros(-(-z.size // kernels.TILE))
    _run(
        kernels.binary_serial, kernels.binary_parallel, problem, z.size, sums, z, grad, losses, y, weight, pos_weight,
        upstream, ignores, ignore, problem.label_smoothing, scale,
    )  # fmt: skip
    if out is not None and not np.may_share_memory(grad, out):
        _assign(out, grad.reshape(shape))
    if problem.reduction == "none":
        return losses.reshape(shape), out
    return (_reduced(sums, denominator if mean else 1.0) if denominator or not mean else math.nan), out


def elementwise(
    kernel: Any, problem: BinaryProblem, parameters: tuple[float, ...], want_hess: bool, out_hess: NDArray | None
) -> tuple[float | NDArray, NDArray | None, NDArray | None]:
    """(loss, gradient or None, second derivative or None) of a custom loss: see numba_custom.py."""
    dtype, shape = problem.compute_dtype, problem.logits.shape
    z, y = _flat(problem.logits, dtype), _flat(problem.target, dtype)
    weight = _broadcast(problem.weight, shape, dtype)
    scale, upstream = _upstream(problem.grad_output, dtype)
    mean = problem.reduction == "mean"
    if mean:
        scale = scale / z.size if z.size else 0.0
    grad, out = _gradient(problem, z)
    hess = np.empty(z.size if want_hess else 0, dtype)
    losses = np.empty(z.size if problem.reduction == "none" else 0, dtype)
    sums = np.zeros(-(-z.size // kernels.TILE))
    _run(
        kernel.serial, kernel.parallel, problem, z.size, sums, z, y, grad, hess, losses, weight, upstream, parameters,
        scale,
    )  # fmt: skip
    if out is not None and not np.may_share_memory(grad, out):
        _assign(out, grad.reshape(shape))
    if want_hess:
        out_hess = np.empty(shape, problem.logits.dtype) if out_hess is None else out_hess
        _assign(out_hess, hess.reshape(shape))
    if problem.reduction == "none":
        return losses.reshape(shape), out, out_hess
    total = _reduced(sums, float(z.size) if mean else 1.0) if z.size or not mean else math.nan
    return total, out, out_hess


def _reduced(sums: NDArray, denominator: float) -> float:
    total = 0.0
    for tile in sums.tolist():  # in their order
        total += tile
    return float(total / denominator)


def softmax(problem: SoftmaxProblem) -> NDArray:
    """The result of a validate.SoftmaxProblem."""
    dtype = problem.compute_dtype
    z, inner = _by_rows(problem.logits, problem.axis, dtype)
    rows = z.size // problem.classes
    kind = {
        "softmax": kernels.SOFTMAX,
        "log_softmax": kernels.LOG_SOFTMAX,
        "logsumexp": kernels.LOGSUMEXP,
        "entropy": kernels.ENTROPY,
    }[problem.kind]
    per_row = problem.kind in ("logsumexp", "entropy")
    out = np.empty(0 if per_row else z.size, dtype)
    values = np.empty(rows if per_row else 0, dtype)
    tiles = -(-rows // max(1, kernels.TILE // problem.classes))
    _run(
        kernels.softmax_serial, kernels.softmax_parallel, problem, z.size, tiles, kind, z, out, values,
        problem.classes, inner, rows,
    )  # fmt: skip
    if per_row:
        return values.reshape(problem.row_shape)
    result = np.empty(problem.logits.shape, problem.logits.dtype)
    _assign(result, _in_shape(out, problem.logits.shape, problem.axis, inner))
    return result


def map(problem: MapProblem) -> NDArray:
    """The result of a validate.MapProblem."""
    dtype = validate.compute_dtype(problem.x.dtype)
    z = _flat(problem.x, dtype)
    out = np.empty(z.size, dtype)
    kind = {"sigmoid": kernels.SIGMOID, "log_sigmoid": kernels.LOG_SIGMOID, "softplus": kernels.SOFTPLUS}[problem.kind]
    if z.size:
        _run(kernels.map_serial, kernels.map_parallel, problem, z.size, kind, z, out)
    with np.errstate(all="ignore"):
        return out.reshape(problem.x.shape).astype(problem.x.dtype, copy=False)


# ---- Running --------------------------------------------------------------------------------------------------------


def _run(serial: Any, parallel: Any, problem: Any, elements: int, *arguments: Any) -> None:
    count = problem.num_threads or threads.get_num_threads()
    count = min(count, max(1, elements // ELEMENTS_A_THREAD), numba.config.NUMBA_NUM_THREADS)
    if count > 1 and not _in_child and _parallel_lock.acquire(blocking=False):
        before = numba.get_num_threads()
        try:
            numba.set_num_threads(count)
            _call(parallel, *arguments)
        finally:
            numba.set_num_threads(before)
            _parallel_lock.release()
    else:
        _call(serial, *arguments)


_compiled: set[tuple[Any, ...]] = set()


def _call(kernel: Any, *arguments: Any) -> Any:
    """Calls a kernel; one that has to be compiled first says so, where that takes a while."""
    key = (kernel, *(getattr(a, "dtype", None) for a in arguments))
    if key in _compiled:
        return kernel(*arguments)
    note = threading.Timer(PATIENCE, _say_compiling, [kernel])
    note.daemon = True
    note.start()
    try:
        result = kernel(*arguments)
    finally:
        note.cancel()
    _compiled.add(key)
    return result


def _say_compiling(kernel: Any) -> None:
    if kernel._cache is not None and type(kernel._cache).__name__ != "NullCache":
        what, how_long = kernel.py_func.__name__.removesuffix("_serial").removesuffix("_parallel"), "is kept on disk"
    else:
        what, how_long = "a custom loss", "lasts as long as this process"
    print(f"fastloss: compiling {what} with Numba; the result {how_long}", file=sys.stderr)


# ---- Arrays ---------------------------------------------------------------------------------------------------------


def _read_only(array: NDArray) -> NDArray:
    """All inputs are, so that Numba compiles for one type of array."""
    view = array.view()
    view.flags.writeable = False
    return view


_NO_INDEX = _read_only(np.empty(0, np.int64))


def _nothing(dtype: np.dtype[Any]) -> NDArray:
    """What stands for an array that is not given."""
    return _read_only(np.empty(0, dtype))


def _flat(array: NDArray | None, dtype: np.dtype[Any]) -> NDArray:
    if array is None:
        return _nothing(dtype)
    with np.errstate(all="ignore"):
        return _read_only(np.ascontiguousarray(array, dtype).reshape(-1))


def _broadcast(array: NDArray | None, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray:
    return _nothing(dtype) if array is None else _flat(np.broadcast_to(array, shape), dtype)


def _by_rows(
    array: NDArray, axis: int, dtype: np.dtype[Any], few_positions: float = FEW_POSITIONS
) -> tuple[NDArray, int]:
    """(outer, classes, inner) as a flat array, and inner."""
    inner = math.prod(array.shape[axis + 1 :])
    if inner < few_positions or (inner > 1 and not array.flags.c_contiguous):
        array, inner = np.moveaxis(array, axis, -1), 1
    return _flat(array, dtype), inner


def _in_shape(flat: NDArray, shape: tuple[int, ...], axis: int, inner: int) -> NDArray:
    """What _by_rows made flat, in its shape again."""
    if inner > 1:
        return flat.reshape(shape)
    moved = shape[:axis] + shape[axis + 1 :] + (shape[axis],)
    return np.moveaxis(flat.reshape(moved), -1, axis)


def _indices(problem: CrossEntropyProblem) -> NDArray:
    target = problem.target
    if target.dtype == np.uint64:
        validate.raise_bad_index(problem)  # 2^64 - 100 would become -100
        if problem.ignore_index >= 0:
            target = np.where(target == problem.ignore_index, np.uint64(problem.ignore_index), target)
    return target.astype(np.int64, copy=False).reshape(-1)


def _upstream(grad_output: float | NDArray, dtype: np.dtype[Any]) -> tuple[float, NDArray]:
    if isinstance(grad_output, float):
        return grad_output, _nothing(dtype)
    return 1.0, _flat(grad_output, dtype)


def _new(problem: Any) -> NDArray:
    return np.empty(problem.logits.shape, problem.logits.dtype)


def _gradient(problem: Any, z: NDArray) -> tuple[NDArray, NDArray | None]:
    """A flat array for the gradient, and the user's array: the same memory where its layout is that of z."""
    if not problem.want_grad:
        return np.empty(0, z.dtype), None
    out = problem.out_grad
    if out is None:
        out = _new(problem)
    logits = problem.logits
    direct = (
        out.dtype == z.dtype == logits.dtype
        and out.flags.c_contiguous
        and out.flags.aligned
        and out.dtype.isnative
        and z.base is not None
        and np.may_share_memory(z, logits)
    )
    return (out.reshape(-1) if direct else np.empty(z.size, z.dtype)), out


def _assign(out: NDArray, values: NDArray) -> None:
    with np.errstate(all="ignore"):
        out[...] = values
