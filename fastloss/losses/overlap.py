"""Overlap losses for segmentation: Dice, Jaccard and Tversky, from integer labels or masks.

Two passes over the logits: one gathers each class's sums, from which the loss and its derivatives by the sums follow
here, the other writes the gradient."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import numpy as np

from fastloss import validate
from fastloss.catalogue import loss
from fastloss.engines import get as get_engine

if TYPE_CHECKING:
    from collections.abc import Callable

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


# The Tversky scores that have a name: their alpha and beta.
SCORES = {"dice_loss": (0.5, 0.5), "jaccard_loss": (1.0, 1.0)}

# Options that say how the sums are made; the others say what is made of them.
_OF_SUMS = ("mode", "axis", "weight", "ignore_index", "squared", "from_logits", "per_sample")


def settings(function: Any, given: dict[str, Any]) -> dict[str, Any]:
    """All options of an overlap loss, of which some are given."""
    defaults = {name: each.default for name, each in inspect.signature(function).parameters.items()}
    alpha, beta = SCORES.get(function.__name__, (defaults.get("alpha"), defaults.get("beta")))
    return {"gamma": 1.0, **defaults, "alpha": alpha, "beta": beta, **given}


def read(
    logits: Any, target: Any, options: dict[str, Any], common: dict[str, Any]
) -> tuple[OverlapProblem, Callable[[NDArray, float], tuple[float | NDArray, NDArray, NDArray]]]:
    """The problem, and what makes of its sums the loss and its derivatives, times a factor: see `from_sums`."""
    problem, weights, upstream = validate.overlap(
        logits, target, **{name: options[name] for name in _OF_SUMS}, **common
    )  # fmt: skip
    score: dict[str, Any] = {
        "alpha": validate.number("alpha", options["alpha"], low=0.0),
        "beta": validate.number("beta", options["beta"], low=0.0),
        "gamma": validate.number("gamma", options["gamma"], above=0.0),
        "smooth": validate.number("smooth", options["smooth"], low=0.0),
        "eps": validate.number("eps", options["eps"], low=0.0),
        "log_loss": bool(options["log_loss"]),
        "absent": validate.choice("absent", options["absent"], ("zero", "count")),
    }

    def loss_of(sums: NDArray, factor: float) -> tuple[float | NDArray, NDArray, NDArray]:
        return from_sums(sums, weights, upstream * factor, reduction=common["reduction"], **score)

    return problem, loss_of


def _compute(logits: Any, target: Any, engine: str | None, options: dict[str, Any], common: dict[str, Any]) -> Any:
    problem, loss_of = read(logits, target, options, common)
    implementation = get_engine(engine)
    sums, _ = implementation.overlap_sums(problem)
    result, of_intersection, of_sum = loss_of(sums, 1.0)
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
    {overlap parameters}
    {common parameters}

    {returns}

    {overlap shape and errors}

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
    options = {
        "mode": mode,
        "axis": axis,
        "weight": weight,
        "ignore_index": ignore_index,
        "smooth": smooth,
        "eps": eps,
        "log_loss": log_loss,
        "from_logits": from_logits,
        "per_sample": per_sample,
        "squared": squared,
        "absent": absent,
        "alpha": SCORES["dice_loss"][0],
        "beta": SCORES["dice_loss"][1],
        "gamma": 1.0,
    }
    common = {
        "reduction": reduction,
        "return_grad": return_grad,
        "out_grad": out_grad,
        "grad_output": grad_output,
        "num_threads": num_threads,
    }
    return _compute(logits, target, engine, options, common)


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
    {overlap parameters}
    {common parameters}

    {returns}

    {overlap shape and errors}

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
    options = {
        "mode": mode,
        "axis": axis,
        "weight": weight,
        "ignore_index": ignore_index,
        "smooth": smooth,
        "eps": eps,
        "log_loss": log_loss,
        "from_logits": from_logits,
        "per_sample": per_sample,
        "squared": squared,
        "absent": absent,
        "alpha": SCORES["jaccard_loss"][0],
        "beta": SCORES["jaccard_loss"][1],
        "gamma": 1.0,
    }
    common = {
        "reduction": reduction,
        "return_grad": return_grad,
        "out_grad": out_grad,
        "grad_output": grad_output,
        "num_threads": num_threads,
    }
    return _compute(logits, target, engine, options, common)


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
    {overlap parameters}
    {common parameters}

    {returns}

    {overlap shape and errors}

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
    options = {
        "mode": mode,
        "axis": axis,
        "weight": weight,
        "ignore_index": ignore_index,
        "smooth": smooth,
        "eps": eps,
        "log_loss": log_loss,
        "from_logits": from_logits,
        "per_sample": per_sample,
        "squared": squared,
        "absent": absent,
        "alpha": alpha,
        "beta": beta,
        "gamma": gamma,
    }
    common = {
        "reduction": reduction,
        "return_grad": return_grad,
        "out_grad": out_grad,
        "grad_output": grad_output,
        "num_threads": num_threads,
    }
    return _compute(logits, target, engine, options, common)
