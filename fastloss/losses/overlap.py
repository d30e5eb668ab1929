"""Overlap losses for segmentation: Dice, Jaccard and Tversky, from integer labels or masks.

Two passes over the logits: one gathers each class's sums, from which the loss and its derivatives by the sums follow
here, the other writes the gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastloss import validate
from fastloss.catalogue import loss
from fastloss.engines import get as get_engine

if TYPE_CHECKING:
    from fastloss.validate import Array, Index, Mode, NDArray, Number, OverlapProblem, Reduction


def from_sums(
    sums: NDArray,
    weights: NDArray,
    upstream: float | NDArray,
    *,
    alpha: float,
    beta: float,
    gamma: float,
    smooth: float,
    eps: float,
    log_loss: bool,
    absent: str,
    reduction: str,
) -> tuple[float | NDArray, NDArray, NDArray]:
    """The loss from the sums of each group and class, and its derivatives by the sums of p y and of p.

    sums: I, the false positives P - I and the false negatives Y - I, so that a loss next to 0 is no difference of large
    numbers. The score is Tversky's, (I + smooth) / (I + alpha (P - I) + beta (Y - I) + smooth): Dice has alpha = beta =
    1/2, Jaccard alpha = beta = 1."""
    with np.errstate(all="ignore"):
        intersection, false_positives, false_negatives = np.moveaxis(sums, -1, 0)
        miss = alpha * false_positives + beta * false_negatives
        below = intersection + miss + smooth
        moves = np.where(below < eps, 0, 1)  # else the bound takes its place
        losses = np.where(below < eps, 1 - (intersection + smooth) / eps, miss / below)
        below = np.where(below < eps, eps, below)
        score = (intersection + smooth) / below
        of_i = (1 - score * moves * (1 - alpha - beta)) / below
        of_p = -score * moves * alpha / below
        slope = np.full(losses.shape, -1.0)
        if log_loss:
            losses = np.where(score < eps, -np.log(eps), -np.log1p(-losses))
            slope = np.where(score >= eps, -1 / score, 0)
        if absent == "zero":
            # NaN stays: no class is known to be absent then.
            is_there = intersection + false_negatives > 0
            losses, slope = (np.where(is_there, each, each * 0) for each in (losses, slope))
        result: float | NDArray
        if reduction == "none":
            result = losses**gamma
            outer = np.asarray(upstream) * np.ones_like(losses) * _power_slope(losses, gamma)
        else:
            share = weights / weights.sum()
            means = (losses * share).sum(axis=1)
            scale = 1 / max(len(means), 1) if reduction == "mean" else 1.0
            result = float((means**gamma).sum() * scale) if len(means) else float("nan" if reduction == "mean" else 0)
            outer = (np.asarray(upstream) * scale * _power_slope(means, gamma))[:, None] * share
        slope = np.where(outer == 0, outer, outer * slope)
        of_i, of_p = (np.where(slope == 0, 0, slope * each) for each in (of_i, of_p))
        return result, of_i, of_p


def _power_slope(x: NDArray, gamma: float) -> NDArray:
    return np.ones_like(x) if gamma == 1 else np.where(x == 0, 0, gamma * x ** (gamma - 1))


def score_options(options: dict[str, Any]) -> dict[str, Any]:
    """The options of `from_sums`, checked."""
    return {
        "alpha": validate.number("alpha", options["alpha"], low=0.0),
        "beta": validate.number("beta", options["beta"], low=0.0),
        "gamma": validate.number("gamma", options["gamma"], above=0.0),
        "smooth": validate.number("smooth", options["smooth"], low=0.0),
        "eps": validate.number("eps", options["eps"], low=0.0),
        "log_loss": bool(options["log_loss"]),
        "absent": validate.choice("absent", options["absent"], ("zero", "count")),
    }


# What the problem of an overlap loss is made of, the rest being options of its score; and their defaults.
PROBLEM_OPTIONS = ("mode", "axis", "weight", "ignore_index", "squared", "from_logits", "per_sample")
DEFAULTS: dict[str, Any] = {
    "mode": "multiclass", "axis": 1, "weight": None, "ignore_index": None, "squared": False, "from_logits": True,
    "per_sample": False, "alpha": 0.5, "beta": 0.5, "gamma": 1.0, "smooth": 0.0, "eps": 1e-7, "log_loss": False,
    "absent": "zero",
}  # fmt: skip


def _compute(
    problem: OverlapProblem, weights: NDArray, upstream: float | NDArray, engine: str | None, reduction: str,
    options: dict[str, Any],
) -> Any:  # fmt: skip
    implementation = get_engine(engine)
    checked = score_options(options)
    sums, _ = implementation.overlap_sums(problem)
    result, of_intersection, of_sum = from_sums(sums, weights, upstream, reduction=reduction, **checked)
    if isinstance(result, np.ndarray):
        result = (result if problem.per_sample else result[0]).astype(problem.compute_dtype)
    if not problem.want_grad:
        return result
    grad = implementation.overlap_gradient(problem, of_intersection, of_sum, 0.0)
    return result, problem.given_gradient(grad)


@loss
def dice_loss(
    logits: Array,
    target: Array,
    *,
    mode: Mode = "multiclass",
    axis: Index = 1,
    weight: Array | None = None,
    ignore_index: Index | None = None,
    smooth: Number = 0.0,
    eps: Number = 1e-7,
    log_loss: bool = False,
    from_logits: bool = True,
    per_sample: bool = False,
    squared: bool = False,
    absent: str = "zero",
    reduction: Reduction = "mean",
    return_grad: bool = False,
    out_grad: NDArray | None = None,
    grad_output: Number | Array | None = None,
    engine: str | None = None,
    num_threads: Index | None = None,
) -> Any:
    r"""Soft Dice loss: 1 - 2 |A and B| / (|A| + |B|), class by class, and its gradient.

    With p = softmax(logits) ("multiclass") or sigmoid(logits), y the target as 0 and 1, and for each class the sums
    I of p y, P of p and Y of y over all targets (or those of a sample)::

        score = (I + smooth) / max((P + Y) / 2 + smooth, eps)
        loss  = mean over classes of 1 - score

    The gradient follows from the derivatives by I and P.

    Parameters
    ----------
    logits
        float32, float64, float16 or bfloat16 array with at least one dimension, any strides and alignment.
    target
        "multiclass": class indices of any integer dtype. "multilabel" and "binary": a mask of any numeric or boolean
        dtype, with values in [0, 1].
    mode
        "multiclass", "multilabel" or "binary", which is one class over all elements.
    axis
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
        "mean" (over classes and samples), "sum" (over samples, of the mean over classes) or "none" (each class).
    {common parameters}

    {returns}

    Shape
    -----
    logits (N, C, d1, ...), or with the classes on any other axis. target: "multiclass" that shape without the class
    axis; "multilabel" and "binary" the logits' shape, "binary" also without a class axis of length 1. The loss for
    "none": (C,), or (N, C) with per_sample. weight: (C,).

    Errors
    ------
    ValueError for shapes and values, TypeError for types, IndexError for the first target that is neither a class nor
    ignore_index. Nothing has been written to out_grad then.

    Notes
    -----
    The meaning is that of segmentation_models.pytorch for masks of 0 and 1. MONAI's is per_sample=True (unless its
    batch=True), absent="count", smooth=5e-6, and squared for its squared_pred; it does not divide by the sum of the
    weights. NaN in a logit that counts makes the loss NaN. The gradient takes two passes over the logits, and no
    temporary of their size.

    Milletari et al. 2016, arXiv:1606.04797.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> logits = np.array([[[2.0, -1.0, 0.5], [0.0, 1.0, 0.5]]])
    >>> loss, grad = fl.dice_loss(logits, [[0, 1, 1]], return_grad=True)
    >>> f"{loss:.4f}", grad.round(3).tolist()
    ('0.2532', [[[-0.039, 0.033, 0.078], [0.039, -0.033, -0.078]]])
    """
    problem, weights, upstream = validate.overlap(
        logits,
        target,
        mode=mode,
        axis=axis,
        weight=weight,
        ignore_index=ignore_index,
        squared=squared,
        from_logits=from_logits,
        per_sample=per_sample,
        reduction=reduction,
        return_grad=return_grad,
        out_grad=out_grad,
        grad_output=grad_output,
        num_threads=num_threads,
    )
    options = {
        "alpha": 0.5,
        "beta": 0.5,
        "gamma": 1.0,
        "smooth": smooth,
        "eps": eps,
        "log_loss": log_loss,
        "absent": absent,
    }
    return _compute(problem, weights, upstream, engine, reduction, options)


@loss
def jaccard_loss(
    logits: Array,
    target: Array,
    *,
    mode: Mode = "multiclass",
    axis: Index = 1,
    weight: Array | None = None,
    ignore_index: Index | None = None,
    smooth: Number = 0.0,
    eps: Number = 1e-7,
    log_loss: bool = False,
    from_logits: bool = True,
    per_sample: bool = False,
    squared: bool = False,
    absent: str = "zero",
    reduction: Reduction = "mean",
    return_grad: bool = False,
    out_grad: NDArray | None = None,
    grad_output: Number | Array | None = None,
    engine: str | None = None,
    num_threads: Index | None = None,
) -> Any:
    r"""Soft Jaccard (intersection over union) loss, class by class, and its gradient.

    With p = softmax(logits) ("multiclass") or sigmoid(logits), y the target as 0 and 1, and for each class the sums
    I of p y, P of p and Y of y over all targets (or those of a sample)::

        score = (I + smooth) / max(P + Y - I + smooth, eps)
        loss  = mean over classes of 1 - score

    The gradient follows from the derivatives by I and P.

    Parameters
    ----------
    logits
        float32, float64, float16 or bfloat16 array with at least one dimension, any strides and alignment.
    target
        "multiclass": class indices of any integer dtype. "multilabel" and "binary": a mask of any numeric or boolean
        dtype, with values in [0, 1].
    mode
        "multiclass", "multilabel" or "binary", which is one class over all elements.
    axis
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
        "mean" (over classes and samples), "sum" (over samples, of the mean over classes) or "none" (each class).
    {common parameters}

    {returns}

    Shape
    -----
    logits (N, C, d1, ...), or with the classes on any other axis. target: "multiclass" that shape without the class
    axis; "multilabel" and "binary" the logits' shape, "binary" also without a class axis of length 1. The loss for
    "none": (C,), or (N, C) with per_sample. weight: (C,).

    Errors
    ------
    ValueError for shapes and values, TypeError for types, IndexError for the first target that is neither a class nor
    ignore_index. Nothing has been written to out_grad then.

    Notes
    -----
    The meaning is that of segmentation_models.pytorch for masks of 0 and 1. MONAI's is per_sample=True (unless its
    batch=True), absent="count", smooth=5e-6, and squared for its squared_pred; it does not divide by the sum of the
    weights. NaN in a logit that counts makes the loss NaN. The gradient takes two passes over the logits, and no
    temporary of their size.

    Rahman and Wang 2016, doi:10.1007/978-3-319-50835-1_22.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> logits = np.array([[[2.0, -1.0, 0.5], [0.0, 1.0, 0.5]]])
    >>> loss, grad = fl.jaccard_loss(logits, [[0, 1, 1]], return_grad=True)
    >>> f"{loss:.4f}", grad.round(3).tolist()
    ('0.4022', [[[-0.049, 0.042, 0.101], [0.049, -0.042, -0.101]]])
    """
    problem, weights, upstream = validate.overlap(
        logits,
        target,
        mode=mode,
        axis=axis,
        weight=weight,
        ignore_index=ignore_index,
        squared=squared,
        from_logits=from_logits,
        per_sample=per_sample,
        reduction=reduction,
        return_grad=return_grad,
        out_grad=out_grad,
        grad_output=grad_output,
        num_threads=num_threads,
    )
    options = {
        "alpha": 1.0,
        "beta": 1.0,
        "gamma": 1.0,
        "smooth": smooth,
        "eps": eps,
        "log_loss": log_loss,
        "absent": absent,
    }
    return _compute(problem, weights, upstream, engine, reduction, options)


@loss
def tversky_loss(
    logits: Array,
    target: Array,
    *,
    mode: Mode = "multiclass",
    alpha: Number = 0.5,
    beta: Number = 0.5,
    gamma: Number = 1.0,
    axis: Index = 1,
    weight: Array | None = None,
    ignore_index: Index | None = None,
    smooth: Number = 0.0,
    eps: Number = 1e-7,
    log_loss: bool = False,
    from_logits: bool = True,
    per_sample: bool = False,
    squared: bool = False,
    absent: str = "zero",
    reduction: Reduction = "mean",
    return_grad: bool = False,
    out_grad: NDArray | None = None,
    grad_output: Number | Array | None = None,
    engine: str | None = None,
    num_threads: Index | None = None,
) -> Any:
    r"""Tversky loss: overlap with weights for false positives and false negatives, and its gradient.

    With p = softmax(logits) ("multiclass") or sigmoid(logits), y the target as 0 and 1, and for each class the sums
    I of p y, P of p and Y of y over all targets (or those of a sample)::

        score = (I + smooth) / max(I + alpha (P - I) + beta (Y - I) + smooth, eps)
        loss  = (mean over classes of 1 - score)^gamma

    The gradient follows from the derivatives by I and P.

    Parameters
    ----------
    logits
        float32, float64, float16 or bfloat16 array with at least one dimension, any strides and alignment.
    target
        "multiclass": class indices of any integer dtype. "multilabel" and "binary": a mask of any numeric or boolean
        dtype, with values in [0, 1].
    mode
        "multiclass", "multilabel" or "binary", which is one class over all elements.
    alpha
        Weight of false positives, at least 0.
    beta
        Weight of false negatives, at least 0.
    gamma
        Power of the mean over the classes (of each class's loss for "none"), above 0.
    axis
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
        "mean" (over classes and samples), "sum" (over samples, of the mean over classes) or "none" (each class).
    {common parameters}

    {returns}

    Shape
    -----
    logits (N, C, d1, ...), or with the classes on any other axis. target: "multiclass" that shape without the class
    axis; "multilabel" and "binary" the logits' shape, "binary" also without a class axis of length 1. The loss for
    "none": (C,), or (N, C) with per_sample. weight: (C,).

    Errors
    ------
    ValueError for shapes and values, TypeError for types, IndexError for the first target that is neither a class nor
    ignore_index. Nothing has been written to out_grad then.

    Notes
    -----
    The meaning is that of segmentation_models.pytorch for masks of 0 and 1. MONAI's is per_sample=True (unless its
    batch=True), absent="count", and smooth=1e-5. NaN in a logit that counts makes the loss NaN. With squares the mean
    may be negative where alpha is not beta, and a gamma that is no integer then gives NaN. The gradient takes two
    passes over the logits, and no temporary of their size.

    Salehi et al. 2017, arXiv:1706.05721; gamma: Abraham and Khan 2018, arXiv:1810.07842.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> logits = np.array([[[2.0, -1.0, 0.5], [0.0, 1.0, 0.5]]])
    >>> loss, grad = fl.tversky_loss(logits, [[0, 1, 1]], return_grad=True)
    >>> f"{loss:.4f}", grad.round(3).tolist()
    ('0.2532', [[[-0.039, 0.033, 0.078], [0.039, -0.033, -0.078]]])
    """
    problem, weights, upstream = validate.overlap(
        logits,
        target,
        mode=mode,
        axis=axis,
        weight=weight,
        ignore_index=ignore_index,
        squared=squared,
        from_logits=from_logits,
        per_sample=per_sample,
        reduction=reduction,
        return_grad=return_grad,
        out_grad=out_grad,
        grad_output=grad_output,
        num_threads=num_threads,
    )
    options = {
        "alpha": alpha,
        "beta": beta,
        "gamma": gamma,
        "smooth": smooth,
        "eps": eps,
        "log_loss": log_loss,
        "absent": absent,
    }
    return _compute(problem, weights, upstream, engine, reduction, options)
