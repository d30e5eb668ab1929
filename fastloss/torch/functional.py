"""The losses as functions of tensors."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn import _reduction

import fastloss as fl
from fastloss.torch import compiled, formulas
from fastloss.torch.autograd import INTEGERS, NUMBERS, Loss, run

# torch's functions, whatever is installed in their places later.
OWN = {
    name: getattr(F, name)
    for name in (
        "cross_entropy",
        "nll_loss",
        "binary_cross_entropy",
        "binary_cross_entropy_with_logits",
        "kl_div",
        "soft_margin_loss",
        "multilabel_soft_margin_loss",
        "multi_margin_loss",
        "multilabel_margin_loss",
    )
}


def _loss(name: str, **properties: Any) -> Loss:
    own: Any = OWN.get(name)
    loss = Loss(name, getattr(fl, name), getattr(formulas, name, own), own, **properties)
    compiled.LOSSES[name] = loss
    return loss


_CROSS_ENTROPY = _loss("cross_entropy", per="row", classes=True, probabilities=True, autocasts=True)
_NLL = _loss("nll_loss", per="row", classes=True, autocasts=True)
_BCE = _loss("binary_cross_entropy", probabilities=True, autocasts=True)
_BCE_WITH_LOGITS = _loss("binary_cross_entropy_with_logits", probabilities=True, numbers=NUMBERS, autocasts=True)
_KL_DIV = _loss("kl_div", probabilities=True, autocasts=True, twice=False)
_SOFT_MARGIN = _loss("soft_margin_loss", probabilities=True, numbers=INTEGERS)  # False would be -1 for fastloss
_MULTILABEL_SOFT_MARGIN = _loss("multilabel_soft_margin_loss", per="row", probabilities=True, numbers=NUMBERS)
_MULTI_MARGIN = _loss("multi_margin_loss", per="row", classes=True, autocasts=True, twice=False)
_MULTILABEL_MARGIN = _loss(
    "multilabel_margin_loss",
    per="row",
    probabilities=True,
    numbers=frozenset({torch.int64}),
    autocasts=True,
    twice=False,
)


def _given(**tensors: Any) -> dict[str, Any]:
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


_NOTHING: dict[str, Any] = {}


def cross_entropy(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    sample_weight: Any = None,
    z_loss: float = 0.0,
    softcap: float | None = None,
    axis: int = 1,
    normalizer: Any = None,
    empty: str = "nan",
    inplace: bool = False,
) -> Any:
    """`torch.nn.functional.cross_entropy`, with the options of `fastloss.cross_entropy`, whose docstring has them.

    Parameters
    ----------
    inplace
        The backward pass writes the gradient over the logits, which saves its memory. A gradient that needs the logits
        after that raises torch's error for tensors that were modified in place.

    Examples
    --------
    >>> import torch
    >>> import fastloss.torch
    >>> logits = torch.tensor([[2.0, 0.1, 0.4], [1.0, 8.0, -1.0]], requires_grad=True)
    >>> loss = fastloss.torch.cross_entropy(logits, torch.tensor([1, 2]))
    >>> loss.backward()
    >>> f"{loss.item():.4f}", logits.grad.sum(dim=1).abs().max().item() < 1e-7
    ('5.6011', True)
    """
    if size_average is not None or reduce is not None:
        reduction = _reduction.legacy_get_string(size_average, reduce)
    options = {"ignore_index": ignore_index, "reduction": reduction, "label_smoothing": label_smoothing}
    tensors = _NOTHING if weight is None else {"weight": weight}
    is_own = (
        sample_weight is None
        and softcap is None
        and normalizer is None
        and axis == 1
        and z_loss == 0.0
        and empty == "nan"
    )
    if not is_own:
        tensors = _given(weight=weight, sample_weight=sample_weight)
        options.update(z_loss=z_loss, softcap=softcap, axis=axis, empty=empty)
        _add_normalizer(tensors, options, normalizer)
    return run(_CROSS_ENTROPY, input, target, tensors, options, is_own, inplace)


def _add_normalizer(tensors: dict[str, Any], options: dict[str, Any], normalizer: Any) -> None:
    if isinstance(normalizer, torch.Tensor):
        tensors["normalizer"] = normalizer
    elif normalizer is not None:
        options["normalizer"] = normalizer


def nll_loss(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    *,
    sample_weight: Any = None,
    axis: int = 1,
    normalizer: Any = None,
    empty: str = "nan",
    inplace: bool = False,
) -> Any:
    """`torch.nn.functional.nll_loss`, with the options of `fastloss.nll_loss`.

    >>> import torch
    >>> import fastloss.torch
    >>> fastloss.torch.nll_loss(torch.tensor([[-0.5, -0.25, -1.0]]), torch.tensor([1]))
    tensor(0.2500)
    """
    if size_average is not None or reduce is not None:
        reduction = _reduction.legacy_get_string(size_average, reduce)
    options = {"ignore_index": ignore_index, "reduction": reduction}
    tensors = _given(weight=weight, sample_weight=sample_weight)
    is_own = sample_weight is None and normalizer is None and axis == 1 and empty == "nan"
    if not is_own:
        options.update(axis=axis, empty=empty)
        _add_normalizer(tensors, options, normalizer)
    return run(_NLL, input, target, tensors, options, is_own, inplace)


def binary_cross_entropy(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    *,
    inplace: bool = False,
) -> Any:
    """`torch.nn.functional.binary_cross_entropy`, of probabilities.

    >>> import torch
    >>> import fastloss.torch
    >>> fastloss.torch.binary_cross_entropy(torch.tensor([0.5, 0.5]), torch.tensor([0.0, 1.0]))
    tensor(0.6931)
    """
    if size_average is not None or reduce is not None:
        reduction = _reduction.legacy_get_string(size_average, reduce)
    return run(_BCE, input, target, _given(weight=weight), {"reduction": reduction}, True, inplace)


def binary_cross_entropy_with_logits(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Any = None,
    *,
    label_smoothing: float = 0.0,
    ignore_index: float | None = None,
    inplace: bool = False,
) -> Any:
    """`torch.nn.functional.binary_cross_entropy_with_logits`, with the options of
    `fastloss.binary_cross_entropy_with_logits`.

    >>> import torch
    >>> import fastloss.torch
    >>> logits, target = torch.tensor([1.8, 0.75]), torch.tensor([1.0, 0.0])
    >>> fastloss.torch.binary_cross_entropy_with_logits(logits, target)
    tensor(0.6449)
    """
    if size_average is not None or reduce is not None:
        reduction = _reduction.legacy_get_string(size_average, reduce)
    options: dict[str, Any] = {"reduction": reduction}
    tensors = _given(weight=weight, pos_weight=pos_weight)
    is_own = label_smoothing == 0.0 and ignore_index is None
    if not is_own:
        options.update(label_smoothing=label_smoothing, ignore_index=ignore_index)
    return run(_BCE_WITH_LOGITS, input, target, tensors, options, is_own, inplace)


def kl_div(
    input: Any,
    target: Any,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    log_target: bool = False,
    *,
    inplace: bool = False,
) -> Any:
    """`torch.nn.functional.kl_div`.

    >>> import torch
    >>> import fastloss.torch
    >>> log_input = torch.tensor([[0.5, 0.3, 0.2]]).log()
    >>> fastloss.torch.kl_div(log_input, torch.tensor([[0.4, 0.6, 0.0]]), reduction="batchmean")
    tensor(0.3266)
    """
    if size_average is not None or reduce is not None:
        reduction = _reduction.legacy_get_string(size_average, reduce)
    options = {"reduction": reduction, "log_target": log_target}
    return run(_KL_DIV, input, target, _NOTHING, options, True, inplace)


def soft_margin_loss(
    input: Any,
    target: Any,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    *,
    inplace: bool = False,
) -> Any:
    """`torch.nn.functional.soft_margin_loss`.

    >>> import torch
    >>> import fastloss.torch
    >>> fastloss.torch.soft_margin_loss(torch.tensor([1.8, 0.75]), torch.tensor([1.0, -1.0]))
    tensor(0.6449)
    """
    if size_average is not None or reduce is not None:
        reduction = _reduction.legacy_get_string(size_average, reduce)
    return run(_SOFT_MARGIN, input, target, _NOTHING, {"reduction": reduction}, True, inplace)


def multilabel_soft_margin_loss(
    input: Any,
    target: Any,
    weight: Any = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    *,
    inplace: bool = False,
) -> Any:
    """`torch.nn.functional.multilabel_soft_margin_loss`.

    >>> import torch
    >>> import fastloss.torch
    >>> fastloss.torch.multilabel_soft_margin_loss(torch.tensor([[0.5, -1.0]]), torch.tensor([[1.0, 0.0]]))
    tensor(0.3937)
    """
    if size_average is not None or reduce is not None:
        reduction = _reduction.legacy_get_string(size_average, reduce)
    tensors = _given(weight=weight)
    return run(_MULTILABEL_SOFT_MARGIN, input, target, tensors, {"reduction": reduction}, True, inplace)


def multi_margin_loss(
    input: Any,
    target: Any,
    p: int = 1,
    margin: float = 1.0,
    weight: Any = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    *,
    inplace: bool = False,
) -> Any:
    """`torch.nn.functional.multi_margin_loss`.

    >>> import torch
    >>> import fastloss.torch
    >>> fastloss.torch.multi_margin_loss(torch.tensor([[0.1, 0.2, 0.4, 0.8]]), torch.tensor([3]))
    tensor(0.3250)
    """
    if size_average is not None or reduce is not None:
        reduction = _reduction.legacy_get_string(size_average, reduce)
    options = {"p": p, "margin": margin, "reduction": reduction}
    return run(_MULTI_MARGIN, input, target, _given(weight=weight), options, True, inplace)


def multilabel_margin_loss(
    input: Any,
    target: Any,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    *,
    inplace: bool = False,
) -> Any:
    """`torch.nn.functional.multilabel_margin_loss`.

    >>> import torch
    >>> import fastloss.torch
    >>> scores, labels = torch.tensor([[0.1, 0.2, 0.4, 0.8]]), torch.tensor([[3, 0, -1, 1]])
    >>> fastloss.torch.multilabel_margin_loss(scores, labels)
    tensor(0.8500)
    """
    if size_average is not None or reduce is not None:
        reduction = _reduction.legacy_get_string(size_average, reduce)
    return run(_MULTILABEL_MARGIN, input, target, _NOTHING, {"reduction": reduction}, True, inplace)


# ---- fastloss's own losses ------------------------------------------------------------------------------------------

_TENSORS = ("weight", "sample_weight", "normalizer")
_OF_ARRAYS = ("return_grad", "out_grad", "grad_output", "engine", "num_threads")


def _of_tensors(name: str, **properties: Any) -> Callable[..., Any]:
    """The function of fastloss of this name, for tensors: its own options, and inplace."""
    loss = _loss(name, **properties)
    parameters = list(inspect.signature(loss.compute).parameters.values())[2:]
    defaults = {each.name: each.default for each in parameters if each.name not in _OF_ARRAYS}

    def function(input: Any, target: Any, *, inplace: bool = False, **options: Any) -> Any:
        for option in options:
            if option not in defaults:
                raise TypeError(f"{name} has no option {option!r}: expected one of {', '.join(defaults)}, inplace")
        tensors = {each: options.pop(each) for each in _TENSORS if isinstance(options.get(each), torch.Tensor)}
        options = {each: default for each, default in defaults.items() if each not in tensors} | options
        return run(loss, input, target, tensors, options, False, inplace)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = (
        f"`fastloss.{name}` of tensors, with its options but those of arrays ({', '.join(_OF_ARRAYS)}), and `inplace`, "
        "see `fastloss.torch.cross_entropy`."
    )
    function.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(each, inspect.Parameter.POSITIONAL_OR_KEYWORD) for each in ("input", "target")]
        + [inspect.Parameter(each, inspect.Parameter.KEYWORD_ONLY, default=value) for each, value in defaults.items()]
        + [inspect.Parameter("inplace", inspect.Parameter.KEYWORD_ONLY, default=False)]
    )
    return function


focal_cross_entropy = _of_tensors("focal_cross_entropy", per="row", classes=True)
sigmoid_focal_loss = _of_tensors("sigmoid_focal_loss")
hinge_loss = _of_tensors("hinge_loss")
dice_loss = _of_tensors("dice_loss", per="class")
jaccard_loss = _of_tensors("jaccard_loss", per="class")
tversky_loss = _of_tensors("tversky_loss", per="class")
lovasz_loss = _of_tensors("lovasz_loss", per="sample")
