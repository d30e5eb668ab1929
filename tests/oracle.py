"""The losses and their gradients in 100 digits, from the formulas in fastloss.h, one number at a time.

Independent of the package. Finite input only."""

from functools import cache

import mpmath
import numpy as np

mp = mpmath.mp.clone()
mp.dps = 100


def cross_entropy(
    logits,
    target,
    *,
    weight=None,
    sample_weight=None,
    ignore_index=-100,
    label_smoothing=0.0,
    z_loss=0.0,
    softcap=None,
    axis=1,
    normalizer=None,
    reduction="mean",
    grad_output=1.0,
    gamma=0.0,
):
    """(loss, gradient): float or float64 array, and float64 array. A gamma makes it the focal loss."""
    logits, target = np.asarray(logits), np.asarray(target)
    gamma = mp.mpf(float(gamma))
    axis = 0 if logits.ndim == 1 else axis % logits.ndim
    classes = logits.shape[axis]
    is_probabilities = target.dtype.kind not in "iu"
    smoothing, z_loss = mp.mpf(float(label_smoothing)), mp.mpf(float(z_loss))
    weights = [mp.mpf(1)] * classes if weight is None else [mp.mpf(float(w)) for w in weight]

    losses, grads, denominator = {}, {}, mp.mpf(0)
    for row in np.ndindex(logits.shape[:axis] + logits.shape[axis + 1 :]):
        at = row[:axis] + (slice(None),) + row[axis:]
        if not is_probabilities and int(target[row]) == ignore_index:
            losses[row], grads[row] = mp.mpf(0), [mp.mpf(0)] * classes
            continue
        if is_probabilities:
            q = [mp.mpf(float(value)) for value in target[at]]
        else:
            q = [mp.mpf(int(c == int(target[row]))) for c in range(classes)]
        s = mp.mpf(1) if sample_weight is None else mp.mpf(float(np.asarray(sample_weight)[row]))
        denominator += s if is_probabilities else s * weights[int(target[row])]
        z, slope, lse, p = _row(tuple(float(value) for value in logits[at]), softcap)
        a = [w * ((1 - smoothing) * q_c + smoothing / classes) for w, q_c in zip(weights, q, strict=True)]
        focus, slopes = zip(*(_focus(p_c, lse - z_c, gamma) for p_c, z_c in zip(p, z, strict=True)), strict=True)
        parts = mp.fsum(a_c * f_c * (lse - z_c) for a_c, f_c, z_c in zip(a, focus, z, strict=True))
        losses[row] = s * (parts + z_loss * lse**2)
        a = [a_c * h_c for a_c, h_c in zip(a, slopes, strict=True)]
        total = mp.fsum(a)
        grads[row] = [
            s * (total * p_c - a_c + 2 * z_loss * lse * p_c) * slope_c
            for p_c, a_c, slope_c in zip(p, a, slope, strict=True)
        ]

    if reduction != "mean":
        denominator = mp.mpf(1)
    elif normalizer is not None:
        denominator = mp.mpf(float(normalizer))
    upstream = np.broadcast_to(np.asarray(grad_output, np.float64), logits.shape[:axis] + logits.shape[axis + 1 :])
    grad = np.empty(logits.shape)
    for row in losses:
        scale = mp.mpf(float(upstream[row])) / denominator
        grad[row[:axis] + (slice(None),) + row[axis:]] = [float(value * scale) for value in grads[row]]
        losses[row] /= denominator
    return _reduced(losses, upstream.shape, reduction), grad


def binary_cross_entropy_with_logits(
    logits,
    target,
    *,
    weight=None,
    pos_weight=None,
    label_smoothing=0.0,
    ignore_index=None,
    reduction="mean",
    grad_output=1.0,
):
    """(loss, gradient): float or float64 array, and float64 array."""
    logits, target = np.asarray(logits), np.asarray(target)
    weight = np.broadcast_to(np.asarray(1.0 if weight is None else weight), logits.shape)
    pos_weight = np.broadcast_to(np.asarray(1.0 if pos_weight is None else pos_weight), logits.shape)
    upstream = np.broadcast_to(np.asarray(grad_output, np.float64), logits.shape)
    smoothing = mp.mpf(float(label_smoothing))
    losses, grads, counted = {}, {}, 0
    for at in np.ndindex(logits.shape):
        losses[at] = grads[at] = mp.mpf(0)
        if ignore_index is not None and float(target[at]) == ignore_index:
            continue
        counted += 1
        z, y = mp.mpf(float(logits[at])), mp.mpf(float(target[at])) * (1 - smoothing) + smoothing / 2
        w, positive = mp.mpf(float(weight[at])), mp.mpf(float(pos_weight[at]))
        losses[at] = w * (positive * y * mp.log1p(mp.exp(-z)) + (1 - y) * mp.log1p(mp.exp(z)))
        grads[at] = w * ((1 - y) / (1 + mp.exp(-z)) - positive * y / (1 + mp.exp(z)))
    denominator = counted if reduction == "mean" else 1
    grad = np.empty(logits.shape)
    for at in np.ndindex(logits.shape):
        grad[at] = float(grads[at] * mp.mpf(float(upstream[at])) / denominator)
        losses[at] /= denominator
    return _reduced(losses, logits.shape, reduction), grad


def binary_cross_entropy(probs, target):
    """Losses and slopes of each element, away from the bounds of the logs."""

    def element(p, y):
        return -y * mp.log(p) - (1 - y) * mp.log(1 - p), (p - y) / (p * (1 - p))

    return _elements(element, probs, target)


def sigmoid_focal_loss(logits, target, *, alpha=0.25, gamma=2.0):
    """Losses and slopes of each element."""
    gamma = mp.mpf(float(gamma))

    def element(z, y):
        p, not_p = 1 / (1 + mp.exp(-z)), 1 / (1 + mp.exp(z))
        factor = mp.mpf(1) if alpha is None else mp.mpf(alpha) * y + (1 - mp.mpf(alpha)) * (1 - y)
        miss, entropy = y * not_p + (1 - y) * p, -y * mp.log(p) - (1 - y) * mp.log(not_p)
        slope = p - y + gamma * (1 - 2 * y) * p * not_p / miss * entropy
        return factor * miss**gamma * entropy, factor * miss**gamma * slope

    return _elements(element, logits, target)


def log_softmax(row):
    """Logs of the probabilities of one row, as mpmath numbers."""
    z, _, lse, _ = _row(tuple(float(value) for value in row), None)
    return [value - lse for value in z]


@cache
def _row(values, softcap):
    """Logits after the softcap, its slope, logsumexp, probabilities."""
    x = [mp.mpf(value) for value in values]
    z, slope = x, [mp.mpf(1)] * len(x)
    if softcap is not None:
        cap = mp.mpf(float(softcap))
        tanh = [mp.tanh(value / cap) for value in x]
        z, slope = [cap * value for value in tanh], [1 - value**2 for value in tanh]
    exps = [mp.exp(value) for value in z]
    total = mp.fsum(exps)
    return z, slope, mp.log(total), [value / total for value in exps]


def _focus(p, gap, gamma):
    """(1 - p)^gamma, and what d/dz_k of it times gap has before (p_k - [k is the class]); gap is -log(p)."""
    if gamma == 0:
        return mp.mpf(1), mp.mpf(1)
    if p == 1:
        return mp.mpf(0), mp.mpf(0)
    return (1 - p) ** gamma, (1 - p) ** gamma + gamma * p * (1 - p) ** (gamma - 1) * gap


def _elements(element, given, target):
    losses, slopes = np.empty(given.shape), np.empty(given.shape)
    for at in np.ndindex(given.shape):
        loss, slope = element(mp.mpf(float(given[at])), mp.mpf(float(target[at])))
        losses[at], slopes[at] = float(loss), float(slope)
    return losses, slopes


def _reduced(losses, shape, reduction):
    if reduction != "none":
        return float(mp.fsum(losses.values()))
    values = np.empty(shape)
    for at, loss in losses.items():
        values[at] = float(loss)
    return values
