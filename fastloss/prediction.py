"""What a model's logits predict."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from fastloss import validate
from fastloss.engines import get as get_engine

if TYPE_CHECKING:
    from fastloss.validate import Array, Index, NDArray, Number

Kind: TypeAlias = Literal["classes", "probabilities"]
Mode: TypeAlias = Literal["multiclass", "multilabel", "binary"]

KINDS = ("classes", "probabilities")
MODES = ("multiclass", "multilabel", "binary")


def predict(
    logits: Array,
    *,
    kind: Kind = "classes",
    mode: Mode = "multiclass",
    axis: Index = 1,
    threshold: Number | None = None,
    engine: str | None = None,
    num_threads: Index | None = None,
) -> NDArray:
    r"""Classes or probabilities from logits.

    ::

        multiclass            argmax_c z_c          softmax(z)
        multilabel, binary    sigmoid(z) >= t       sigmoid(z)

    Parameters
    ----------
    logits
        float32, float64, float16 or bfloat16 array, any strides and alignment.
    kind
        "classes" or "probabilities".
    mode
        "multiclass": one class of those on the class axis. "multilabel" and "binary": yes or no for each logit.
    axis
        The class axis for "multiclass"; one-dimensional logits use their only one.
    threshold
        The probability in [0, 1] from which the answer is yes, 0.5 by default. Only for "multilabel" and "binary" and
        their classes.
    engine
        Name of the engine that computes probabilities, see `fastloss.engines`.
    num_threads
        Number of threads for probabilities, see `fastloss.get_num_threads`.

    Returns
    -------
    ndarray
        Classes: int64 without the class axis for "multiclass", else boolean of the logits' shape. Probabilities: the
        logits' shape and dtype, in native byte order.

    Errors
    ------
    ValueError for shapes and values, TypeError for types.

    Notes
    -----
    The first of equal classes wins. A row with NaN gives the position of its first NaN as the class, as NumPy's argmax
    does, and NaN as probabilities; a NaN logit gives False. A row of nothing but -inf gives class 0.

    The logits are compared with ``log(t / (1 - t))`` in float64, so no sigmoid is computed, and none is rounded.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> logits = np.array([[2.0, 0.1, 0.4], [1.0, 8.0, -1.0]])
    >>> fl.predict(logits).tolist()
    [0, 1]
    >>> fl.predict(logits, kind="probabilities").round(3).tolist()
    [[0.74, 0.111, 0.149], [0.001, 0.999, 0.0]]
    >>> fl.predict(logits, mode="multilabel", threshold=0.6).tolist()
    [[True, False, False], [True, True, False]]
    """
    validate.choice("kind", kind, KINDS)
    validate.choice("mode", mode, MODES)
    implementation = get_engine(engine)
    if threshold is not None and (mode == "multiclass" or kind == "probabilities"):
        raise ValueError(f"threshold is given, but mode={mode!r} with kind={kind!r} has none: expected None")
    if mode == "multiclass":
        rows = validate.softmax("softmax", logits, axis, num_threads)
        if kind == "probabilities":
            return implementation.softmax(rows)  # type: ignore[no-any-return]
        return np.asarray(np.argmax(rows.logits, axis=rows.axis), np.int64)
    elements = validate.elementwise("sigmoid", validate._floats("logits", logits), num_threads)
    if kind == "probabilities":
        return implementation.map(elements)  # type: ignore[no-any-return]
    probability = 0.5 if threshold is None else validate._number("threshold", threshold, "in [0, 1]", low=0.0, high=1.0)
    # A float64 scalar, not a Python float, which NumPy would round to the logits' dtype.
    return np.asarray(elements.x >= np.float64(_logit(probability)))


def _logit(probability: float) -> float:
    if probability in (0.0, 1.0):
        return -math.inf if probability == 0.0 else math.inf
    return math.log(probability) - math.log1p(-probability)
