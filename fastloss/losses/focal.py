"""Focal losses: cross-entropy that counts easy targets for less."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastloss import validate
from fastloss.catalogue import loss
from fastloss.engines import get as get_engine

if TYPE_CHECKING:
    from fastloss.validate import Array, Empty, Index, NDArray, Number, Reduction


@loss
def focal_cross_entropy(
    logits: Array,
    target: Array,
    *,
    gamma: Number = 2.0,
    weight: Array | None = None,
    sample_weight: Array | None = None,
    ignore_index: Index = -100,
    label_smoothing: Number = 0.0,
    softcap: Number | None = None,
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
    r"""Softmax cross-entropy with each class's part scaled by (1 - p)^gamma, and its gradient in the same pass.

    For the logits z of one target, after ``z = softcap * tanh(logits / softcap)`` where a softcap is given::

        loss = sample_weight * sum_c weight_c q_c (1 - p_c)^gamma (lse - z_c),    p = softmax(z)
        lse  = log(sum_c exp(z_c))
        q    = (1 - label_smoothing) * target + label_smoothing / C

    where ``target`` is the distribution given, or 1 at the index given and 0 elsewhere, and C the number of classes.
    With ``a_c = weight_c q_c h_c``, ``h_c = (1 - p_c)^gamma - gamma p_c (1 - p_c)^(gamma - 1) log(p_c)`` and
    ``A = sum_c a_c``, the gradient is::

        grad_c = sample_weight * (A p_c - a_c) * (1 - (z_c / softcap)^2) * grad_output / denominator

    Parameters
    ----------
    logits
        float32, float64, float16 or bfloat16 array with at least one dimension, any strides and alignment.
    target
        Class indices of any integer dtype, or floating probabilities.
    gamma
        At least 0. How much easy targets lose: 0 is cross-entropy, bit for bit.
    weight
        One factor a class (the paper's alpha).
    sample_weight
        One factor a target.
    ignore_index
        Rows whose target has this value count for nothing and are not read. Not with probabilities.
    label_smoothing
        Share of the target distribution, in [0, 1], that is spread over all classes evenly.
    softcap
        Bound of the logits, which are squashed to it smoothly.
    axis
        The class axis; one-dimensional logits use their only one.
    normalizer
        The denominator of the mean. Without it, the sum of ``weight[target] * sample_weight`` over the targets that
        count, or of ``sample_weight`` for probabilities.
    empty
        What the mean is where that sum is 0: NaN ("nan"), 0.0 ("zero") or a ValueError ("raise").
    reduction
        "mean", "sum" or "none".
    {common parameters}

    {returns}

    Shape
    -----
    As for `fastloss.cross_entropy`.

    Errors
    ------
    ValueError for shapes and values, TypeError for types, IndexError for the first target that is neither a class nor
    ignore_index. Nothing has been written to out_grad then.

    Notes
    -----
    Computed in log space: a target that leads by far keeps the digits of ``1 - p``, and a gamma below 1 is safe where
    ``1 - p`` is 0. NaN and infinities as for `fastloss.cross_entropy`.

    Lin et al. 2017, arXiv:1708.02002.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> logits = np.array([[2.0, 0.1, 0.4], [1.0, 8.0, -1.0]])
    >>> loss, grad = fl.focal_cross_entropy(logits, [1, 1], return_grad=True)
    >>> f"{loss:.4f}", grad.round(4).tolist()
    ('0.8705', [[0.4529, -0.5444, 0.0914], [0.0, -0.0, 0.0]])
    """
    problem = validate.class_loss(
        logits,
        target,
        weight=weight,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        softcap=softcap,
        axis=axis,
        normalizer=normalizer,
        empty=empty,
        focal=1.0,
        gamma=gamma,
        reduction=reduction,
        return_grad=return_grad,
        out_grad=out_grad,
        grad_output=grad_output,
        num_threads=num_threads,
    )
    loss, grad = get_engine(engine).class_loss(problem)
    return (loss, grad) if problem.want_grad else loss


@loss
def sigmoid_focal_loss(
    logits: Array,
    target: Array,
    *,
    alpha: Number | None = 0.25,
    gamma: Number = 2.0,
    reduction: Reduction = "mean",
    return_grad: bool = False,
    out_grad: NDArray | None = None,
    grad_output: Number | Array | None = None,
    engine: str | None = None,
    num_threads: Index | None = None,
) -> Any:
    r"""Binary cross-entropy of sigmoid(logits), scaled by (1 - p_t)^gamma and alpha, and its gradient in the same pass.

    ::

        loss = alpha_t (1 - p_t)^gamma (y softplus(-z) + (1 - y) softplus(z)),    softplus(z) = log(1 + exp(z))
        1 - p_t = y sigmoid(-z) + (1 - y) sigmoid(z),    alpha_t = alpha y + (1 - alpha) (1 - y)

    with the gradient, p = sigmoid(z) and H the cross-entropy in parentheses above::

        grad = alpha_t (1 - p_t)^gamma (p - y + gamma (1 - 2 y) p (1 - p) / (1 - p_t) H) * grad_output / denominator

    Parameters
    ----------
    logits
        float32, float64, float16 or bfloat16 array of any shape, strides and alignment.
    target
        Boolean, integer or floating array of the logits' shape, with values in [0, 1].
    alpha
        Weight of the positives, in [0, 1]; negatives have 1 - alpha. None: no weights.
    gamma
        At least 0. How much easy elements lose.
    reduction
        "mean" (over all elements; the paper divides the sum by the number of positives: "sum" and your own
        grad_output), "sum" or "none".
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
    Computed in log space, so confident elements keep their digits and a gamma below 1 is safe. NaN in an element makes
    its loss and gradient NaN, and no other's.

    Lin et al. 2017, arXiv:1708.02002. torchvision's ``sigmoid_focal_loss`` has the same meaning and defaults, but for
    reduction.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> loss, grad = fl.sigmoid_focal_loss(np.array([1.8, 0.75]), [1, 0], return_grad=True)
    >>> f"{loss:.4f}", grad.round(4).tolist()
    ('0.1970', [-0.001, 0.2437])
    """
    problem = validate.element_loss(
        logits,
        target,
        loss="sigmoid_focal",
        alpha=alpha,
        gamma=gamma,
        reduction=reduction,
        return_grad=return_grad,
        out_grad=out_grad,
        grad_output=grad_output,
        num_threads=num_threads,
    )
    loss, grad = get_engine(engine).element_loss(problem)
    return (loss, grad) if problem.want_grad else loss
