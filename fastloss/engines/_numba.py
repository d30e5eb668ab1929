"""The Numba engine: compiled at first use, for each loss and dtype, and kept on disk.

Numba's threads know no fork and, with the "workqueue" layer, no second caller: so one call at a time runs in parallel,
another that comes meanwhile runs on its own thread alone, and so does every call in a forked child.
"""

from __future__ import annotations

import functools
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
from fastloss.engines import numba_elements as elements
from fastloss.engines import numba_evaluate as evaluation
from fastloss.engines import numba_kernels as kernels
from fastloss.engines import numba_margins as margins
from fastloss.engines import numba_overlap as overlap

if TYPE_CHECKING:
    from fastloss.validate import ClassProblem, ElementProblem, MapProblem, NDArray, OverlapProblem, SoftmaxProblem

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


def class_loss(problem: ClassProblem) -> tuple[float | NDArray, NDArray | None]:
    """(loss, gradient or None) of a validate.ClassProblem."""
    if problem.loss == "cross_entropy":
        return _cross_entropy(problem)
    kind = {"nll": margins.NLL, "multi_margin": margins.MULTI_MARGIN, "multilabel_margin": margins.MULTILABEL_MARGIN}

    def run(data: _Rows) -> NDArray:
        sums = np.zeros(-(-data.rows // max(1, kernels.TILE // problem.classes)))
        _run(
            margins.class_loss_serial, margins.class_loss_parallel, problem, data.z, sums, kind[problem.loss],
            data.z, data.grad, data.losses, data.target, data.weight, data.sample_weight, data.upstream,
            problem.classes, data.inner, data.rows, data.ignore, problem.power, problem.margin, data.scale,
        )  # fmt: skip
        return sums

    # Single elements of a row are read wherever they lie, but margins are loops over classes.
    return _over_classes(problem, run, few_positions=1 if problem.loss == "nll" else math.inf)


def _cross_entropy(problem: ClassProblem) -> tuple[float | NDArray, NDArray | None]:
    softcap = problem.softcap or 0.0
    smooths_unevenly = problem.label_smoothing > 0 and (problem.weight is not None or problem.focal > 0)
    general = problem.is_probabilities or softcap > 0 or smooths_unevenly

    def run(data: _Rows) -> NDArray:
        sums = np.zeros(kernels.cross_entropy_tiles(general, problem.classes, data.inner, data.rows))
        _run(
            kernels.cross_entropy_serial, kernels.cross_entropy_parallel, problem, data.z, sums, general, data.z,
            data.grad, data.losses, data.target, data.probabilities, data.weight, data.sample_weight, data.upstream,
            problem.classes, data.inner, data.rows, data.ignore, problem.label_smoothing, problem.z_loss, softcap,
            problem.focal, problem.gamma, data.scale,
        )  # fmt: skip
        return sums

    return _over_classes(problem, run)


def rowwise(kernel: Any, problem: ClassProblem, parameters: tuple[float, ...]) -> Any:
    """(loss, gradient or None) of a custom loss over an axis of classes: see numba_custom.py."""

    def run(data: _Rows) -> NDArray:
        sums = np.zeros(-(-data.rows // max(1, kernels.TILE // problem.classes)))
        _run(
            kernel.serial, kernel.parallel, problem, data.z, sums, data.z, data.grad, data.losses, data.target,
            data.weight, data.sample_weight, data.upstream, parameters, problem.classes, data.ignore, data.scale,
        )  # fmt: skip
        return sums

    return _over_classes(problem, run, few_positions=math.inf)


@dataclass
class _Rows:
    """The arrays of a loss over classes, flat; ones that are not given have no elements."""

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
    ignore: int
    scale: float


def _over_classes(
    problem: ClassProblem, run: Callable[[_Rows], NDArray], few_positions: float = FEW_POSITIONS
) -> tuple[float | NDArray, NDArray | None]:
    dtype, classes = problem.compute_dtype, problem.classes
    z, inner = _by_rows(problem.logits, problem.axis, dtype, few_positions)
    rows = z.size // classes
    target, probabilities = _NO_INDEX, _nothing(dtype)
    weight, sample_weight = _flat(problem.weight, dtype), _flat(problem.sample_weight, dtype)
    ignore = _NOT_A_TARGET
    if problem.is_probabilities:
        probabilities = _as_rows(problem.target, problem.axis, inner, dtype)
    elif problem.loss == "multilabel_margin":
        target = _as_rows(problem.target, problem.axis, inner, np.dtype(np.int64))
    else:
        target, ignore = _indices(problem)
    if problem.is_probabilities or problem.loss == "multilabel_margin":
        denominator = float(rows if problem.sample_weight is None else sample_weight.sum(dtype=np.float64))
    else:
        counted = _nothing(dtype) if problem.loss == "multi_margin" else weight
        denominator = _denominator(problem, target, ignore, counted, sample_weight)
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
    sums = run(
        _Rows(z, grad, losses, target, probabilities, weight, sample_weight, upstream, inner, rows, ignore, scale)
    )
    if is_empty:
        grad[...] = 0
    if out is not None and not np.may_share_memory(grad, out):
        _assign(out, _in_shape(grad, out.shape, problem.axis, inner))
    if problem.reduction == "none":
        return losses.reshape(problem.row_shape), out
    if is_empty:
        return (0.0 if problem.empty == "zero" else math.nan), out
    return _reduced(sums, denominator if mean else 1.0), out


_ELEMENT_KINDS = {
    "bce": elements.BCE,
    "sigmoid_focal": elements.SIGMOID_FOCAL,
    "soft_margin": elements.SOFT_MARGIN,
    "hinge": elements.HINGE,
    "kl_div": elements.KL_DIV,
    "kl_div_log": elements.KL_DIV_LOG,
}


def element_loss(problem: ElementProblem) -> tuple[float | NDArray, NDArray | None]:
    """(loss, gradient or None) of a validate.ElementProblem."""
    dtype, shape = problem.compute_dtype, problem.logits.shape
    z = _flat(problem.logits, dtype)
    y = _flat(problem.target, dtype)
    ignores = problem.ignore_index is not None
    ignore = float(np.asarray(problem.ignore_index, dtype)) if ignores else 0.0
    denominator = float(z.size - (np.count_nonzero(y == dtype.type(ignore)) if ignores else 0))
    if problem.normalizer is not None:
        denominator = problem.normalizer
    if problem.loss == "bce" and not _call(elements.are_probabilities, dtype, z):
        validate.check_probabilities(problem)
    weight = _broadcast(problem.weight, shape, dtype)
    scale, upstream = _upstream(problem.grad_output, dtype)
    mean = problem.reduction == "mean"
    if mean:
        scale = scale / denominator if denominator else 0.0
    grad, out = _gradient(problem, z)
    losses = np.empty(z.size if problem.reduction == "none" else 0, dtype)
    sums = np.zeros(-(-z.size // kernels.TILE))
    if problem.loss == "bce_with_logits":
        _run(
            kernels.binary_serial, kernels.binary_parallel, problem, z, sums, z, grad, losses, y, weight,
            _broadcast(problem.pos_weight, shape, dtype), upstream, ignores, ignore, problem.label_smoothing, scale,
        )  # fmt: skip
    else:
        label_scale, label_shift = 1.0 - problem.label_smoothing, problem.label_smoothing / 2
        if problem.zero_one:
            label_scale, label_shift = 2 * label_scale, 2 * label_shift - 1
        _run(
            elements.element_loss_serial, elements.element_loss_parallel, problem, z, sums,
            _ELEMENT_KINDS[problem.loss], z, grad, losses, y, weight, upstream, ignores, ignore, label_scale,
            label_shift, problem.alpha, problem.gamma, problem.margin, scale,
        )  # fmt: skip
    if out is not None and not np.may_share_memory(grad, out):
        _assign(out, grad.reshape(shape))
    if problem.reduction == "none":
        return losses.reshape(shape), out
    return (_reduced(sums, denominator if mean else 1.0) if denominator or not mean else math.nan), out


def evaluate(
    problem: ClassProblem, ks: tuple[int, ...], want_lse: bool
) -> tuple[float | NDArray, list[int], float, int, NDArray | None]:
    """Loss, correct targets for each k, sum of entropies, targets that count, and logsumexp: see fl.evaluate."""
    loss, _ = class_loss(problem)
    z, inner = _by_rows(problem.logits, problem.axis, problem.compute_dtype)
    target, ignore = _indices(problem)
    tiles = -(-target.size // max(1, kernels.TILE // problem.classes))
    correct, entropies, counts = np.zeros((tiles, len(ks)), np.int64), np.zeros(tiles), np.zeros(tiles, np.int64)
    lse = np.zeros(target.size if want_lse else 0, problem.compute_dtype)
    _run(
        evaluation.evaluate_serial, evaluation.evaluate_parallel, problem, z, correct, entropies, counts, z,
        target, lse, np.minimum(ks, problem.classes), problem.classes, inner, ignore,
    )  # fmt: skip
    return (
        loss, correct.sum(axis=0).tolist(), _reduced(entropies, 1.0), int(counts.sum()),
        lse.reshape(problem.row_shape) if want_lse else None,
    )  # fmt: skip


def overlap_sums(problem: OverlapProblem) -> tuple[NDArray, NDArray]:
    """Of each group and class the sums of p y, p (1 - y) and (1 - p) y, or where they are squared of p y, p (p - y) and
    y (y - p): (groups, classes, 3); and the sum of the cross-entropy and its denominator."""
    data = _overlap_arrays(problem)
    if not data.masks:
        _denominator(problem, data.target, data.ignore, data.weight, data.weight)
    spans = problem.groups * data.spans
    sums, entropies = np.zeros((spans, problem.classes, 3)), np.zeros((spans, 2))
    _run(
        overlap.overlap_sums_serial, overlap.overlap_sums_parallel, problem, data.z, sums, entropies, data.masks,
        data.z, data.target, data.labels, data.weight, data.spans, data.rows, problem.groups, data.inner, data.ignores,
        data.ignore, problem.from_logits, problem.squared, problem.cross_entropy > 0, data.focal, problem.gamma,
    )  # fmt: skip
    shape = (problem.groups, data.spans, problem.classes, 3)
    return sums.reshape(shape).sum(axis=1), entropies.sum(axis=0)


def overlap_gradient(problem: OverlapProblem, of_intersection: NDArray, of_sum: NDArray, scale: float) -> NDArray:
    """The gradient, from the loss's derivatives by the sums of p y and of p (or p^2), each (groups, classes), and the
    cross-entropy's gradient times `scale`."""
    data = _overlap_arrays(problem)
    grad, out = _gradient(problem, data.z)
    assert out is not None
    shape, float64 = (problem.groups, problem.classes), np.dtype(np.float64)
    _run(
        overlap.overlap_gradient_serial, overlap.overlap_gradient_parallel, problem, data.z,
        problem.groups * data.spans, _flat(of_intersection, float64).reshape(shape),
        _flat(of_sum, float64).reshape(shape), float(scale), grad, data.masks, data.z, data.target, data.labels,
        data.weight, data.spans, data.rows, problem.groups, data.inner, data.ignores, data.ignore, problem.from_logits,
        problem.squared, data.focal, problem.gamma,
    )  # fmt: skip
    if not np.may_share_memory(grad, out):
        _assign(out, _in_shape(grad, out.shape, problem.axis, data.inner_given))
    return out


@dataclass
class _Overlap:
    """An overlap problem's arrays, flat; ones that are not given have no elements."""

    masks: bool
    z: NDArray
    target: NDArray
    labels: NDArray
    weight: NDArray
    rows: int
    spans: int
    inner: int
    inner_given: int
    ignores: bool
    ignore: int
    focal: float


def _overlap_arrays(problem: OverlapProblem) -> _Overlap:
    dtype = problem.compute_dtype
    masks, ignores = problem.mode == "multilabel", problem.ignore_index is not None
    z, inner_given = _by_rows(problem.logits, problem.axis, dtype)
    rows = z.size // problem.classes
    target, labels, ignore = _NO_INDEX, _nothing(dtype), problem.ignore_index or 0
    if masks:
        labels = _as_rows(problem.target, problem.axis, inner_given, dtype)
    else:
        target, ignore = _indices(problem)
    # The targets of one class are neighbours in any layout.
    inner = max(1, rows // max(1, problem.groups)) if problem.classes == 1 else inner_given
    return _Overlap(
        masks, z, target, labels, _flat(problem.class_weight, dtype), rows,
        overlap.spans_a_group(rows, problem.groups), inner, inner_given, ignores, ignore,
        problem.focal if problem.gamma > 0 else 0.0,
    )  # fmt: skip


def elementwise(
    kernel: Any, problem: ElementProblem, parameters: tuple[float, ...], want_hess: bool, out_hess: NDArray | None
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
        kernel.serial, kernel.parallel, problem, z, sums, z, y, grad, hess, losses, weight, upstream, parameters,
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
        kernels.softmax_serial, kernels.softmax_parallel, problem, z, tiles, kind, z, out, values,
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
        _run(kernels.map_serial, kernels.map_parallel, problem, z, kind, z, out)
    with np.errstate(all="ignore"):
        return out.reshape(problem.x.shape).astype(problem.x.dtype, copy=False)


# ---- Running --------------------------------------------------------------------------------------------------------


def _run(serial: Any, parallel: Any, problem: Any, z: NDArray, *arguments: Any) -> None:
    count = problem.num_threads or threads.get_num_threads()
    count = min(count, max(1, z.size // ELEMENTS_A_THREAD), numba.config.NUMBA_NUM_THREADS)
    if count > 1 and not _in_child and _parallel_lock.acquire(blocking=False):
        before = numba.get_num_threads()
        try:
            numba.set_num_threads(count)
            _call(parallel, z.dtype, *arguments)
        finally:
            numba.set_num_threads(before)
            _parallel_lock.release()
    else:
        _call(serial, z.dtype, *arguments)


_compiled: set[tuple[Any, np.dtype[Any]]] = set()


def _call(kernel: Any, dtype: np.dtype[Any], *arguments: Any) -> Any:
    """Calls a kernel, which is compiled once for each dtype; where that takes a while, it says so."""
    key = kernel, dtype
    if key in _compiled:
        return kernel(*arguments)
    before = _compilations(kernel)
    note = threading.Timer(PATIENCE, lambda: _say_compiling(kernel, before, note.finished))
    note.daemon = True
    note.start()
    try:
        result = kernel(*arguments)
    finally:
        note.cancel()
    _compiled.add(key)
    return result


def _compilations(kernel: Any) -> int:
    return sum(kernel.stats.cache_misses.values())


def _say_compiling(kernel: Any, before: int, done: threading.Event) -> None:
    while _compilations(kernel) == before:  # what an earlier process compiled is being loaded, which may take as long
        if done.wait(PATIENCE):
            return
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


@functools.cache
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
        inner = 1
    return _as_rows(array, axis, inner, dtype), inner


def _as_rows(array: NDArray, axis: int, inner: int, dtype: np.dtype[Any]) -> NDArray:
    """An array of the logits' shape in the order that _by_rows gave them."""
    return _flat(array if inner > 1 or axis == array.ndim - 1 else np.moveaxis(array, axis, -1), dtype)


def _in_shape(flat: NDArray, shape: tuple[int, ...], axis: int, inner: int) -> NDArray:
    """What _by_rows made flat, in its shape again."""
    if inner > 1:
        return flat.reshape(shape)
    moved = shape[:axis] + shape[axis + 1 :] + (shape[axis],)
    return np.moveaxis(flat.reshape(moved), -1, axis)


# Stands for ignore_index where nothing is ignored: check_targets found that no target is negative.
_NOT_A_TARGET = -1


def _indices(problem: ClassProblem | OverlapProblem) -> tuple[NDArray, int]:
    """The class indices, flat, and the one that is ignored."""
    target, ignore = problem.target, problem.ignore_index
    if target.dtype == np.uint64:
        validate.raise_bad_index(problem)  # 2^64 - 100 would become -100
        if ignore is not None and ignore >= 0:
            target = np.where(target == ignore, np.uint64(ignore), target)
    return _read_only(target.astype(np.int64, copy=False).reshape(-1)), _NOT_A_TARGET if ignore is None else ignore


def _denominator(
    problem: ClassProblem | OverlapProblem, target: NDArray, ignore: int, weight: NDArray, sample_weight: NDArray
) -> float:
    """The sum of the weights of the targets that count; IndexError where one is neither a class nor ignored."""
    ignores = problem.ignore_index is not None
    arguments = target, problem.classes, ignores, ignore, weight, sample_weight
    denominator = float(_call(kernels.check_targets, weight.dtype, *arguments))
    if math.isnan(denominator):
        validate.raise_bad_index(problem)
    return denominator


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
        and logits.flags.c_contiguous
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
