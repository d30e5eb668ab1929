"""Binary and multi-label losses, element by element."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

from fastloss import validate
from fastloss.catalogue import loss, register
from fastloss.engines import get as get_engine

if TYPE_CHECKING:
    from typing import TypedDict

    from typing_extensions import Unpack

    from fastloss.validate import Array, Index, NDArray, Number, Reduced, Reduction

    class Options(TypedDict, total=False):
        weight: Array | None
        pos_weight: Array | None
        label_smoothing: Number
        ignore_index: Number | None
        engine: str | None
        num_threads: Index | None

    class Upstream(Options, total=False):
        grad_output: Number | None

    class Upstreams(Options, total=False):
        grad_output: Number | Array | None


@overload
def binary_cross_entropy_with_logits(
    logits: Array,
    target: Array,
    *,
    reduction: Reduced = ...,
    return_grad: Literal[False] = ...,
    out_grad: None = ...,
    **options: Unpack[Upstream],
) -> float: ...
@overload
def binary_cross_entropy_with_logits(
    logits: Array,
    target: Array,
    *,
    reduction: Reduced = ...,
    return_grad: Literal[True],
    out_grad: NDArray | None = ...,
    **options: Unpack[Upstream],
) -> tuple[float, NDArray]: ...
@overload
def binary_cross_entropy_with_logits(
    logits: Array,
    target: Array,
    *,
    reduction: Reduced = ...,
    return_grad: bool = ...,
    out_grad: NDArray,
    **options: Unpack[Upstream],
) -> tuple[float, NDArray]: ...
@overload
def binary_cross_entropy_with_logits(
    logits: Array,
    target: Array,
    *,
    reduction: Literal["none"],
    return_grad: Literal[False] = ...,
    out_grad: None = ...,
    **options: Unpack[Upstreams],
) -> NDArray: ...
@overload
def binary_cross_entropy_with_logits(
    logits: Array,
    target: Array,
    *,
    reduction: Literal["none"],
    return_grad: Literal[True],
    out_grad: NDArray | None = ...,
    **options: Unpack[Upstreams],
) -> tuple[NDArray, NDArray]: ...
@overload
def binary_cross_entropy_with_logits(
    logits: Array,
    target: Array,
    *,
    reduction: Literal["none"],
    return_grad: bool = ...,
    out_grad: NDArray,
    **options: Unpack[Upstreams],
) -> tuple[NDArray, NDArray]: ...
@overload
def binary_cross_entropy_with_logits(
    logits: Array,
    target: Array,
    *,
    reduction: Reduction = ...,
    return_grad: bool = ...,
    out_grad: NDArray | None = ...,
    **options: Unpack[Upstreams],
) -> Any: ...
@register
def binary_cross_entropy_with_logits(
    logits: Array,
    target: Array,
    *,
    weight: Array | None = None,
    pos_weight: Array | None = None,
    label_smoothing: Number = 0.0,
    ignore_index: Number | None = None,
    reduction: Reduction = "mean",
    return_grad: bool = False,
    out_grad: NDArray | None = None,
    grad_output: Number | Array | None = None,
    engine: str | None = None,
    num_threads: Index | None = None,
) -> Any:
    r"""Cross-entropy between sigmoid(logits) and target, element by element, and its gradient in the same pass.

    ::

        loss = weight * (pos_weight * y * softplus(-z) + (1 - y) * softplus(z)),    softplus(z) = log(1 + exp(z))
        y    = target * (1 - label_smoothing) + label_smoothing / 2

    with the gradient::

        grad = weight * ((1 - y) * sigmoid(z) - pos_weight * y * sigmoid(-z)) * grad_output / denominator

    Parameters
    ----------
    logits
        float32, float64, float16 or bfloat16 array of any shape, strides and alignment.
    target
        Boolean, integer or floating array of the logits' shape, with values in [0, 1].
    weight
        Factor of each element; broadcasts to the logits' shape.
    pos_weight
        Factor of the positive part; broadcasts to the logits' shape.
    label_smoothing
        In [0, 1]: moves targets towards 1/2.
    ignore_index
        Elements whose target has this value count for nothing.
    reduction
        "mean" (over the elements that count, whatever their weight), "sum" or "none".
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
    logits, target, and the loss for "none": any shape, the same for all.

    Errors
    ------
    ValueError for shapes and values, TypeError for types. Nothing has been written to out_grad then.

    Notes
    -----
    NaN in an element that counts makes its loss and gradient NaN, and no other's. A logit of inf with target 1, or
    of -inf with target 0, has loss 0. The mean over nothing is NaN, and its gradient 0.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> loss, grad = fl.binary_cross_entropy_with_logits(np.array([1.8, 0.75]), [1, 0], return_grad=True)
    >>> f"{loss:.4f}", grad.round(4).tolist()
    ('0.6449', [-0.0709, 0.3396])

    Multi-label, positives of the second label counted threefold:

    >>> logits = np.array([[0.5, -1.0], [2.0, 0.0]], np.float32)
    >>> labels = np.array([[True, False], [True, True]])
    >>> f"{fl.binary_cross_entropy_with_logits(logits, labels, pos_weight=[1, 3]):.4f}"
    '0.7484'
    """
    implementation = get_engine(engine)
    plain = getattr(implementation, "plain_element_loss", None)
    if plain and weight is None and pos_weight is None and ignore_index is None:
        result = plain(logits, target, label_smoothing, reduction, return_grad, out_grad, grad_output, num_threads)
        if result is not None:
            return result
    problem = validate.element_loss(
        logits,
        target,
        weight=weight,
        pos_weight=pos_weight,
        label_smoothing=label_smoothing,
        ignore_index=ignore_index,
        reduction=reduction,
        return_grad=return_grad,
        out_grad=out_grad,
        grad_output=grad_output,
        num_threads=num_threads,
    )
    loss, grad = implementation.element_loss(problem)
    return (loss, grad) if problem.want_grad else loss


@loss
def binary_cross_entropy(
    probs: Array,
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
    r"""Cross-entropy between probabilities and target, element by element, and its gradient in the same pass.

    ::

        loss = -weight * (y log(p) + (1 - y) log(1 - p)),    the logs at least -100
        grad = weight * (p - y) / max(p (1 - p), 1e-12) * grad_output / denominator

    From logits, `fastloss.binary_cross_entropy_with_logits` is faster and more exact than sigmoid and this.

    Parameters
    ----------
    probs
        Probabilities in [0, 1]: float32, float64, float16 or bfloat16 array of any shape, strides and alignment.
    target
        Boolean, integer or floating array of the same shape, with values in [0, 1].
    weight
        Factor of each element; broadcasts to the shape of probs.
    reduction
        "mean" (over all elements, whatever their weight), "sum" or "none".
    {common parameters}

    {returns}

    Shape
    -----
    probs, target, and the loss for "none": any shape, the same for all.

    Errors
    ------
    ValueError for shapes and values, also for the first probability outside [0, 1], TypeError for types. Nothing has
    been written to out_grad then.

    Notes
    -----
    The bounds, -100 and 1e-12, are torch's. NaN in an element makes its loss and gradient NaN, and no other's.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> f"{fl.binary_cross_entropy(np.array([0.277, 0.299, 0.424]), [0, 0, 1]):.4f}"
    '0.5125'
    """
    problem = validate.element_loss(
        probs,
        target,
        weight=weight,
        name="probs",
        loss="bce",
        reduction=reduction,
        return_grad=return_grad,
        out_grad=out_grad,
        grad_output=grad_output,
        num_threads=num_threads,
    )
    loss, grad = get_engine(engine).element_loss(problem)
    return (loss, grad) if problem.want_grad else loss
