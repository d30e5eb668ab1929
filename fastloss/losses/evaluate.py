"""What a validation loop wants to know of a batch, in the pass that computes its loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastloss import validate
from fastloss.engines import get as get_engine

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fastloss.validate import Array, ClassProblem, Empty, Index, Mode, NDArray, Number

_CHUNK = 1 << 18  # logits whose ranks are worked out at a time


@dataclass(frozen=True)
class Evaluation:
    """The figures of a batch: see `fastloss.evaluate`.

    >>> import numpy as np
    >>> import fastloss as fl
    >>> fl.evaluate(np.eye(3), [0, 1, 2]).accuracy
    1.0
    """

    loss: float
    accuracy: float
    topk: dict[int, float]
    entropy: float
    count: int
    lse: NDArray | None


def evaluate(
    logits: Array,
    target: Array,
    *,
    topk: Iterable[Index] = (1, 5),
    mode: Mode = "multiclass",
    threshold: Number = 0.5,
    return_lse: bool = False,
    weight: Array | None = None,
    sample_weight: Array | None = None,
    ignore_index: Index | None = None,
    label_smoothing: Number = 0.0,
    axis: Index = 1,
    empty: Empty = "nan",
    engine: str | None = None,
    num_threads: Index | None = None,
) -> Evaluation:
    r"""Loss, accuracy, top-k accuracy and mean entropy of a batch, in one pass over the logits.

    ::

        accuracy = mean of [argmax_c z_c = y],    topk[k] = mean of [y is among the k largest z_c]
        entropy  = mean of -sum_c p_c log(p_c),   p = softmax(z)

    Parameters
    ----------
    logits
        float32, float64, float16 or bfloat16 array with at least one dimension, any strides and alignment.
    target
        "multiclass": class indices of any integer dtype. "multilabel" and "binary": a boolean or numeric array of the
        logits' shape.
    topk
        Numbers of classes, each at least 1.
    mode
        "multiclass": the loss is `fastloss.cross_entropy`; "multilabel" and "binary":
        `fastloss.binary_cross_entropy_with_logits`, an element is predicted where its probability reaches the
        threshold, and there are no top-k accuracies.
    threshold
        In (0, 1), for "multilabel" and "binary".
    return_lse
        Return logsumexp(z) of each target as well ("multiclass").
    weight, sample_weight, label_smoothing, axis, empty, engine, num_threads
        As for the loss; they change nothing but the loss. sample_weight and empty are for "multiclass".
    ignore_index
        Targets of this value count for nothing; by default -100 for "multiclass" and none otherwise.

    Returns
    -------
    Evaluation
        loss : float, the mean, which may differ from the loss function's in the last bits. accuracy : float. topk :
        dict from k to float. entropy : float, in nats ("binary" and "multilabel": of the two outcomes of each element).
        count : int, targets that count. lse : array of the target's shape, 0 where ignored, or None. All means are NaN
        where nothing counts.

    Errors
    ------
    ValueError for shapes and values, TypeError for types, IndexError for the first target that is neither a class nor
    ignore_index.

    Notes
    -----
    Of classes with equal logits the first ranks first, as in argmax. A row without a softmax, as one with NaN, is
    a miss, and a target whose logit is -inf.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> result = fl.evaluate(np.array([[2.0, 0.1, 0.4], [1.0, 8.0, -1.0]]), [0, 2], topk=(1, 2))
    >>> f"{result.loss:.4f}", result.accuracy, result.topk, result.count
    ('4.6511', 0.5, {1: 0.5, 2: 0.5}, 2)
    """
    mode = validate.choice("mode", mode, validate.MODES)  # type: ignore[assignment]
    ks = validate.counts("topk", topk)
    if mode != "multiclass":
        if sample_weight is not None:
            raise ValueError(f"sample_weight is for mode='multiclass', not {mode!r}: see weight")
        return _binary(logits, target, threshold, weight, ignore_index, label_smoothing, engine, num_threads)
    implementation = get_engine(engine)
    ignore_index = -100 if ignore_index is None else ignore_index
    plain = getattr(implementation, "plain_evaluate", None)
    figures = None
    if plain and weight is None and sample_weight is None and not return_lse:
        figures = plain(logits, target, (1, *ks), ignore_index, label_smoothing, axis, empty, num_threads)
    if figures is None:
        problem = validate.class_loss(
            logits, target, weight=weight, sample_weight=sample_weight, ignore_index=ignore_index,
            label_smoothing=label_smoothing, axis=axis, empty=empty, num_threads=num_threads,
        )  # fmt: skip
        if problem.is_probabilities:
            raise TypeError("target must be class indices of an integer dtype, not probabilities: they have no rank")
        if hasattr(implementation, "evaluate"):
            figures = implementation.evaluate(problem, (1, *ks), bool(return_lse))
        figures = figures or _in_parts(implementation, problem, (1, *ks), bool(return_lse))
    loss, correct, entropy, count, lse = figures
    accuracy, *rest = ((c / count if count else float("nan")) for c in correct)
    return Evaluation(
        loss, accuracy, dict(zip(ks, rest, strict=True)), entropy / count if count else float("nan"), count, lse
    )


def _in_parts(implementation: Any, problem: ClassProblem, ks: tuple[int, ...], want_lse: bool) -> Any:
    """Where an engine does not have it in one pass: loss, correct targets for each k, sum of entropies, count, lse."""
    loss, _ = implementation.class_loss(problem)
    counts = (problem.target != problem.ignore_index).reshape(-1)
    kinds: Any = ("entropy", "logsumexp")
    entropy, lse = (
        implementation.softmax(validate.softmax(kind, problem.logits, problem.axis, problem.num_threads))
        for kind in kinds
    )
    rows = np.moveaxis(problem.logits, problem.axis, -1).reshape(-1, problem.classes)
    target = np.where(counts, problem.target.reshape(-1), 0).astype(np.int64)
    rank = np.empty(len(rows), np.int64)
    step = max(1, _CHUNK // problem.classes)
    before = np.arange(problem.classes)
    for first in range(0, len(rows), step):
        z, y = rows[first : first + step], target[first : first + step, None]
        z_y = np.take_along_axis(z, y, axis=1)
        with np.errstate(invalid="ignore"):
            rank[first : first + step] = np.count_nonzero((z > z_y) | ((z == z_y) & (before < y)), axis=1)
        # No softmax, or a target of probability 0: a miss.
        rank[first : first + step][z_y[:, 0] == -np.inf] = problem.classes
    rank[np.isnan(lse.reshape(-1))] = problem.classes
    lse = np.where(counts.reshape(lse.shape), lse, 0).astype(lse.dtype)
    correct = [int(np.count_nonzero((rank < k) & counts & (rank < problem.classes))) for k in ks]
    total = float(entropy.reshape(-1)[counts].sum(dtype=np.float64))
    return loss, correct, total, int(np.count_nonzero(counts)), lse if want_lse else None


def _binary(
    logits: Any, target: Any, threshold: Any, weight: Any, ignore_index: Any, label_smoothing: Any, engine: str | None,
    num_threads: Any,
) -> Evaluation:  # fmt: skip
    problem = validate.element_loss(
        logits, target, weight=weight, label_smoothing=label_smoothing, ignore_index=ignore_index,
        num_threads=num_threads,
    )  # fmt: skip
    cut = validate.probability("threshold", threshold)
    implementation = get_engine(engine)
    loss, _ = implementation.element_loss(problem)
    z = np.ascontiguousarray(problem.logits).reshape(-1)
    y = np.ascontiguousarray(problem.target).reshape(-1)
    correct = count = 0
    entropy = 0.0
    for first in range(0, z.size, _CHUNK):
        part, labels = z[first : first + _CHUNK].astype(problem.compute_dtype), y[first : first + _CHUNK]
        counts = np.full(labels.shape, True) if problem.ignore_index is None else labels != problem.ignore_index
        predicted = part >= np.log(cut / (1 - cut))
        correct += int(np.count_nonzero((predicted == (labels > cut)) & counts & ~np.isnan(part)))
        count += int(np.count_nonzero(counts))
        with np.errstate(all="ignore"):
            decay = np.exp(-np.abs(part))
            each = np.log1p(decay) + np.where(decay == 0, 0, np.abs(part) * decay) / (1 + decay)
        entropy += float(each[counts].sum(dtype=np.float64))
    if count == 0:
        return Evaluation(float(loss), float("nan"), {}, float("nan"), 0, None)
    return Evaluation(float(loss), correct / count, {}, entropy / count, count, None)
