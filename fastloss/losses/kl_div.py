"""Kullback-Leibler divergence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastloss import validate
from fastloss.catalogue import loss
from fastloss.engines import get as get_engine

if TYPE_CHECKING:
    from fastloss.validate import Array, Index, NDArray, Number, ReductionOrBatchmean


@loss
def kl_div(
    log_input: Array,
    target: Array,
    *,
    log_target: bool = False,
    reduction: ReductionOrBatchmean = "mean",
    return_grad: bool = False,
    out_grad: NDArray | None = None,
    grad_output: Number | Array | None = None,
    engine: str | None = None,
    num_threads: Index | None = None,
) -> Any:
    r"""Kullback-Leibler divergence of target probabilities from log-probabilities, and its gradient.

    ::

        loss = y (log(y) - log_input),        grad = -y * grad_output / denominator
        loss = exp(y) (y - log_input),        grad = -exp(y) * grad_output / denominator        with log_target

    Parameters
    ----------
    log_input
        Logs of the probabilities: float32, float64, float16 or bfloat16 array of any shape, strides and alignment.
    target
        Probabilities, or their logs with log_target: boolean, integer or floating array of the input's shape.
    log_target
        Whether the target holds logs.
    reduction
        "mean" (over all elements), "batchmean" (the sum over the length of the first axis, which is the divergence
        itself), "sum" or "none".
    {common parameters}

    {returns}

    Shape
    -----
    log_input, target, and the loss for "none": any shape, the same for all.

    Errors
    ------
    ValueError for shapes and values, TypeError for types. Nothing has been written to out_grad then.

    Notes
    -----
    Where the target's probability is 0 the loss is 0, whatever the input but NaN. A negative target gives NaN.

    Kullback and Leibler 1951, doi:10.1214/aoms/1177729694.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> log_input = np.log([[0.5, 0.3, 0.2]])
    >>> loss, grad = fl.kl_div(log_input, [[0.4, 0.5, 0.1]], reduction="batchmean", return_grad=True)
    >>> f"{loss:.4f}", grad.tolist()
    ('0.0968', [[-0.4, -0.5, -0.1]])
    """
    batchmean = isinstance(reduction, str) and reduction == "batchmean"
    samples = float(validate.length("log_input", log_input)) if batchmean else None
    problem = validate.element_loss(
        log_input,
        target,
        name="log_input",
        loss="kl_div_log" if log_target else "kl_div",
        normalizer=samples,
        reduction="mean" if batchmean else reduction,
        return_grad=return_grad,
        out_grad=out_grad,
        grad_output=grad_output,
        num_threads=num_threads,
    )
    loss, grad = get_engine(engine).element_loss(problem)
    return (loss, grad) if problem.want_grad else loss
