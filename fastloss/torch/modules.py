"""The losses as modules. Those that torch has are subclasses of its own, and load and save as they do."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch

import fastloss as fl
from fastloss.torch import functional
from fastloss.torch.autograd import Loss, run


class _Extended(torch.nn.Module):
    """What the subclasses of torch's modules add: options of fastloss, and a look at all of them."""

    extra: dict[str, Any]

    def extra_repr(self) -> str:
        shown = []
        for name, parameter in inspect.signature(type(self)).parameters.items():
            value = self.extra[name] if name in self.extra else getattr(self, name, None)
            if isinstance(value, torch.Tensor):
                shown.append(f"{name}=tensor of shape {tuple(value.shape)}")
            elif value != parameter.default and name not in ("size_average", "reduce"):
                shown.append(f"{name}={value!r}")
        return ", ".join(shown)


class CrossEntropyLoss(_Extended, torch.nn.CrossEntropyLoss):
    """`torch.nn.CrossEntropyLoss`, with the options of `fastloss.cross_entropy`, and `inplace`.

    Called as ``loss(input, target)``, and with options of the batch: ``loss(input, target, sample_weight=...)``, also
    `normalizer`.

    >>> import torch
    >>> import fastloss.torch
    >>> loss = fastloss.torch.CrossEntropyLoss(axis=-1, z_loss=1e-4)
    >>> loss
    CrossEntropyLoss(z_loss=0.0001, axis=-1)
    >>> loss(torch.zeros(2, 3, 5), torch.tensor([[4, 0, -100], [1, -100, -100]]))
    tensor(1.6097)
    """

    def __init__(
        self,
        weight: Any = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        *,
        z_loss: float = 0.0,
        softcap: float | None = None,
        axis: int = 1,
        normalizer: Any = None,
        empty: str = "nan",
        inplace: bool = False,
    ) -> None:
        super().__init__(weight, size_average, ignore_index, reduce, reduction, label_smoothing)
        self.extra = {
            "z_loss": z_loss,
            "softcap": softcap,
            "axis": axis,
            "normalizer": normalizer,
            "empty": empty,
            "inplace": inplace,
        }

    def forward(self, input: Any, target: Any, **of_batch: Any) -> Any:
        return functional.cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            **{**self.extra, **of_batch},
        )


class NLLLoss(_Extended, torch.nn.NLLLoss):
    """`torch.nn.NLLLoss`, with the options of `fastloss.nll_loss`, and `inplace`."""

    def __init__(
        self,
        weight: Any = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
        *,
        axis: int = 1,
        normalizer: Any = None,
        empty: str = "nan",
        inplace: bool = False,
    ) -> None:
        super().__init__(weight, size_average, ignore_index, reduce, reduction)
        self.extra = {"axis": axis, "normalizer": normalizer, "empty": empty, "inplace": inplace}

    def forward(self, input: Any, target: Any, **of_batch: Any) -> Any:
        return functional.nll_loss(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            **{**self.extra, **of_batch},
        )


class BCELoss(_Extended, torch.nn.BCELoss):
    """`torch.nn.BCELoss`, and `inplace`."""

    def __init__(
        self,
        weight: Any = None,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
        *,
        inplace: bool = False,
    ) -> None:
        super().__init__(weight, size_average, reduce, reduction)
        self.extra = {"inplace": inplace}

    def forward(self, input: Any, target: Any) -> Any:
        return functional.binary_cross_entropy(input, target, self.weight, reduction=self.reduction, **self.extra)


class BCEWithLogitsLoss(_Extended, torch.nn.BCEWithLogitsLoss):
    """`torch.nn.BCEWithLogitsLoss`, with the options of `fastloss.binary_cross_entropy_with_logits`, and `inplace`.

    >>> import torch
    >>> import fastloss.torch
    >>> loss = fastloss.torch.BCEWithLogitsLoss(ignore_index=-1)
    >>> loss(torch.tensor([1.8, 0.75, 9.0]), torch.tensor([1, 0, -1]))
    tensor(0.6449)
    """

    def __init__(
        self,
        weight: Any = None,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
        pos_weight: Any = None,
        *,
        label_smoothing: float = 0.0,
        ignore_index: float | None = None,
        inplace: bool = False,
    ) -> None:
        super().__init__(weight, size_average, reduce, reduction, pos_weight)
        self.extra = {"label_smoothing": label_smoothing, "ignore_index": ignore_index, "inplace": inplace}

    def forward(self, input: Any, target: Any) -> Any:
        return functional.binary_cross_entropy_with_logits(
            input, target, self.weight, reduction=self.reduction, pos_weight=self.pos_weight, **self.extra
        )


class KLDivLoss(_Extended, torch.nn.KLDivLoss):
    """`torch.nn.KLDivLoss`, and `inplace`."""

    def __init__(
        self,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
        log_target: bool = False,
        *,
        inplace: bool = False,
    ) -> None:
        super().__init__(size_average, reduce, reduction, log_target)
        self.extra = {"inplace": inplace}

    def forward(self, input: Any, target: Any) -> Any:
        return functional.kl_div(input, target, reduction=self.reduction, log_target=self.log_target, **self.extra)


class SoftMarginLoss(_Extended, torch.nn.SoftMarginLoss):
    """`torch.nn.SoftMarginLoss`, and `inplace`."""

    def __init__(
        self,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
        *,
        inplace: bool = False,
    ) -> None:
        super().__init__(size_average, reduce, reduction)
        self.extra = {"inplace": inplace}

    def forward(self, input: Any, target: Any) -> Any:
        return functional.soft_margin_loss(input, target, reduction=self.reduction, **self.extra)


class MultiLabelSoftMarginLoss(_Extended, torch.nn.MultiLabelSoftMarginLoss):
    """`torch.nn.MultiLabelSoftMarginLoss`, and `inplace`."""

    def __init__(
        self,
        weight: Any = None,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
        *,
        inplace: bool = False,
    ) -> None:
        super().__init__(weight, size_average, reduce, reduction)
        self.extra = {"inplace": inplace}

    def forward(self, input: Any, target: Any) -> Any:
        return functional.multilabel_soft_margin_loss(
            input, target, self.weight, reduction=self.reduction, **self.extra
        )


class MultiMarginLoss(_Extended, torch.nn.MultiMarginLoss):
    """`torch.nn.MultiMarginLoss`, and `inplace`."""

    def __init__(
        self,
        p: int = 1,
        margin: float = 1.0,
        weight: Any = None,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
        *,
        inplace: bool = False,
    ) -> None:
        super().__init__(p, margin, weight, size_average, reduce, reduction)
        self.extra = {"inplace": inplace}

    def forward(self, input: Any, target: Any) -> Any:
        return functional.multi_margin_loss(
            input, target, self.p, self.margin, self.weight, reduction=self.reduction, **self.extra
        )


class MultiLabelMarginLoss(_Extended, torch.nn.MultiLabelMarginLoss):
    """`torch.nn.MultiLabelMarginLoss`, and `inplace`."""

    def __init__(
        self,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
        *,
        inplace: bool = False,
    ) -> None:
        super().__init__(size_average, reduce, reduction)
        self.extra = {"inplace": inplace}

    def forward(self, input: Any, target: Any) -> Any:
        return functional.multilabel_margin_loss(input, target, reduction=self.reduction, **self.extra)


# ---- fastloss's own losses ------------------------------------------------------------------------------------------


class _Own(torch.nn.Module):
    """A loss of fastloss: options are given by name, and are those of the function."""

    function: Callable[..., Any]

    def __init__(self, **options: Any) -> None:
        super().__init__()
        known = inspect.signature(type(self).function).parameters
        for name in options:
            if name not in list(known)[2:]:
                raise TypeError(
                    f"{type(self).__name__} has no option {name!r}: expected one of {', '.join(list(known)[2:])}"
                )
        weight = options.pop("weight", None)
        self.options = options
        self.register_buffer("weight", weight if weight is None else torch.as_tensor(weight))

    def forward(self, input: Any, target: Any, **of_batch: Any) -> Any:
        options = {**self.options, **of_batch}
        if self.weight is not None:
            options["weight"] = self.weight
        return type(self).function(input, target, **options)

    def extra_repr(self) -> str:
        shown = [f"{name}={value!r}" for name, value in self.options.items()]
        if self.weight is not None:
            shown.append(f"weight=tensor of shape {tuple(self.weight.shape)}")
        return ", ".join(shown)


class FocalCrossEntropyLoss(_Own):
    """`fastloss.focal_cross_entropy` as a module: its options, and `inplace`, by name.

    >>> import torch
    >>> import fastloss.torch
    >>> loss = fastloss.torch.FocalCrossEntropyLoss(gamma=2.0)
    >>> loss(torch.tensor([[2.0, 0.1, 0.4], [1.0, 8.0, -1.0]]), torch.tensor([1, 1]))
    tensor(0.8705)
    """

    function = functional.focal_cross_entropy


class SigmoidFocalLoss(_Own):
    """`fastloss.sigmoid_focal_loss` as a module: its options, and `inplace`, by name."""

    function = functional.sigmoid_focal_loss


class HingeLoss(_Own):
    """`fastloss.hinge_loss` as a module: its options, and `inplace`, by name."""

    function = functional.hinge_loss


class DiceLoss(_Own):
    """`fastloss.dice_loss` as a module: its options, and `inplace`, by name.

    >>> import torch
    >>> import fastloss.torch
    >>> loss = fastloss.torch.DiceLoss(weight=torch.tensor([0.0, 1.0]))
    >>> loss
    DiceLoss(weight=tensor of shape (2,))
    >>> loss(torch.tensor([[[2.0, -1.0, 0.5], [0.0, 1.0, 0.5]]]), torch.tensor([[0, 1, 1]]))
    tensor(0.2110)
    """

    function = functional.dice_loss


class JaccardLoss(_Own):
    """`fastloss.jaccard_loss` as a module: its options, and `inplace`, by name."""

    function = functional.jaccard_loss


class TverskyLoss(_Own):
    """`fastloss.tversky_loss` as a module: its options, and `inplace`, by name."""

    function = functional.tversky_loss


class LovaszLoss(_Own):
    """`fastloss.lovasz_loss` as a module: its options, and `inplace`, by name."""

    function = functional.lovasz_loss


class CombinedLoss(torch.nn.Module):
    """A weighted sum of losses: see `fastloss.torch.combine`."""

    def __init__(self, parts: Sequence[tuple[Any, ...]], *, reduction: str = "mean", inplace: bool = False) -> None:
        super().__init__()
        self.parts = list(parts)
        self.reduction, self.inplace = reduction, inplace
        self.combined()  # complains of parts that can't be combined

    def combined(self) -> Any:
        """The same loss of arrays."""
        return fl.combine([_of_arrays(part) for part in self.parts])

    def forward(self, input: Any, target: Any) -> Any:
        loss = Loss("combine", self.combined(), self._in_torch)
        return run(loss, input, target, {}, {"reduction": self.reduction}, inplace=self.inplace)

    def _in_torch(self, input: Any, target: Any, reduction: str) -> Any:
        total: Any = 0.0
        for weight, function, *rest in self.parts:
            options = {"reduction": reduction, **(rest[0] if rest else {})}
            name = function.__name__
            if isinstance(options.get("weight"), torch.Tensor):
                options["weight"] = options["weight"].to(input.device)
            total = total + weight * _formula(name)(input, target, **options)
        return total

    def extra_repr(self) -> str:
        return str(self.combined().__name__)


def _formula(name: str) -> Callable[..., Any]:
    from fastloss.torch import formulas

    formula: Callable[..., Any] = getattr(formulas, name, None) or functional.OWN[name]
    return formula


def _of_arrays(part: Any) -> Any:
    """The part with fastloss's function of the same name, and arrays in its options."""
    if not isinstance(part, Sequence) or len(part) < 2:
        return part
    weight, loss, *rest = part
    name = getattr(loss, "__name__", None)
    if loss is getattr(functional, str(name), None):
        loss = getattr(fl, str(name))
    options = {
        key: value.detach().numpy() if isinstance(value, torch.Tensor) else value
        for key, value in (rest[0] if rest else {}).items()
    }
    return weight, loss, options


def combine(parts: Sequence[tuple[Any, ...]], *, reduction: str = "mean", inplace: bool = False) -> CombinedLoss:
    """A module that is the weighted sum of losses, with one gradient: see `fastloss.combine`.

    Parameters
    ----------
    parts
        A sequence of (weight, loss) or (weight, loss, options), of functions of this module or of fastloss.
    reduction
        Of all parts, but for those whose options name one.
    inplace
        See `fastloss.torch.cross_entropy`.

    Examples
    --------
    >>> import torch
    >>> import fastloss.torch as ft
    >>> loss = ft.combine([(0.5, ft.cross_entropy), (0.5, ft.dice_loss, {"smooth": 1.0})])
    >>> loss(torch.tensor([[[2.0, -1.0, 0.5], [0.0, 1.0, 0.5]]]), torch.tensor([[0, 1, 1]]))
    tensor(0.2324)
    """
    return CombinedLoss(parts, reduction=reduction, inplace=inplace)
