"""Plain NumPy in float64: slow and clear, what a reader checks against the formulas, and tests compare with."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from fastloss import validate

if TYPE_CHECKING:
    from fastloss.validate import BinaryProblem, CrossEntropyProblem, MapProblem, NDArray, SoftmaxProblem


def cross_entropy(problem: CrossEntropyProblem) -> tuple[float | NDArray, NDArray | None]:
    """loss = sample_weight * (sum_c a_c (lse - z_c) + z_loss * lse^2), a_c = weight_c * q_c: see fastloss.h."""
    validate_targets(problem)
    with np.errstate(all="ignore"):
        x = _rows(problem.logits, problem.axis)
        counts, q = _distribution(problem)
        n, classes = x.shape
        weight = np.ones(classes) if problem.weight is None else problem.weight.astype(np.float64)
        sample_weight = _one_a_row(1.0 if problem.sample_weight is None else problem.sample_weight, n)
        cap = problem.softcap
        z = x if cap is None else cap * np.tanh(x / cap)
        z, undefined = _poison(z)

        # With A = sum_c a_c the gradient is A p_c - a_c. As the p_c sum to 1, that is also
        # p_c (sum of the other a) - a_c (1 - p_c), where nothing cancels for a confident row.
        a = sample_weight[:, None] * weight * ((1 - problem.label_smoothing) * q + problem.label_smoothing / classes)
        gap, p, not_p, lse = _softmax(z)
        losses = np.where(a == 0, 0, a * gap).sum(axis=1)
        grad = p * _others(a) - a * not_p
        if problem.z_loss:
            losses += sample_weight * problem.z_loss * lse**2
            grad += (sample_weight * 2 * problem.z_loss * lse)[:, None] * p
        if cap is not None:
            grad *= _tanh_slope(x / cap)
        losses[undefined] = np.nan
        grad[undefined] = np.nan
        losses[~counts] = 0

        denominator = 1.0
        if problem.reduction == "mean":
            denominator = _denominator(problem) if problem.normalizer is None else problem.normalizer
        is_empty = problem.reduction == "mean" and denominator == 0
        grad *= _one_a_row(problem.grad_output, n)[:, None] / (1.0 if is_empty else denominator)
        grad[~counts] = 0
        if is_empty:
            grad[...] = 0

        loss: float | NDArray
        if problem.reduction == "none":
            loss = losses.reshape(problem.row_shape).astype(problem.compute_dtype)
        elif is_empty:
            loss = 0.0 if problem.empty == "zero" else math.nan
        else:
            loss = float(losses.sum()) / denominator
        if not problem.want_grad:
            return loss, None
        moved = problem.row_shape + (classes,)
        return loss, _store(np.moveaxis(grad.reshape(moved), -1, problem.axis), problem.logits, problem.out_grad)


def binary_cross_entropy_with_logits(problem: BinaryProblem) -> tuple[float | NDArray, NDArray | None]:
    """loss = weight * (pos_weight * y * softplus(-z) + (1 - y) * softplus(z)): see fastloss.h."""
    with np.errstate(all="ignore"):
        z = problem.logits.astype(np.float64)
        target = problem.target.astype(np.float64)
        counts = np.asarray(True if problem.ignore_index is None else target != problem.ignore_index)
        y = target * (1 - problem.label_smoothing) + problem.label_smoothing / 2
        weight = 1.0 if problem.weight is None else problem.weight.astype(np.float64)
        pos_weight = 1.0 if problem.pos_weight is None else problem.pos_weight.astype(np.float64)
        yes = weight * pos_weight * y
        no = weight * (1 - y)

        losses = _product(yes, _softplus(-z)) + _product(no, _softplus(z))
        losses = np.where(counts, np.where(np.isnan(z), np.nan, losses), 0)
        counted = np.count_nonzero(np.broadcast_to(counts, z.shape))
        denominator = float(counted) if problem.reduction == "mean" else 1.0
        upstream = problem.grad_output / max(denominator, 1.0)
        grad = np.where(counts, (no * _sigmoid(z) - yes * _sigmoid(-z)) * upstream, 0)

        loss: float | NDArray
        if problem.reduction == "none":
            loss = losses.astype(problem.compute_dtype)
        else:
            loss = float(losses.sum()) / denominator if denominator else math.nan
        return loss, _store(grad, problem.logits, problem.out_grad) if problem.want_grad else None


def elementwise(
    formula: Callable[..., Any], problem: BinaryProblem, parameters: tuple[float, ...], want_hess: bool, out_hess: Any
) -> tuple[float | NDArray, NDArray | None, NDArray | None]:
    """A custom loss of each element: formula(z, y, parameters) gives loss, first and second derivative."""
    with np.errstate(all="ignore"):
        z = problem.logits.astype(np.float64)
        weight = 1.0 if problem.weight is None else problem.weight.astype(np.float64)
        results = formula(z, problem.target.astype(np.float64), parameters)
        loss, slope, curve = (_product(np.asarray(weight), np.broadcast_to(each, z.shape)) for each in results)
        upstream = problem.grad_output / (max(z.size, 1) if problem.reduction == "mean" else 1)
        grad = _store(slope * upstream, problem.logits, problem.out_grad) if problem.want_grad else None
        hess = _store(curve * upstream, problem.logits, out_hess) if want_hess else None
        if problem.reduction == "none":
            return loss.astype(problem.compute_dtype), grad, hess
        total = float(loss.sum())
        return (total if problem.reduction == "sum" else total / z.size if z.size else math.nan), grad, hess


def rowwise(
    formula: Callable[..., Any], problem: CrossEntropyProblem, parameters: tuple[float, ...]
) -> tuple[float | NDArray, NDArray | None]:
    """A custom loss of each row: formula(z_target, lse, log_p, p, not_p, parameters) gives the loss, the factor of p_c
    in the gradient of the other classes, and the target's gradient."""
    validate_targets(problem)
    with np.errstate(all="ignore"):
        z, undefined = _poison(_rows(problem.logits, problem.axis))
        n, classes = z.shape
        counts = _counts(problem)
        rows, y = np.arange(n), np.where(counts, problem.target.reshape(-1).astype(np.int64), 0)
        gap, p, not_p, lse = _softmax(z)
        loss, others, at_target = (
            np.broadcast_to(each, (n,))
            for each in formula(
                z[rows, y], lse, -gap[rows, y], p[rows, y], np.maximum(not_p[rows, y], 2.0**-1022), parameters
            )
        )
        weight = _one_a_row(1.0 if problem.sample_weight is None else problem.sample_weight, n)
        if problem.weight is not None:
            weight = weight * problem.weight.astype(np.float64)[y]
        losses = np.where(counts, np.where(undefined, np.nan, _product(weight, loss)), 0)
        denominator = 1.0
        if problem.reduction == "mean":
            denominator = _denominator(problem) if problem.normalizer is None else problem.normalizer
        grad = others[:, None] * p
        grad[rows, y] = at_target
        grad[undefined] = np.nan
        upstream = weight * _one_a_row(problem.grad_output, n) / (denominator or 1.0)
        grad = np.where(counts[:, None], grad * upstream[:, None], 0) * (denominator != 0)
        out = None
        if problem.want_grad:
            moved = problem.row_shape + (classes,)
            out = _store(np.moveaxis(grad.reshape(moved), -1, problem.axis), problem.logits, problem.out_grad)
        if problem.reduction == "none":
            return losses.reshape(problem.row_shape).astype(problem.compute_dtype), out
        if denominator == 0:
            return (0.0 if problem.empty == "zero" else math.nan), out
        return float(losses.sum()) / denominator, out


def run_formula(source: str, *arguments: Any) -> Any:
    """The generated code of a custom loss, on float64 arrays."""
    namespace: dict[str, Any] = dict(_FORMULA_FUNCTIONS)
    exec(source, namespace)
    return namespace["element"](*arguments)


def softmax(problem: SoftmaxProblem) -> NDArray:
    """softmax, log_softmax, logsumexp and entropy over the class axis."""
    with np.errstate(all="ignore"):
        z, undefined = _poison(_rows(problem.logits, problem.axis))
        gap, p, _, lse = _softmax(z)
        if problem.kind in ("logsumexp", "entropy"):
            values = lse if problem.kind == "logsumexp" else _product(p, gap).sum(axis=1)
            values[undefined] = np.nan
            return values.reshape(problem.row_shape).astype(problem.compute_dtype)
        values = p if problem.kind == "softmax" else -gap
        values[undefined] = np.nan
        moved = problem.row_shape + (problem.classes,)
        return _store(np.moveaxis(values.reshape(moved), -1, problem.axis), problem.logits, None)


def map(problem: MapProblem) -> NDArray:
    """sigmoid, log_sigmoid = -softplus(-x), and softplus, of each element."""
    with np.errstate(all="ignore"):
        x = problem.x.astype(np.float64)
        if problem.kind == "sigmoid":
            values = _sigmoid(x)
        elif problem.kind == "log_sigmoid":
            values = -_softplus(-x)
        else:
            values = _softplus(x)
        return _store(values, problem.x, None)


def validate_targets(problem: CrossEntropyProblem) -> None:
    if not problem.is_probabilities:
        validate.raise_bad_index(problem)
    if problem.empty == "raise":
        validate.check_denominator(problem, _denominator(problem))


def _rows(array: NDArray, axis: int) -> NDArray:
    """(rows, classes) in float64: the reader need not think of axes and strides after this."""
    moved = np.moveaxis(array, axis, -1)
    return moved.reshape(-1, array.shape[axis]).astype(np.float64)


def _one_a_row(value: float | NDArray, n: int) -> NDArray:
    return np.broadcast_to(np.asarray(value, np.float64).reshape(-1), (n,))


def _counts(problem: CrossEntropyProblem) -> NDArray:
    """Which rows are not ignored."""
    if problem.is_probabilities:
        return np.ones(math.prod(problem.row_shape), bool)
    counts: NDArray = problem.target.reshape(-1) != problem.ignore_index
    return counts


def _distribution(problem: CrossEntropyProblem) -> tuple[NDArray, NDArray]:
    """Which rows count, and the target distribution of each, before smoothing."""
    counts = _counts(problem)
    if problem.is_probabilities:
        return counts, _rows(problem.target, problem.axis)
    q = np.zeros((counts.size, problem.classes))
    rows = np.flatnonzero(counts)
    q[rows, problem.target.reshape(-1)[rows].astype(np.int64)] = 1
    return counts, q


def _denominator(problem: CrossEntropyProblem) -> float:
    counts = _counts(problem)
    weights = _one_a_row(1.0 if problem.sample_weight is None else problem.sample_weight, counts.size)[counts]
    if problem.weight is not None and not problem.is_probabilities:
        target = problem.target.reshape(-1)[counts].astype(np.int64)
        weights = weights * problem.weight.astype(np.float64)[target]
    return float(weights.sum())


def _poison(z: NDArray) -> tuple[NDArray, NDArray]:
    """Rows without a softmax hold NaN throughout: those with NaN, with +inf, or with nothing but -inf."""
    undefined = np.asarray(np.isnan(z).any(axis=1) | np.isposinf(z).any(axis=1) | np.isneginf(z).all(axis=1))
    return np.where(undefined[:, None], np.nan, z), undefined


def _softmax(z: NDArray) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """lse - z_c, p_c and 1 - p_c, each with all its digits, and lse."""
    m = z.max(axis=1, keepdims=True)
    e = np.exp(z - m)
    rest = _others(e)
    beside_top = np.take_along_axis(rest, z.argmax(axis=1)[:, None], axis=1)
    log_sum = np.log1p(beside_top)
    return (m - z) + log_sum, e / (1 + beside_top), rest / (1 + beside_top), (m + log_sum)[:, 0]


def _others(values: NDArray) -> NDArray:
    """For each class the sum over the other classes, by adding only: sum - value would cancel."""
    others = np.zeros_like(values)
    others[:, 1:] = np.cumsum(values[:, :-1], axis=1)
    others[:, :-1] += np.cumsum(values[:, :0:-1], axis=1)[:, ::-1]
    return others


def _product(coefficient: NDArray, value: NDArray) -> NDArray:
    """coefficient * value, where nothing times infinity is nothing."""
    return np.where(coefficient == 0, 0, coefficient * value)


def _tanh_slope(u: NDArray) -> NDArray:
    """1 - tanh(u)^2, without the cancellation."""
    decay = np.exp(-2 * np.abs(u))
    slope: NDArray = 4 * decay / (1 + decay) ** 2
    return slope


def _softplus(x: NDArray) -> NDArray:
    """log(1 + exp(x))."""
    return np.asarray(np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))))


def _sigmoid(x: NDArray) -> NDArray:
    """1 / (1 + exp(-x))."""
    decay = np.exp(-np.abs(x))
    return np.asarray(np.where(x < 0, decay, 1) / (1 + decay))


_FORMULA_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "as_real": lambda value, like: np.float64(value),
    "exp": np.exp,
    "log": np.log,
    "log1p": np.log1p,
    "sqrt": np.sqrt,
    "tanh": np.tanh,
    "tanh_slope": _tanh_slope,
    "sigmoid": _sigmoid,
    "softplus": _softplus,
    "log_sigmoid": lambda x: -_softplus(-x),
    "absolute": np.abs,
    "sign": np.sign,
    "power": np.power,
    "power_slope": lambda x, y: np.where(np.equal(y, 0), 0, y * np.power(x, y - 1)),
    "select_less": lambda a, b, x, y: np.where(a < b, x, y),
    "select_less_equal": lambda a, b, x, y: np.where(a <= b, x, y),
}


def _store(values: NDArray, like: NDArray, out: NDArray | None) -> NDArray:
    if out is None:
        out = np.empty(like.shape, like.dtype)
    out[...] = values
    return out
