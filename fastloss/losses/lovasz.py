"""The Lovász extension of the Jaccard loss, for segmentation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastloss import validate
from fastloss.catalogue import loss
from fastloss.engines import get as get_engine

if TYPE_CHECKING:
    from fastloss.validate import Array, Index, Mode, NDArray, Number, OverlapProblem, Reduction


@loss
def lovasz_loss(
    logits: Array,
    target: Array,
    *,
    mode: Mode = "multiclass",
    axis: Index = 1,
    ignore_index: Index | None = None,
    from_logits: bool = True,
    per_sample: bool = False,
    reduction: Reduction = "mean",
    return_grad: bool = False,
    out_grad: NDArray | None = None,
    grad_output: Number | Array | None = None,
    engine: str | None = None,
    num_threads: Index | None = None,
) -> Any:
    r"""Lovász loss: the convex extension of 1 - Jaccard to the errors of all targets, and its gradient.

    ::

        loss = mean over classes that occur of sum_k e_(k) (J_k - J_(k-1))

    where e_(1) >= e_(2) >= ... are the errors of a class, and J_k is the Jaccard loss of a prediction that is wrong at
    the first k of them. "multiclass": e = |[c = y] - softmax(z)_c|. "multilabel" and "binary", as one set:
    e = max(0, 1 - z) where the mask is 1 and max(0, 1 + z) elsewhere.

    Parameters
    ----------
    logits
        float32, float64, float16 or bfloat16 array with at least one dimension, any strides and alignment.
    target
        "multiclass": class indices of any integer dtype. "multilabel" and "binary": a mask of 0 and 1.
    mode
        "multiclass", "multilabel" or "binary".
    axis
        The class axis; one-dimensional logits use their only one.
    ignore_index
        Targets of this value count for nothing.
    from_logits
        Apply softmax; else the input holds probabilities ("multiclass" only).
    per_sample
        The mean of the losses of single samples (axis 0), instead of one over all.
    reduction
        "mean" (over samples), "sum" or "none" (each sample).
    {common parameters}

    {returns}

    Shape
    -----
    As for `fastloss.dice_loss`. The loss for "none": (N,) with per_sample, else ().

    Errors
    ------
    ValueError for shapes and values, TypeError for types, IndexError for the first target that is neither a class nor
    ignore_index. Nothing has been written to out_grad then.

    Notes
    -----
    The meaning is that of segmentation_models.pytorch. Equal errors keep the order of their targets. Needs temporaries
    of the logits' size, and for each class a sort.

    Berman et al. 2018, arXiv:1705.08790.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> logits = np.array([[[2.0, -1.0, 0.5], [0.0, 1.0, 0.5]]])
    >>> loss, grad = fl.lovasz_loss(logits, [[0, 1, 1]], return_grad=True)
    >>> f"{loss:.4f}", grad.round(3).tolist()
    ('0.3096', [[[-0.026, 0.026, 0.125], [0.026, -0.026, -0.125]]])
    """
    problem, _, _ = validate.overlap(
        logits,
        target,
        mode=mode,
        axis=axis,
        weight=None,
        ignore_index=ignore_index,
        squared=False,
        from_logits=from_logits,
        per_sample=per_sample,
        reduction=reduction,
        return_grad=return_grad,
        out_grad=out_grad,
        grad_output=None,
        num_threads=num_threads,
    )
    upstream = validate.upstream(grad_output, reduction, (problem.groups,) if per_sample else ())
    if not from_logits and mode != "multiclass":
        raise ValueError(f"from_logits=False needs mode='multiclass', not {mode!r}: the hinge is one of logits")
    if problem.mode == "multiclass":
        validate.raise_bad_index(problem)
        losses, grad = _softmax_losses(problem, engine)
    else:
        losses, grad = _hinge_losses(problem, engine)
    scale = 1 / max(len(losses), 1) if reduction == "mean" else 1.0
    result: Any = losses.astype(problem.compute_dtype)
    if reduction != "none":
        result = float(losses.sum() * scale)
    elif not per_sample:
        result = result.reshape(())
    if not problem.want_grad:
        return result
    grad *= np.broadcast_to(np.asarray(upstream) * scale, losses.shape).reshape((-1,) + (1,) * (grad.ndim - 1))
    out = np.empty(problem.logits.shape, problem.logits.dtype) if problem.out_grad is None else problem.out_grad
    with np.errstate(all="ignore"):
        out[...] = np.moveaxis(grad.reshape(np.moveaxis(out, problem.axis, -1).shape), -1, problem.axis)
    return result, problem.given_gradient(out)


def _extension(errors: NDArray, is_positive: NDArray, hinge: bool, engine: str | None) -> tuple[float, NDArray]:
    """The sum of e_(k) (J_k - J_(k-1)), and its derivative by each error."""
    implementation = get_engine(engine)
    if hasattr(implementation, "lovasz"):
        loss, slopes = implementation.lovasz(errors, is_positive, hinge)
        return float(loss), slopes
    order = np.argsort(-errors, kind="stable")
    seen = np.cumsum(is_positive[order])
    positives = np.count_nonzero(is_positive)
    jaccard = 1 - (positives - seen) / (positives + np.arange(1, len(seen) + 1) - seen)
    steps = np.diff(jaccard, prepend=0.0)
    ordered = errors[order].astype(np.float64)
    if hinge:
        steps[ordered <= 0] = 0
    steps[np.isnan(ordered)] = np.nan
    slopes = np.empty_like(errors)
    slopes[order] = steps
    return float(np.dot(np.where(steps == 0, 0, ordered), steps)), slopes


def _softmax_losses(problem: OverlapProblem, engine: str | None) -> tuple[NDArray, NDArray]:
    """The loss of each group, and its gradient as (groups, rows, classes)."""
    shape = (problem.groups, problem.target.size // max(problem.groups, 1), problem.classes)
    p = problem.logits.astype(problem.compute_dtype, copy=False)
    if problem.from_logits:
        kind: Any = validate.softmax("softmax", p, problem.axis, problem.num_threads)
        p = get_engine(engine).softmax(kind)
    p = np.moveaxis(p, problem.axis, -1).reshape(shape)
    target = problem.target.reshape(shape[:2])
    losses, slope = np.zeros(shape[0]), np.zeros(shape, p.dtype)
    for group in range(shape[0]):
        counts = _counted(target[group], problem)
        labels = target[group][counts]
        present = np.unique(labels)
        for c in present.tolist():
            is_positive = labels == c
            each = p[group, counts, c]
            loss, steps = _extension(np.where(is_positive, 1 - each, each), is_positive, False, engine)
            losses[group] += loss / len(present)
            slope[group, counts, c] = np.where(is_positive, -steps, steps) / len(present)
    if problem.from_logits and problem.want_grad:
        with np.errstate(all="ignore"):
            slope = p * (slope - np.einsum("grc,grc->gr", p, slope)[..., None])
        if problem.ignore_index is not None:  # whatever such a row holds
            slope[target == problem.ignore_index] = 0
    return losses, slope


def _hinge_losses(problem: OverlapProblem, engine: str | None) -> tuple[NDArray, NDArray]:
    z = np.moveaxis(problem.logits, problem.axis, -1).astype(problem.compute_dtype, copy=False)
    z = z.reshape(problem.groups, -1)
    target = np.moveaxis(problem.target, problem.axis, -1).reshape(z.shape)
    losses, slope = np.zeros(len(z)), np.zeros(z.shape, z.dtype)
    for group in range(len(z)):
        counts = _counted(target[group], problem)
        is_positive = target[group][counts] != 0
        sign = np.where(is_positive, 1, -1).astype(z.dtype)
        losses[group], steps = _extension(1 - z[group, counts] * sign, is_positive, True, engine)
        slope[group, counts] = -sign * steps
    return losses, slope


def _counted(target: NDArray, problem: OverlapProblem) -> Any:
    """What selects the targets that are not ignored."""
    return slice(None) if problem.ignore_index is None else np.flatnonzero(target != problem.ignore_index)
