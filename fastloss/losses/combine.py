"""Weighted sums of losses, with one gradient; parts that share a softmax have it computed once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fastloss import validate
from fastloss.catalogue import LOSSES
from fastloss.engines import get as get_engine
from fastloss.losses import overlap
from fastloss.losses.cross_entropy import cross_entropy
from fastloss.losses.focal import focal_cross_entropy

_RESERVED = ("return_grad", "out_grad", "grad_output", "engine", "num_threads")
_OVERLAPS = (overlap.dice_loss, overlap.jaccard_loss, overlap.tversky_loss)
# Options of cross-entropy that the pass of an overlap loss knows too.
_SHARED_OPTIONS = {"weight", "ignore_index", "axis", "gamma"}


def combine(parts: Sequence[tuple[Any, ...]]) -> CombinedLoss:
    r"""A loss that is the weighted sum of others.

    ::

        loss = sum_k weight_k loss_k(input, target),    grad = sum_k weight_k grad_k

    Parameters
    ----------
    parts
        A sequence of (weight, loss) or (weight, loss, options): a number, a loss of fastloss or one that was made by
        `fastloss.elementwise`, `fastloss.rowwise` or `fastloss.combine`, and a dictionary of its options.

    Returns
    -------
    CombinedLoss
        ``loss(input, target, *, reduction="mean", return_grad=False, out_grad=None, grad_output=None, engine=None,
        num_threads=None)``, whose arguments are those of every loss. `reduction` is that of all parts, but for those
        whose options name one.

    Errors
    ------
    ValueError and TypeError for parts of another form.

    Notes
    -----
    Cross-entropy, focal cross-entropy and one of dice_loss, jaccard_loss and tversky_loss (multiclass, from logits)
    share their softmax and their passes over the logits, where they agree in `axis` and `ignore_index` (the overlap
    loss may leave that at None) and have no other options than class weights, or without an overlap loss any options
    that agree. Other parts are computed one after the other, with one temporary of the gradient's size.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> loss = fl.combine([(0.5, fl.cross_entropy), (0.5, fl.dice_loss, {"smooth": 1.0})])
    >>> logits = np.array([[[2.0, -1.0, 0.5], [0.0, 1.0, 0.5]]])
    >>> value, grad = loss(logits, np.array([[0, 1, 1]]), return_grad=True)
    >>> f"{value:.4f}", grad.round(3).tolist()
    ('0.2324', [[[-0.031, 0.03, 0.108], [0.031, -0.03, -0.108]]])
    """
    return CombinedLoss(parts)


class CombinedLoss:
    """A weighted sum of losses: see `fastloss.combine`."""

    def __init__(self, parts: Sequence[tuple[Any, ...]]) -> None:
        if isinstance(parts, (str, bytes)) or not isinstance(parts, Sequence) or not parts:
            raise TypeError(f"combine needs a sequence of (weight, loss, options), not {parts!r}")
        self.parts = tuple(_part(k, part) for k, part in enumerate(parts))
        self.__name__ = " + ".join(f"{weight:g} {_name(loss)}" for weight, loss, _ in self.parts)

    def __repr__(self) -> str:
        return f"<CombinedLoss {self.__name__}>"

    def __call__(
        self,
        input: Any,
        target: Any,
        *,
        reduction: Any = "mean",
        return_grad: bool = False,
        out_grad: Any = None,
        grad_output: Any = None,
        engine: str | None = None,
        num_threads: Any = None,
    ) -> Any:
        common = {"engine": engine, "num_threads": num_threads}
        want_grad = bool(return_grad) or out_grad is not None
        shared = _share(self.parts) if reduction in ("mean", "sum") else None
        if shared is not None:
            keywords = {"reduction": reduction, "return_grad": want_grad, "out_grad": out_grad, **common}
            return shared(input, target, grad_output, keywords)
        if reduction in ("mean", "sum"):
            grad_output = validate.upstream(grad_output, reduction, ())
        elif want_grad and len(self.parts) > 1:  # so that losses of different shapes raise before out_grad is written
            self(input, target, reduction=reduction, **common)
        total: Any = 0.0
        grad = None
        for k, (weight, loss, options) in enumerate(self.parts):
            keywords = {"reduction": reduction, **options, **common}
            if not want_grad:
                total = _add(total, weight, loss(input, target, **keywords), loss)
                continue
            keywords["grad_output"] = validate.scaled(grad_output, weight)
            # Only the last part writes to the user's array, which may be the input.
            is_last = k == len(self.parts) - 1
            value, part = loss(input, target, return_grad=True, out_grad=out_grad if is_last else None, **keywords)
            total = _add(total, weight, value, loss)
            if grad is not None:
                with np.errstate(all="ignore"):
                    part += grad
            grad = part
        return (total, grad) if want_grad else total


def _part(k: int, part: Any) -> tuple[float, Callable[..., Any], dict[str, Any]]:
    if not isinstance(part, Sequence) or isinstance(part, str) or not 2 <= len(part) <= 3:
        raise TypeError(f"part {k} must be (weight, loss) or (weight, loss, options), not {part!r}")
    weight, loss, options = part[0], part[1], part[2] if len(part) == 3 else {}
    if not callable(loss):
        raise TypeError(f"part {k}: the loss must be a function, not {loss!r}")
    if not isinstance(options, Mapping):
        raise TypeError(f"part {k}: the options must be a dictionary, not {options!r}")
    known = inspect.signature(loss).parameters if loss in LOSSES.values() else None
    for name in options:
        if name in _RESERVED:
            raise ValueError(f"part {k}: {name} belongs to the combined loss, not to a part")
        if known is not None and name not in known:
            raise TypeError(f"part {k}: {_name(loss)} has no option {name!r}")
    return validate.number(f"part {k}: the weight", weight), loss, dict(options)


def _name(loss: Any) -> str:
    return str(getattr(loss, "__name__", loss))


def _add(total: Any, weight: float, value: Any, loss: Any) -> Any:
    if np.shape(total) not in ((), np.shape(value)):
        raise ValueError(
            f"{_name(loss)} has a loss of shape {np.shape(value)}, but the parts before it {np.shape(total)}: "
            'losses of different shapes can only be combined with reduction "mean" or "sum"'
        )
    return total + weight * value


def _share(parts: Sequence[tuple[float, Any, dict[str, Any]]]) -> Callable[..., Any] | None:
    """A function that computes all parts in the same passes, or None where they can't be."""
    overlaps = [part for part in parts if part[1] in _OVERLAPS]
    entropies = [part for part in parts if part[1] in (cross_entropy, focal_cross_entropy)]
    focals = [part for part in entropies if part[1] is focal_cross_entropy]
    if len(overlaps) > 1 or len(overlaps) + len(entropies) != len(parts) or len(parts) < 2 or not entropies:
        return None
    weight = sum(part[0] for part in entropies)
    if any(part[0] < 0 for part in entropies) or not weight > 0:
        return None
    options = {k: v for k, v in entropies[0][2].items() if k != "gamma"}
    gammas = [validate.number("gamma", part[2].get("gamma", 2.0), low=0.0) for part in focals]
    if len(set(gammas)) > 1:
        return None
    for _, _, other in entropies:
        if not _same({k: v for k, v in other.items() if k != "gamma"}, options) or "reduction" in other:
            return None
    focal = sum(part[0] for part in focals) / weight
    gamma = gammas[0] if gammas else 0.0
    if not overlaps:
        if options.get("z_loss", 0.0) != 0.0:
            return None
        return lambda *given: _entropies(weight, focal, gamma, options, *given)
    over_weight, over_loss, over_options = overlaps[0]
    # A negative label that only cross-entropy ignores is an error of the overlap loss, here as there.
    ignore, entropy_ignore = over_options.get("ignore_index"), options.get("ignore_index", -100)
    if (
        not set(options) <= _SHARED_OPTIONS
        or over_options.get("mode", "multiclass") != "multiclass"
        or not over_options.get("from_logits", True)
        or over_options.get("axis", 1) != options.get("axis", 1)
        or not (ignore == entropy_ignore or (ignore is None and entropy_ignore < 0))
        or "reduction" in over_options
    ):
        return None
    return lambda *given: _with_overlap(
        weight, focal, gamma, options.get("weight"), over_weight, over_loss, over_options, *given
    )


def _same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(a[name] is b[name] or np.array_equal(a[name], b[name]) for name in a)


def _entropies(
    weight: float, focal: float, gamma: Any, options: dict[str, Any], logits: Any, target: Any, grad_output: Any,
    keywords: dict[str, Any],
) -> Any:  # fmt: skip
    """weight * ((1 - focal) * cross_entropy + focal * focal_cross_entropy)."""
    keywords = dict(keywords)
    engine = keywords.pop("engine")
    upstream = validate.upstream(grad_output, keywords["reduction"], ())
    problem = validate.class_loss(
        logits, target, **options, **keywords, grad_output=weight * float(upstream), focal=focal,
        gamma=gamma,
    )  # fmt: skip
    loss, grad = get_engine(engine).class_loss(problem)
    return (weight * loss, grad) if problem.want_grad else weight * loss


def _with_overlap(
    weight: float, focal: float, gamma: Any, class_weight: Any, over_weight: float, over_loss: Any,
    over_options: dict[str, Any], logits: Any, target: Any, grad_output: Any, keywords: dict[str, Any],
) -> Any:  # fmt: skip
    """weight * ((1 - focal) * cross_entropy + focal * focal_cross_entropy) + over_weight * over_loss."""
    implementation = get_engine(keywords["engine"])
    reduction = keywords["reduction"]
    common = {name: value for name, value in keywords.items() if name != "engine"}
    problem, loss_of = overlap.read(
        logits, target, overlap.settings(over_loss, over_options), {**common, "grad_output": grad_output}
    )
    upstream = validate.upstream(grad_output, reduction, ())
    problem = replace(
        problem,
        cross_entropy=weight,
        class_weight=validate.class_weight(class_weight, problem),
        focal=focal,
        gamma=validate.number("gamma", gamma, low=0.0),
    )
    sums, (entropy, denominator) = implementation.overlap_sums(problem)
    total, of_intersection, of_sum = loss_of(sums, over_weight)
    if reduction == "sum":
        denominator = 1.0
    total = float(over_weight * total + (weight * entropy / denominator if denominator else float("nan")))
    if not problem.want_grad:
        return total
    scale = weight * float(upstream) / denominator if denominator else 0.0
    return total, problem.given_gradient(implementation.overlap_gradient(problem, of_intersection, of_sum, scale))
