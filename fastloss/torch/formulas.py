"""The losses in torch's operations: for derivatives of the gradient, torch.func, and what is not for fastloss.

Where torch has a loss with the options that are given its own function is used instead."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

# torch's own, whatever is installed in its place later.
_binary_cross_entropy_with_logits = F.binary_cross_entropy_with_logits


def cross_entropy(
    logits: Any,
    target: Any,
    *,
    weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    axis: int = 1,
    normalizer: Any = None,
    empty: str = "nan",
    reduction: str = "mean",
    gamma: float = 0.0,
) -> Any:
    """sample_weight * (sum_c weight_c q_c (1 - p_c)^gamma (lse - z_c) + z_loss lse^2): focal where gamma is not 0."""
    z, counts, classes = _counted_rows(logits, target, axis, ignore_index)
    if softcap is not None:
        z = softcap * torch.tanh(z / softcap)
    lse = torch.logsumexp(z, -1)
    gap = lse.unsqueeze(-1) - z
    a = _distribution(target, counts, axis, classes, z.dtype)
    factor = _class_weights(a, weight, target, axis, sample_weight)
    a = a * (1 - label_smoothing) + label_smoothing / classes
    if weight is not None:
        a = a * weight
    gap = torch.where(a == 0, 0, gap)  # a class of probability 0 that is no target
    focus = (-torch.expm1(-gap)) ** gamma if gamma else 1.0
    losses = (a * focus * gap).sum(-1)
    if z_loss:
        losses = losses + z_loss * lse**2
    return _reduced(losses, counts, factor, sample_weight, normalizer, empty, reduction)


def focal_cross_entropy(logits: Any, target: Any, *, gamma: float = 2.0, **options: Any) -> Any:
    return cross_entropy(logits, target, gamma=gamma, **options)


def nll_loss(
    log_probs: Any,
    target: Any,
    *,
    weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int = -100,
    axis: int = 1,
    normalizer: Any = None,
    empty: str = "nan",
    reduction: str = "mean",
) -> Any:
    x, counts, classes = _counted_rows(log_probs, target, axis, ignore_index)
    a = _distribution(target, counts, axis, classes, x.dtype)
    factor = _class_weights(a, weight, target, axis, sample_weight)
    if weight is not None:
        a = a * weight
    losses = (a * -torch.where(a == 0, 0, x)).sum(-1)
    return _reduced(losses, counts, factor, sample_weight, normalizer, empty, reduction)


def binary_cross_entropy_with_logits(
    logits: Any,
    target: Any,
    *,
    weight: Any = None,
    pos_weight: Any = None,
    label_smoothing: float = 0.0,
    ignore_index: float | None = None,
    reduction: str = "mean",
) -> Any:
    counts = torch.ones_like(target, dtype=torch.bool) if ignore_index is None else target != ignore_index
    y = torch.where(counts, target, 0).to(logits.dtype) * (1 - label_smoothing) + label_smoothing / 2
    z = torch.where(counts, logits, 0)
    losses = _binary_cross_entropy_with_logits(z, y, weight, pos_weight=pos_weight, reduction="none")
    losses = torch.where(counts, losses, 0)
    if reduction == "mean":
        return losses.sum() / counts.sum()
    return losses.sum() if reduction == "sum" else losses


def sigmoid_focal_loss(
    logits: Any, target: Any, *, alpha: float | None = 0.25, gamma: float = 2.0, reduction: str = "mean"
) -> Any:
    y = target.to(logits.dtype)
    p, not_p = torch.sigmoid(logits), torch.sigmoid(-logits)
    losses = _binary_cross_entropy_with_logits(logits, y, reduction="none") * (y * not_p + (1 - y) * p) ** gamma
    if alpha is not None:
        losses = losses * (alpha * y + (1 - alpha) * (1 - y))
    return _plainly_reduced(losses, reduction)


def kl_div(log_input: Any, target: Any, *, log_target: bool = False, reduction: str = "mean") -> Any:
    losses = target.exp() * (target - log_input) if log_target else torch.xlogy(target, target) - target * log_input
    return losses.sum() / losses.shape[0] if reduction == "batchmean" else _plainly_reduced(losses, reduction)


def multi_margin_loss(
    logits: Any, target: Any, *, p: int = 1, margin: float = 1.0, weight: Any = None, reduction: str = "mean"
) -> Any:
    is_target = target.unsqueeze(-1) == torch.arange(logits.shape[-1], device=logits.device)
    of_target = torch.where(is_target, logits, 0).sum(-1, keepdim=True)
    losses = torch.where(is_target, 0, F.relu(margin - of_target + logits) ** p).mean(-1)
    return _plainly_reduced(losses if weight is None else losses * weight[target], reduction)


def multilabel_margin_loss(logits: Any, target: Any, *, reduction: str = "mean") -> Any:
    classes = logits.shape[-1]
    counts = (target >= 0).cumprod(-1).bool().unsqueeze(-1)
    is_label = (target.unsqueeze(-1) == torch.arange(classes, device=logits.device)) & counts  # (..., label, class)
    of_label = torch.where(is_label, logits.unsqueeze(-2), 0).sum(-1, keepdim=True)
    pairs = counts & ~is_label.any(-2, keepdim=True)
    violations = torch.where(pairs, F.relu(1 - of_label + logits.unsqueeze(-2)), 0)
    return _plainly_reduced(violations.sum((-2, -1)) / classes, reduction)


def hinge_loss(logits: Any, target: Any, *, margin: float = 1.0, reduction: str = "mean") -> Any:
    y = 2 * target.to(logits.dtype) - 1 if target.dtype is torch.bool else target
    return _plainly_reduced(F.relu(margin - y * logits), reduction)


def dice_loss(logits: Any, target: Any, **options: Any) -> Any:
    return tversky_loss(logits, target, alpha=0.5, beta=0.5, **options)


def jaccard_loss(logits: Any, target: Any, **options: Any) -> Any:
    return tversky_loss(logits, target, alpha=1.0, beta=1.0, **options)


def tversky_loss(
    logits: Any,
    target: Any,
    *,
    alpha: float = 0.5,
    beta: float = 0.5,
    gamma: float = 1.0,
    mode: str = "multiclass",
    axis: int = 1,
    weight: Any = None,
    ignore_index: int | None = None,
    smooth: float = 0.0,
    eps: float = 1e-7,
    log_loss: bool = False,
    from_logits: bool = True,
    per_sample: bool = False,
    squared: bool = False,
    absent: str = "zero",
    reduction: str = "mean",
) -> Any:
    """From the sums I of p y, P of p and Y of y, of each sample or of all, and class."""
    p, y, counts = _overlap(logits, target, mode, axis, ignore_index, per_sample)
    if from_logits:
        p = torch.softmax(p, -1) if mode == "multiclass" else torch.sigmoid(p)
    p, y = torch.where(counts, p, 0), torch.where(counts, y, 0)
    intersection = (p * y).sum(1)
    p_sum, y_sum = ((p * p).sum(1), (y * y).sum(1)) if squared else (p.sum(1), y.sum(1))
    below = intersection + alpha * (p_sum - intersection) + beta * (y_sum - intersection) + smooth
    score = (intersection + smooth) / below.clamp(min=eps)
    losses = -torch.log(score.clamp(min=eps)) if log_loss else 1 - score
    if absent == "zero":
        losses = torch.where(y_sum > 0, losses, losses * 0)
    if reduction == "none":
        return losses**gamma if per_sample else losses[0] ** gamma
    share = torch.ones_like(losses[0]) if weight is None else weight.to(losses.dtype)
    means = (losses * (share / share.sum())).sum(1) ** gamma
    return means.mean() if reduction == "mean" else means.sum()


def lovasz_loss(
    logits: Any,
    target: Any,
    *,
    mode: str = "multiclass",
    axis: int = 1,
    ignore_index: int | None = None,
    from_logits: bool = True,
    per_sample: bool = False,
    reduction: str = "mean",
) -> Any:
    """Group by group, and class by class: the errors, sorted, times the steps of the Jaccard loss."""
    x, y, counts = _overlap(logits, target, mode, axis, ignore_index, per_sample)
    losses = []
    if mode == "multiclass":
        p = torch.softmax(x, -1) if from_logits else x
        for group in range(len(p)):
            kept = counts[group, :, 0]
            each, positive = p[group][kept], y[group][kept].bool()
            present = [c for c in range(p.shape[-1]) if positive[:, c].any()]
            parts = [
                _extension(torch.where(positive[:, c], 1 - each[:, c], each[:, c]), positive[:, c]) for c in present
            ]
            losses.append(sum(parts) / len(parts) if parts else (each * 0).sum())
    else:
        for group in range(len(x)):
            z, positive = x[group][counts[group]], y[group][counts[group]] != 0
            losses.append(_extension(F.relu(1 - torch.where(positive, z, -z)), positive))
    result = torch.stack(losses)
    if reduction == "none":
        return result if per_sample else result[0]
    return result.mean() if reduction == "mean" else result.sum()


def _extension(errors: Any, is_positive: Any) -> Any:
    order = torch.argsort(-errors.detach(), stable=True)
    seen = is_positive[order].to(errors.dtype).cumsum(0)
    positives = is_positive.sum()
    places = torch.arange(1, len(seen) + 1, device=errors.device)
    steps = torch.diff(1 - (positives - seen) / (positives + places - seen), prepend=seen.new_zeros(1))
    return (errors[order] * steps).sum()


def _overlap(
    logits: Any, target: Any, mode: str, axis: int, ignore_index: int | None, per_sample: bool
) -> tuple[Any, Any, Any]:
    """Logits, target as numbers, and what counts of them: (groups, rows, classes)."""
    if mode == "binary":
        target, logits, axis = target.reshape(logits.shape).unsqueeze(1), logits.unsqueeze(1), 1
    axis = 0 if logits.dim() == 1 else axis
    classes = logits.shape[axis]
    shape = (logits.shape[0] if per_sample else 1, -1, classes)
    x = logits.movedim(axis, -1).reshape(shape)
    if mode == "multiclass":
        labels = target.reshape(shape[:2]).unsqueeze(-1)
        y = labels == torch.arange(classes, device=labels.device)
        counts = (labels == labels if ignore_index is None else labels != ignore_index).expand(x.shape)
    else:
        y = target.movedim(axis, -1).reshape(x.shape)
        counts = y == y if ignore_index is None else y != ignore_index
    return torch.where(counts, x, 0), y.to(x.dtype), counts


def _counted_rows(logits: Any, target: Any, axis: int, ignore_index: int) -> tuple[Any, Any, int]:
    """Logits with the classes last, which rows count, and the number of classes. Ignored rows hold zeros."""
    axis = 0 if logits.dim() == 1 else axis
    z = logits.movedim(axis, -1)
    if target.is_floating_point():
        return z, torch.ones_like(z[..., 0], dtype=torch.bool), z.shape[-1]
    counts = target != ignore_index
    return torch.where(counts.unsqueeze(-1), z, 0), counts, z.shape[-1]


def _distribution(target: Any, counts: Any, axis: int, classes: int, dtype: Any) -> Any:
    if target.is_floating_point():
        return target.movedim(0 if target.dim() == 1 else axis, -1).to(dtype)
    is_target = target.unsqueeze(-1) == torch.arange(classes, device=target.device)
    return (is_target & counts.unsqueeze(-1)).to(dtype)


def _class_weights(a: Any, weight: Any, target: Any, axis: int, sample_weight: Any) -> Any:
    """What each row adds to the mean's denominator, if it counts."""
    factor = a.new_ones(a.shape[:-1]) if sample_weight is None else sample_weight.to(a.dtype)
    return factor if weight is None or target.is_floating_point() else factor * (a * weight).sum(-1)


def _reduced(
    losses: Any, counts: Any, factor: Any, sample_weight: Any, normalizer: Any, empty: str, reduction: str
) -> Any:
    if sample_weight is not None:
        losses = losses * sample_weight
    losses = torch.where(counts, losses, 0)
    if reduction != "mean":
        return losses.sum() if reduction == "sum" else losses
    if normalizer is not None:
        return losses.sum() / normalizer
    denominator = torch.where(counts, factor, 0).sum()
    if empty == "raise" and bool(denominator == 0):
        raise ValueError("the mean is over nothing: every target is ignored or has weight 0 (empty='raise')")
    # Where nothing counts the gradient is 0, not 0 / 0.
    mean = losses.sum() / torch.where(denominator == 0, 1, denominator)
    return torch.where(denominator == 0, 0.0 if empty == "zero" else torch.nan, mean)


def _plainly_reduced(losses: Any, reduction: str) -> Any:
    return losses.mean() if reduction == "mean" else losses.sum() if reduction == "sum" else losses
