"""Softmax cross-entropy over an axis of classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

from fastloss import validate
from fastloss.catalogue import register
from fastloss.engines import get as get_engine

if TYPE_CHECKING:
    from typing import TypedDict

    from typing_extensions import Unpack

    from fastloss.validate import Array, Empty, Index, NDArray, Number, Reduced, Reduction

    class Options(TypedDict, total=False):
        weight: Array | None
        sample_weight: Array | None
        ignore_index: Index
        label_smoothing: Number
        z_loss: Number
        softcap: Number | None
        axis: Index
        normalizer: Number | None
        empty: Empty
        engine: str | None
        num_threads: Index | None

    class Upstream(Options, total=False):
        grad_output: Number | None

    class Upstreams(Options, total=False):
        grad_output: Number | Array | None


@overload
def cross_entropy(
    logits: Array,
    target: Array,
    *,
    reduction: Reduced = ...,
    return_grad: Literal[False] = ...,
    out_grad: None = ...,
    **options: Unpack[Upstream],
) -> float: ...
@overload
def cross_entropy(
    logits: Array,
    target: Array,
    *,
    reduction: Reduced = ...,
    return_grad: Literal[True],
    out_grad: NDArray | None = ...,
    **options: Unpack[Upstream],
) -> tuple[float, NDArray]: ...
@overload
def cross_entropy(
    logits: Array,
    target: Array,
    *,
    reduction: Reduced = ...,
    return_grad: bool = ...,
    out_grad: NDArray,
    **options: Unpack[Upstream],
) -> tuple[float, NDArray]: ...
@overload
def cross_entropy(
    logits: Array,
    target: Array,
    *,
    reduction: Literal["none"],
    return_grad: Literal[False] = ...,
    out_grad: None = ...,
    **options: Unpack[Upstreams],
) -> NDArray: ...
@overload
def cross_entropy(
    logits: Array,
    target: Array,
    *,
    reduction: Literal["none"],
    return_grad: Literal[True],
    out_grad: NDArray | None = ...,
    **options: Unpack[Upstreams],
) -> tuple[NDArray, NDArray]: ...
@overload
def cross_entropy(
    logits: Array,
    target: Array,
    *,
    reduction: Literal["none"],
    return_grad: bool = ...,
    out_grad: NDArray,
    **options: Unpack[Upstreams],
) -> tuple[NDArray, NDArray]: ...
@overload
def cross_entropy(
    logits: Array,
    target: Array,
    *,
    reduction: Reduction = ...,
    return_grad: bool = ...,
    out_grad: NDArray | None = ...,
    **options: Unpack[Upstreams],
) -> Any: ...
@register
def cross_entropy(
    logits: Array,
    target: Array,
    *,
    weight: Array | None = None,
    sample_weight: Array | None = None,
    ignore_index: Index = -100,
    label_smoothing: Number = 0.0,
    z_loss: Number = 0.0,
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
    r"""Softmax cross-entropy, and its gradient with respect to the logits in the same pass.

    For the logits z of one target, after ``z = softcap * tanh(logits / softcap)`` where a softcap is given::

        loss = sample_weight * (sum_c weight_c q_c (lse - z_c) + z_loss * lse^2)
        lse  = log(sum_c exp(z_c))
        q    = (1 - label_smoothing) * target + label_smoothing / C

    where ``target`` is the distribution given, or 1 at the index given and 0 elsewhere, and C the number of classes.
    The gradient, with ``a_c = weight_c q_c``, ``A = sum_c a_c`` and ``p = softmax(z)``, is::

        grad_c = sample_weight * (A p_c - a_c + 2 z_loss lse p_c) * (1 - (z_c / softcap)^2) * grad_output / denominator

    Parameters
    ----------
    logits
        float32, float64, float16 or bfloat16 array with at least one dimension, any strides and alignment.
    target
        Class indices of any integer dtype, or floating probabilities.
    weight
        One factor a class.
    sample_weight
        One factor a target.
    ignore_index
        Rows whose target has this value count for nothing and are not read. Not with probabilities.
    label_smoothing
        Share of the target distribution, in [0, 1], that is spread over all classes evenly.
    z_loss
        Factor of the square of logsumexp, which keeps logits from drifting.
    softcap
        Bound of the logits, which are squashed to it smoothly.
    axis
        The class axis; one-dimensional logits use their only one.
    normalizer
        The denominator of the mean: the number of tokens of a larger batch, for instance. Without it, the sum of
        ``weight[target] * sample_weight`` over the targets that count, or of ``sample_weight`` for probabilities. No
        effect on other reductions.
    empty
        What the mean is where that sum is 0: NaN ("nan"), 0.0 ("zero") or a ValueError ("raise").
    reduction
        "mean", "sum" or "none".
    return_grad
        Return the gradient as well.
    out_grad
        Array of the logits' shape that receives the gradient; implies return_grad. It may be the logits themselves,
        and of another floating dtype.
    grad_output
        Upstream gradient that multiplies the gradient: a number, or for "none" also an array of the loss's shape.
    engine
        Name of the engine, see `fastloss.engines`.
    num_threads
        Number of threads, see `fastloss.get_num_threads`.

    Returns
    -------
    loss : float or ndarray
        A float in double precision; for "none" an array, float64 for float64 logits, float32 for others.
    grad : ndarray
        Only where asked for: out_grad where given, else a new array of the logits' shape and dtype, in native byte
        order.

    Shape
    -----
    logits (N, C), (C,), (N, C, d1, ...), or with the classes on any other axis; indices, sample_weight and the loss
    for "none": that shape without the class axis; probabilities: the logits' shape; weight: (C,).

    Errors
    ------
    ValueError for shapes and values, TypeError for types, IndexError for the first target that is neither a class nor
    ignore_index. Nothing has been written to out_grad then.

    Notes
    -----
    NaN in a row that counts makes its loss and gradient NaN, and no other row's. A logit of -inf is a class of
    probability 0, with gradient 0, and does no harm where its target is 0; where it is the target the loss is inf. A
    row of nothing but -inf, or with +inf, gives NaN. Where the mean is over nothing the gradient is 0.

    Confident rows keep their digits: the loss is computed as log1p of what the other classes add, and the target's
    gradient from the same sum, so neither rounds to 0 where ``1 - softmax`` does.

    Label smoothing: Szegedy et al. 2016, arXiv:1512.00567. z-loss: Chowdhery et al. 2022, arXiv:2204.02311. Softcap:
    Gemma Team 2024, arXiv:2408.00118.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> logits = np.array([[2.0, 0.1, 0.4], [1.0, 8.0, -1.0]])
    >>> loss, grad = fl.cross_entropy(logits, [1, 2], return_grad=True)
    >>> f"{loss:.6f}"
    '5.601112'
    >>> np.abs(grad.sum(axis=1)).max() < 1e-15
    np.True_

    A language model's logits, without the positions that are padding:

    >>> logits = np.zeros((2, 3, 5), np.float32)
    >>> target = np.array([[4, 0, -100], [1, -100, -100]])
    >>> f"{fl.cross_entropy(logits, target, axis=-1):.6f}"  # log(5)
    '1.609438'

    In place, with probabilities as targets:

    >>> logits = np.log([[0.3, 0.15, 0.25, 0.3]])
    >>> loss, grad = fl.cross_entropy(logits, [[0.4, 0.1, 0.25, 0.25]], out_grad=logits)
    >>> f"{loss:.4f}", grad is logits
    ('1.3189', True)
    """
    implementation = get_engine(engine)
    plain = getattr(implementation, "plain_class_loss", None)
    if plain and weight is None and sample_weight is None and softcap is None and normalizer is None:
        result = plain(
            logits, target, ignore_index, label_smoothing, z_loss, axis, empty, reduction, return_grad, out_grad,
            grad_output, num_threads,
        )  # fmt: skip
        if result is not None:
            return result
    problem = validate.class_loss(
        logits,
        target,
        weight=weight,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        softcap=softcap,
        axis=axis,
        normalizer=normalizer,
        empty=empty,
        reduction=reduction,
        return_grad=return_grad,
        out_grad=out_grad,
        grad_output=grad_output,
        num_threads=num_threads,
    )
    loss, grad = implementation.class_loss(problem)
    return (loss, grad) if problem.want_grad else loss
