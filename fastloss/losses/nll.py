"""Negative log-likelihood, of log-probabilities over an axis of classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastloss import validate
from fastloss.catalogue import loss
from fastloss.engines import get as get_engine

if TYPE_CHECKING:
    from fastloss.validate import Array, Empty, Index, NDArray, Number, Reduction


@loss
def nll_loss(
    log_probs: Array,
    target: Array,
    *,
    weight: Array | None = None,
    sample_weight: Array | None = None,
    ignore_index: Index = -100,
    axis: Index = 1,
    normalizer: Number | None = None,
    empty: Empty = "nan",
    reduction: Reduction = "mean",
    return_grad: bool = False,
    out_grad: NDArray | None = None,
    grad_output: Number | Array | None = None,
    engine: str | None = None,
    num_threads: Index | None = None,
) -> Any:
    r"""Negative log-likelihood of the target classes, given log-probabilities, and its gradient.

    ::

        loss   = -sample_weight * weight_y * log_probs_y
        grad_c = -sample_weight * weight_y * [c = y] * grad_output / denominator

    From logits, `fastloss.cross_entropy` is faster and more exact than log_softmax and this.

    Parameters
    ----------
    log_probs
        Logs of the probabilities: float32, float64, float16 or bfloat16 array with at least one dimension, any strides
        and alignment.
    target
        Class indices of any integer dtype.
    weight
        One factor a class.
    sample_weight
        One factor a target.
    ignore_index
        Rows whose target has this value count for nothing and are not read.
    axis
        The class axis; one-dimensional input uses its only one.
    normalizer
        The denominator of the mean. Without it, the sum of ``weight[target] * sample_weight`` over the targets that
        count.
    empty
        What the mean is where that sum is 0: NaN ("nan"), 0.0 ("zero") or a ValueError ("raise").
    reduction
        "mean", "sum" or "none".
    {common parameters}

    {returns}

    Shape
    -----
    log_probs (N, C), (C,), (N, C, d1, ...), or with the classes on any other axis; target, sample_weight and the loss
    for "none": that shape without the class axis; weight: (C,).

    Errors
    ------
    ValueError for shapes and values, TypeError for types, IndexError for the first target that is neither a class nor
    ignore_index. Nothing has been written to out_grad then.

    Notes
    -----
    Only the target's log-probability is read: NaN elsewhere in the row has no effect. -inf there makes the loss inf.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> loss, grad = fl.nll_loss(np.array([[-0.6, -0.5, -0.3]]), [1], return_grad=True)
    >>> loss, grad.tolist()
    (0.5, [[0.0, -1.0, 0.0]])
    """
    problem = validate.class_loss(
        log_probs,
        target,
        weight=weight,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        axis=axis,
        normalizer=normalizer,
        empty=empty,
        loss="nll",
        reduction=reduction,
        return_grad=return_grad,
        out_grad=out_grad,
        grad_output=grad_output,
        num_threads=num_threads,
    )
    loss, grad = get_engine(engine).class_loss(problem)
    return (loss, grad) if problem.want_grad else loss
