"""Margin losses: hinge, soft margin, and their forms for several classes and labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastloss import validate
from fastloss.catalogue import loss
from fastloss.engines import get as get_engine

if TYPE_CHECKING:
    from fastloss.validate import Array, Index, NDArray, Number, Reduction


@loss
def hinge_loss(
    logits: Array,
    target: Array,
    *,
    margin: Number = 1.0,
    reduction: Reduction = "mean",
    return_grad: bool = False,
    out_grad: NDArray | None = None,
    grad_output: Number | Array | None = None,
    engine: str | None = None,
    num_threads: Index | None = None,
) -> Any:
    r"""Hinge loss of scores and signs, element by element, and its gradient in the same pass.

    ::

        loss = max(0, margin - y z),    grad = -y [margin - y z > 0] * grad_output / denominator

    Parameters
    ----------
    logits
        Scores: float32, float64, float16 or bfloat16 array of any shape, strides and alignment.
    target
        -1 or 1, of any numeric dtype and the logits' shape; a boolean array says True for 1 and False for -1.
    margin
        From which lead on the loss is 0.
    reduction
        "mean", "sum" or "none".
    {common parameters}

    {returns}

    Shape
    -----
    logits, target, and the loss for "none": any shape, the same for all.

    Errors
    ------
    ValueError for shapes and values, TypeError for types. Nothing has been written to out_grad then.

    Notes
    -----
    At the kink the gradient is 0. Targets of 0 have the loss `margin` and gradient 0: `fastloss.diagnose` finds them.

    Cortes and Vapnik 1995, doi:10.1007/BF00994018.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> fl.hinge_loss(np.array([0.5, 2.0, -0.25]), [1, 1, -1], reduction="none").tolist()
    [0.5, 0.0, 0.75]
    """
    problem = validate.element_loss(
        logits,
        target,
        loss="hinge",
        margin=margin,
        reduction=reduction,
        return_grad=return_grad,
        out_grad=out_grad,
        grad_output=grad_output,
        num_threads=num_threads,
    )
    loss, grad = get_engine(engine).element_loss(problem)
    return (loss, grad) if problem.want_grad else loss


@loss
def soft_margin_loss(
    logits: Array,
    target: Array,
    *,
    reduction: Reduction = "mean",
    return_grad: bool = False,
    out_grad: NDArray | None = None,
    grad_output: Number | Array | None = None,
    engine: str | None = None,
    num_threads: Index | None = None,
) -> Any:
    r"""Logistic loss of scores and signs, element by element, and its gradient in the same pass.

    ::

        loss = log(1 + exp(-y z)),    grad = -y sigmoid(-y z) * grad_output / denominator

    Parameters
    ----------
    logits
        Scores: float32, float64, float16 or bfloat16 array of any shape, strides and alignment.
    target
        -1 or 1, of any numeric dtype and the logits' shape; a boolean array says True for 1 and False for -1.
    reduction
        "mean", "sum" or "none".
    {common parameters}

    {returns}

    Shape
    -----
    logits, target, and the loss for "none": any shape, the same for all.

    Errors
    ------
    ValueError for shapes and values, TypeError for types. Nothing has been written to out_grad then.

    Notes
    -----
    The same as binary cross-entropy with logits of targets 0 and 1. Exact for large scores too, where torch's form
    overflows.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> loss, grad = fl.soft_margin_loss(np.array([1.8, 0.75]), [1, -1], return_grad=True)
    >>> f"{loss:.4f}", grad.round(4).tolist()
    ('0.6449', [-0.0709, 0.3396])
    """
    problem = validate.element_loss(
        logits,
        target,
        loss="soft_margin",
        reduction=reduction,
        return_grad=return_grad,
        out_grad=out_grad,
        grad_output=grad_output,
        num_threads=num_threads,
    )
    loss, grad = get_engine(engine).element_loss(problem)
    return (loss, grad) if problem.want_grad else loss


@loss
def multilabel_soft_margin_loss(
    logits: Array,
    target: Array,
    *,
    weight: Array | None = None,
    reduction: Reduction = "mean",
    return_grad: bool = False,
    out_grad: NDArray | None = None,
    grad_output: Number | Array | None = None,
    engine: str | None = None,
    num_threads: Index | None = None,
) -> Any:
    r"""Binary cross-entropy with logits of each label, averaged over the labels of a sample, and its gradient.

    ::

        loss_i = 1 / C * sum_c weight_c (y_ic softplus(-z_ic) + (1 - y_ic) softplus(z_ic))
        grad_ic = 1 / C * weight_c (sigmoid(z_ic) - y_ic) * grad_output / denominator

    Parameters
    ----------
    logits
        float32, float64, float16 or bfloat16 array with at least one dimension, any strides and alignment; the labels
        are its last axis.
    target
        Boolean, integer or floating array of the logits' shape, with values in [0, 1].
    weight
        One factor a label; broadcasts to the logits' shape.
    reduction
        "mean" (over the samples), "sum" or "none".
    {common parameters}

    {returns}

    Shape
    -----
    logits, target (..., C); the loss for "none": (...).

    Errors
    ------
    ValueError for shapes and values, TypeError for types. Nothing has been written to out_grad then.

    Notes
    -----
    "none" makes a temporary of the logits' shape. NaN and infinities as for
    `fastloss.binary_cross_entropy_with_logits`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> logits = np.array([[0.5, -1.0], [2.0, 0.0]])
    >>> fl.multilabel_soft_margin_loss(logits, [[1, 0], [1, 1]], reduction="none").round(4).tolist()
    [0.3937, 0.41]
    """
    labels = validate.labels(logits)
    samples = validate.upstream_of_samples(grad_output, logits, reduction)
    problem = validate.element_loss(
        logits,
        target,
        weight=weight,
        reduction="mean" if reduction == "sum" else reduction,
        return_grad=return_grad,
        out_grad=out_grad,
        grad_output=grad_output if samples is None else samples,
        num_threads=num_threads,
        normalizer=float(labels) if reduction == "sum" else None,
    )
    loss, grad = get_engine(engine).element_loss(problem)
    if reduction == "none":
        with np.errstate(invalid="ignore"):
            loss = loss.sum(axis=-1) / loss.dtype.type(labels)
    return (loss, grad) if problem.want_grad else loss


@loss
def multi_margin_loss(
    logits: Array,
    target: Array,
    *,
    p: Index = 1,
    margin: Number = 1.0,
    weight: Array | None = None,
    reduction: Reduction = "mean",
    return_grad: bool = False,
    out_grad: NDArray | None = None,
    grad_output: Number | Array | None = None,
    engine: str | None = None,
    num_threads: Index | None = None,
) -> Any:
    r"""Margin between the target's score and that of each other class, and its gradient in the same pass.

    ::

        loss   = weight_y / C * sum_{c != y} v_c^p,    v_c = max(0, margin - z_y + z_c)
        grad_c = weight_y / C * p v_c^(p - 1) [v_c > 0] * grad_output / denominator        for c != y
        grad_y = -sum of the others

    Parameters
    ----------
    logits
        Scores: float32, float64, float16 or bfloat16 array, any strides and alignment.
    target
        Class indices of any integer dtype.
    p
        1 or 2.
    margin
        From which lead on the loss is 0.
    weight
        One factor a class; the mean does not divide by it.
    reduction
        "mean" (over the samples), "sum" or "none".
    {common parameters}

    {returns}

    Shape
    -----
    logits (N, C) or (C,); target and the loss for "none": (N,) or (); weight: (C,).

    Errors
    ------
    ValueError for shapes and values, TypeError for types, IndexError for the first target that is no class.
    Nothing has been written to out_grad then.

    Notes
    -----
    NaN in a row makes its loss NaN, and no other's. Crammer and Singer 2001, JMLR 2:265-292.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> loss, grad = fl.multi_margin_loss(np.array([[0.1, 0.2, 0.4, 0.8]]), [3], return_grad=True)
    >>> f"{loss:.3f}", grad.tolist()
    ('0.325', [[0.25, 0.25, 0.25, -0.75]])
    """
    problem = validate.class_loss(
        logits,
        target,
        weight=weight,
        axis=validate.last_axis(logits),
        loss="multi_margin",
        power=p,
        margin=margin,
        reduction=reduction,
        return_grad=return_grad,
        out_grad=out_grad,
        grad_output=grad_output,
        num_threads=num_threads,
    )
    loss, grad = get_engine(engine).class_loss(problem)
    return (loss, grad) if problem.want_grad else loss


@loss
def multilabel_margin_loss(
    logits: Array,
    target: Array,
    *,
    reduction: Reduction = "mean",
    return_grad: bool = False,
    out_grad: NDArray | None = None,
    grad_output: Number | Array | None = None,
    engine: str | None = None,
    num_threads: Index | None = None,
) -> Any:
    r"""Margin between the scores of a sample's labels and those of all other classes, and its gradient.

    ::

        loss = 1 / C * sum over labels y and classes c that are none of max(0, 1 - z_y + z_c)

    Its gradient adds 1 / C at c, and -1 / C at y, for each pair whose part is not 0.

    Parameters
    ----------
    logits
        Scores: float32, float64, float16 or bfloat16 array, any strides and alignment.
    target
        The labels of each sample as class indices of any signed integer dtype, then -1; what follows the first -1
        does not count.
    reduction
        "mean" (over the samples), "sum" or "none".
    {common parameters}

    {returns}

    Shape
    -----
    logits and target (N, C) or (C,); the loss for "none": (N,) or ().

    Errors
    ------
    ValueError for shapes and values, TypeError for types, IndexError for the first target that is neither a
    class nor -1. Nothing has been written to out_grad then.

    Notes
    -----
    NaN in a row makes its loss NaN, and no other's.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> loss, grad = fl.multilabel_margin_loss(np.array([[0.1, 0.2, 0.4, 0.8]]), [[3, 0, -1, 1]], return_grad=True)
    >>> f"{loss:.2f}", grad.tolist()
    ('0.85', [[-0.5, 0.5, 0.5, -0.5]])
    """
    problem = validate.class_loss(
        logits,
        target,
        axis=validate.last_axis(logits),
        loss="multilabel_margin",
        reduction=reduction,
        return_grad=return_grad,
        out_grad=out_grad,
        grad_output=grad_output,
        num_threads=num_threads,
    )
    loss, grad = get_engine(engine).class_loss(problem)
    return (loss, grad) if problem.want_grad else loss
