"""Plain NumPy in float64: slow and clear, what a reader checks against the formulas, and tests compare with."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from fastloss import validate

if TYPE_CHECKING:
    from fastloss.validate import ClassProblem, ElementProblem, MapProblem, NDArray, OverlapProblem, SoftmaxProblem


def class_loss(problem: ClassProblem) -> tuple[float | NDArray, NDArray | None]:
    """The losses over an axis of classes: each kind gives the losses of rows, and their gradients."""
    validate_targets(problem)
    with np.errstate(all="ignore"):
        x = _rows(problem.logits, problem.axis)
        counts = _counts(problem)
        sample_weight = _one_a_row(1.0 if problem.sample_weight is None else problem.sample_weight, len(x))
        losses, grad = {
            "cross_entropy": _cross_entropy,
            "nll": _nll,
            "multi_margin": _multi_margin,
            "multilabel_margin": _multilabel_margin,
        }[problem.loss](problem, x)
        losses = np.where(counts, _weighted(sample_weight, losses), 0)
        denominator = _denominator(problem) if problem.normalizer is None else problem.normalizer
        if problem.reduction != "mean":
            denominator = 1.0
        upstream = sample_weight * _one_a_row(problem.grad_output, len(x)) / (denominator or 1.0)
        grad = np.where(counts[:, None], grad * upstream[:, None], 0) * (denominator != 0)
        grad = np.where(counts[:, None] & (denominator != 0), grad, 0)

        loss: float | NDArray
        if problem.reduction == "none":
            loss = losses.reshape(problem.row_shape).astype(problem.compute_dtype)
        elif denominator == 0:
            loss = 0.0 if problem.empty == "zero" else math.nan
        else:
            loss = float(losses.sum()) / denominator
        if not problem.want_grad:
            return loss, None
        moved = problem.row_shape + (problem.classes,)
        return loss, _store(np.moveaxis(grad.reshape(moved), -1, problem.axis), problem.logits, problem.out_grad)


def _cross_entropy(problem: ClassProblem, x: NDArray) -> tuple[NDArray, NDArray]:
    """sum_c a_c f(p_c) (lse - z_c) + z_loss * lse^2, a_c = weight_c * q_c, f(p) = (1 - focal) + focal (1 - p)^gamma."""
    classes, cap = problem.classes, problem.softcap
    q = _distribution(problem)
    z, undefined = _poison(x if cap is None else cap * np.tanh(x / cap))
    weight = np.ones(classes) if problem.weight is None else problem.weight.astype(np.float64)
    a = weight * ((1 - problem.label_smoothing) * q + problem.label_smoothing / classes)
    gap, p, not_p, lse = _softmax(z)
    share, gamma = problem.focal, problem.gamma
    # d/dz_k of f(p_c) (lse - z_c) is h_c (p_k - [c = k]), with h = f(p) - p f'(p) log(p): 1 where there is no focus.
    focus, h = np.ones_like(p), np.ones_like(p)
    if share:
        power = not_p**gamma
        focus = (1 - share) + share * power
        # gap / not_p tends to 1 where both vanish.
        h = focus + share * gamma * power * _product(p, np.where(not_p < _TINY, 1, gap / np.maximum(not_p, _TINY)))
    losses = np.where(a == 0, 0, a * focus * gap).sum(axis=1)
    # With A = sum_c a_c h_c the gradient is A p_c - a_c h_c. As the p_c sum to 1, that is also
    # p_c (sum of the other a h) - a_c h_c (1 - p_c), where nothing cancels for a confident row.
    a = _product(a, h)
    grad = p * _others(a) - a * not_p
    if problem.z_loss:
        losses += problem.z_loss * lse**2
        grad += (2 * problem.z_loss * lse)[:, None] * p
    if cap is not None:
        grad *= _tanh_slope(x / cap)
    losses[undefined] = np.nan
    grad[undefined] = np.nan
    return losses, grad


def _nll(problem: ClassProblem, x: NDArray) -> tuple[NDArray, NDArray]:
    """-weight_y x_y."""
    a = _distribution(problem) * (1.0 if problem.weight is None else problem.weight.astype(np.float64))
    return np.where(a == 0, 0, -a * x).sum(axis=1), 0 - a


def _multi_margin(problem: ClassProblem, x: NDArray) -> tuple[NDArray, NDArray]:
    """weight_y / C * sum_{c != y} max(0, margin - z_y + z_c)^p."""
    target = problem.target.reshape(-1).astype(np.int64)
    rows = np.arange(len(x))
    factor = (
        1 / problem.classes * (np.ones(len(x)) if problem.weight is None else problem.weight.astype(np.float64)[target])
    )
    violation = problem.margin - x[rows, target][:, None] + x
    violation = np.where(violation > 0, violation, np.where(np.isnan(violation), np.nan, 0))
    violation[rows, target] = 0
    slope = problem.power * np.where(violation > 0, violation ** (problem.power - 1), violation) * factor[:, None]
    slope[rows, target] = -slope.sum(axis=1)
    losses = factor * (violation**problem.power).sum(axis=1)
    slope[np.isnan(losses)] = np.nan
    return losses, slope


def _multilabel_margin(problem: ClassProblem, x: NDArray) -> tuple[NDArray, NDArray]:
    """1 / C * sum over labels y and classes c that are none of max(0, 1 - z_y + z_c)."""
    losses, grad = np.zeros(len(x)), np.zeros(x.shape)
    for row, labels in enumerate(problem.target.reshape(x.shape).astype(np.int64)):
        end = np.flatnonzero(labels < 0)
        labels = labels[: end[0]] if end.size else labels
        others = np.setdiff1d(np.arange(problem.classes), labels)
        violation = 1 - x[row, labels][:, None] + x[row, others]
        violation = np.where(violation > 0, violation, np.where(np.isnan(violation), np.nan, 0))
        slope = np.where(violation > 0, 1.0, violation) / problem.classes
        losses[row] = violation.sum() / problem.classes
        grad[row, others] += slope.sum(axis=0)
        np.add.at(grad[row], labels, -slope.sum(axis=1))
    grad[np.isnan(losses)] = np.nan
    return losses, grad


def element_loss(problem: ElementProblem) -> tuple[float | NDArray, NDArray | None]:
    """The losses of single elements: each kind gives losses, before weights, and slopes."""
    if problem.loss == "bce":
        validate.check_probabilities(problem)
    with np.errstate(all="ignore"):
        z = problem.logits.astype(np.float64)
        target = problem.target.astype(np.float64)
        counts = np.asarray(True if problem.ignore_index is None else target != problem.ignore_index)
        y = target * (1 - problem.label_smoothing) + problem.label_smoothing / 2
        losses, slope = _ELEMENT_LOSSES[problem.loss](problem, z, 2 * y - 1 if problem.zero_one else y)
        weight = np.asarray(1.0 if problem.weight is None else problem.weight.astype(np.float64))
        losses = np.where(counts, _weighted(weight, losses), 0)
        denominator = 1.0
        if problem.reduction == "mean":
            counted = np.count_nonzero(np.broadcast_to(counts, z.shape))
            denominator = float(counted) if problem.normalizer is None else problem.normalizer
        grad = np.where(counts, weight * slope * (problem.grad_output / (denominator or 1.0)), 0)

        loss: float | NDArray
        if problem.reduction == "none":
            loss = losses.astype(problem.compute_dtype)
        else:
            loss = float(losses.sum()) / denominator if denominator else math.nan
        return loss, _store(grad, problem.logits, problem.out_grad) if problem.want_grad else None


def _bce_with_logits(problem: ElementProblem, z: NDArray, y: NDArray) -> tuple[NDArray, NDArray]:
    """pos_weight * y * softplus(-z) + (1 - y) * softplus(z)."""
    yes = y * (1.0 if problem.pos_weight is None else problem.pos_weight.astype(np.float64))
    losses = _product(yes, _softplus(-z)) + _product(1 - y, _softplus(z))
    return np.where(np.isnan(z), np.nan, losses), (1 - y) * _sigmoid(z) - yes * _sigmoid(-z)


def _bce(problem: ElementProblem, p: NDArray, y: NDArray) -> tuple[NDArray, NDArray]:
    """-(y log(p) + (1 - y) log(1 - p)), the logs at least -100 and p (1 - p) in the gradient at least 1e-12."""
    losses = -y * np.maximum(np.log(p), -100) - (1 - y) * np.maximum(np.log1p(-p), -100)
    return losses, (p - y) / np.maximum(p * (1 - p), 1e-12)


def _sigmoid_focal(problem: ElementProblem, z: NDArray, y: NDArray) -> tuple[NDArray, NDArray]:
    """alpha_t * (1 - p_t)^gamma * cross-entropy, where 1 - p_t = y sigmoid(-z) + (1 - y) sigmoid(z)."""
    p, not_p, gamma = _sigmoid(z), _sigmoid(-z), problem.gamma
    alpha_t = np.ones_like(y) if problem.alpha < 0 else problem.alpha * y + (1 - problem.alpha) * (1 - y)
    miss = y * not_p + (1 - y) * p
    entropy = _product(y, _softplus(-z)) + _product(1 - y, _softplus(z))
    power = miss**gamma
    ratio = _product(p * not_p, 1 / np.maximum(miss, _TINY))
    slope = _product(alpha_t * power, (1 - y) * p - y * not_p + _product(gamma * (1 - 2 * y) * ratio, entropy))
    losses = _product(alpha_t * power, entropy)
    return np.where(np.isnan(z), np.nan, losses), np.where(np.isnan(z), np.nan, slope)


def _soft_margin(problem: ElementProblem, z: NDArray, y: NDArray) -> tuple[NDArray, NDArray]:
    """softplus(-y z)."""
    return _softplus(-y * z), -y * _sigmoid(-y * z)


def _hinge(problem: ElementProblem, z: NDArray, y: NDArray) -> tuple[NDArray, NDArray]:
    """max(0, margin - y z)."""
    violation = problem.margin - y * z
    return np.where(violation <= 0, 0, violation), np.where(violation <= 0, 0, np.where(violation > 0, -y, np.nan))


def _kl_div(problem: ElementProblem, z: NDArray, y: NDArray) -> tuple[NDArray, NDArray]:
    """y (log(y) - z)."""
    return np.where(y == 0, np.where(np.isnan(z), np.nan, 0), y * (np.log(y) - z)), 0 - y


def _kl_div_log(problem: ElementProblem, z: NDArray, y: NDArray) -> tuple[NDArray, NDArray]:
    """exp(y) (y - z)."""
    q = np.exp(y)
    return np.where(q == 0, np.where(np.isnan(z), np.nan, 0), q * (y - z)), 0 - q


_ELEMENT_LOSSES: dict[str, Callable[..., tuple[NDArray, NDArray]]] = {
    "bce_with_logits": _bce_with_logits,
    "bce": _bce,
    "sigmoid_focal": _sigmoid_focal,
    "soft_margin": _soft_margin,
    "hinge": _hinge,
    "kl_div": _kl_div,
    "kl_div_log": _kl_div_log,
}
# Below this a quotient of two vanishing numbers is replaced by its limit.
_TINY = 1e-300


def overlap_sums(problem: OverlapProblem) -> tuple[NDArray, NDArray]:
    """Of each group and class the sums of p y, p (1 - y) and (1 - p) y, or where they are squared of p y, p (p - y) and
    y (y - p): (groups, classes, 3); and the sum of the cross-entropy and its denominator."""
    if problem.mode == "multiclass":
        validate.raise_bad_index(problem)
    with np.errstate(all="ignore"):
        p, not_p, y, counts, cross_entropy = _overlap_parts(problem)[:5]
        positive, negative = (p * (p - y), y * (y - p)) if problem.squared else (p * (1 - y), y * not_p)
        if problem.squared:  # 1 - p has the digits that y - p loses
            positive, negative = np.where(y == 1, -p * not_p, positive), np.where(y == 1, not_p, negative)
        parts = np.stack([_product(y, p), positive, negative], axis=-1)
        return np.where(counts[..., None], parts, 0).sum(axis=1), cross_entropy


def overlap_gradient(problem: OverlapProblem, of_intersection: NDArray, of_sum: NDArray, scale: float) -> NDArray:
    """The gradient, from the loss's derivatives by the sums of p y and of p (or p^2), each (groups, classes), and the
    cross-entropy's gradient times `scale`."""
    with np.errstate(all="ignore"):
        p, not_p, y, counts, _, entropy_gradient = _overlap_parts(problem)
        slope = of_intersection[:, None, :] * y + of_sum[:, None, :] * (2 * p if problem.squared else 1)
        if problem.from_logits:
            if problem.mode == "multiclass":
                # p (slope - sum of p slope), where nothing cancels for a confident row.
                part = _product(p, slope)
                others = _others(part.reshape(-1, problem.classes)).reshape(part.shape)
                slope = p * (not_p * slope - others)
            else:
                slope = p * not_p * slope
        grad = np.where(counts, slope + scale * entropy_gradient, 0)
        moved = np.moveaxis(problem.logits, problem.axis, -1).shape
        return _store(np.moveaxis(grad.reshape(moved), -1, problem.axis), problem.logits, problem.out_grad)


def _overlap_parts(problem: OverlapProblem) -> tuple[NDArray, NDArray, NDArray, NDArray, NDArray, NDArray]:
    """(groups, rows, classes): probabilities, one minus them, targets, what counts; the sum of
    cross-entropy and its denominator, and its gradient."""
    target: NDArray
    x = _rows(problem.logits, problem.axis)
    shape = (problem.groups, len(x) // max(problem.groups, 1), problem.classes)
    entropy, slope = np.zeros(2), np.zeros_like(x)
    if problem.mode == "multilabel":
        target = np.moveaxis(problem.target, problem.axis, -1).reshape(shape)
        counted = np.asarray(True if problem.ignore_index is None else target != problem.ignore_index)
        every = np.broadcast_to(counted, shape)
        p, not_p = (_sigmoid(x), _sigmoid(-x)) if problem.from_logits else (x, 1 - x)
        return p.reshape(shape), not_p.reshape(shape), target.astype(np.float64), every, entropy, slope.reshape(shape)
    target = problem.target.reshape(-1)
    counts = np.broadcast_to(True if problem.ignore_index is None else target != problem.ignore_index, target.shape)
    y = np.zeros(x.shape)
    y[counts, target[counts].astype(np.int64)] = 1
    p, not_p = x, 1 - x
    if problem.from_logits:
        gap, p, not_p, _ = _softmax(_poison(x)[0])
        if problem.cross_entropy:
            weight = 1.0 if problem.class_weight is None else problem.class_weight.astype(np.float64)
            power = not_p**problem.gamma
            focus = (1 - problem.focal) + problem.focal * power
            ratio = np.where(not_p < _TINY, 1, gap / np.maximum(not_p, _TINY))
            h = focus + problem.focal * problem.gamma * power * _product(p, ratio)
            a = y * weight
            entropy = np.array([_product(a, focus * gap)[counts].sum(), a[counts].sum()])
            a = _product(a, h)
            slope = p * _others(a) - a * not_p
    every = np.broadcast_to(counts[:, None], x.shape).reshape(shape)
    return p.reshape(shape), not_p.reshape(shape), y.reshape(shape), every, entropy, slope.reshape(shape)


def elementwise(
    formula: Callable[..., Any], problem: ElementProblem, parameters: tuple[float, ...], want_hess: bool, out_hess: Any
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
    formula: Callable[..., Any], problem: ClassProblem, parameters: tuple[float, ...]
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


def validate_targets(problem: ClassProblem) -> None:
    if not problem.is_probabilities and problem.loss != "multilabel_margin":
        validate.raise_bad_index(problem)
    if problem.empty == "raise":
        validate.check_denominator(problem, _denominator(problem))


def _rows(array: NDArray, axis: int) -> NDArray:
    """(rows, classes) in float64: the reader need not think of axes and strides after this."""
    moved = np.moveaxis(array, axis, -1)
    return moved.reshape(-1, array.shape[axis]).astype(np.float64)


def _one_a_row(value: float | NDArray, n: int) -> NDArray:
    return np.broadcast_to(np.asarray(value, np.float64).reshape(-1), (n,))


def _counts(problem: ClassProblem) -> NDArray:
    """Which rows are not ignored."""
    if problem.is_probabilities or problem.loss in ("multi_margin", "multilabel_margin"):
        return np.ones(math.prod(problem.row_shape), bool)
    counts: NDArray = problem.target.reshape(-1) != problem.ignore_index
    return counts


def _distribution(problem: ClassProblem) -> NDArray:
    """The target distribution of each row, before smoothing."""
    counts = _counts(problem)
    if problem.is_probabilities:
        return _rows(problem.target, problem.axis)
    q = np.zeros((counts.size, problem.classes))
    rows = np.flatnonzero(counts)
    q[rows, problem.target.reshape(-1)[rows].astype(np.int64)] = 1
    return q


def _denominator(problem: ClassProblem) -> float:
    counts = _counts(problem)
    weights = _one_a_row(1.0 if problem.sample_weight is None else problem.sample_weight, counts.size)[counts]
    if problem.weight is not None and not problem.is_probabilities and problem.loss != "multi_margin":
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


def _weighted(weight: NDArray, losses: NDArray) -> NDArray:
    """weight * losses, where NaN stays."""
    return np.where(np.isnan(losses), np.nan, _product(weight, losses))


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
