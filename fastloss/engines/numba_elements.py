"""Numba kernels of the losses of single elements, but for binary cross-entropy with logits, which numba_kernels.py has.
The formulas are those of csrc/elements.h."""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from fastloss.engines.numba_kernels import (
    BLOCK,
    PLAIN,
    TILE,
    cached,
    copy_into,
    threaded,
)
from fastloss.engines.numba_math import (
    INLINE,
    LOWEST,
    as_real,
    exp,
    exp_any,
    log,
    log1p_any,
    log1p_unit,
    power_of_unit,
    sigmoid,
    softplus,
    wide_vectors,
    zero_times,
)
from fastloss.engines.numba_vectors import total_in_double

BCE, SIGMOID_FOCAL, SOFT_MARGIN, HINGE, KL_DIV, KL_DIV_LOG = range(6)

# ---- (loss, derivative) of one element ------------------------------------------------------------------------------


@njit(**INLINE)
def bce(p, y):
    """-(y log(p) + (1 - y) log(1 - p)), the logs at least -100, and p (1 - p) in the derivative at least 1e-12."""
    one = as_real(1.0, p)
    lowest = as_real(-100.0, p)
    least = as_real(1e-12, p)
    log_p, log_rest = log(p), log1p_any(-p)
    log_p = lowest if log_p < lowest else log_p
    log_rest = lowest if log_rest < lowest else log_rest
    variance = p * (one - p)
    return -(y * log_p + (one - y) * log_rest), (p - y) / (least if variance < least else variance)


@njit(**INLINE)
def sigmoid_focal(z, y, alpha, gamma):
    """alpha_t q^gamma H, with the cross-entropy H and q = y sigmoid(-z) + (1 - y) sigmoid(z), the part that is missed.

    "far" is the part of H that grows with |z|, "near" the other one.
    """
    one = as_real(1.0, z)
    zero = as_real(0.0, z)
    negative = one - y
    far = y if z < 0 else negative
    near = negative if z < 0 else y
    u = exp(-abs(z))
    inverse = one / (one + u)
    entropy = (zero if far == 0 else far * abs(z)) + log1p_unit(u)
    mixed = near * u + far
    factor = power_of_unit(mixed * inverse, gamma)
    if alpha >= 0:
        factor *= as_real(alpha, z) * y + as_real(1.0 - alpha, z) * negative
    # p (1 - p) / q, which is 0 where it would be 0 / 0.
    ratio = zero if u == 0 else u * inverse / mixed
    pull = as_real(gamma, z) * (far - near) * ratio
    slope = factor * ((far - near * u) * inverse + pull * zero_times(pull, entropy))
    return factor * zero_times(factor, entropy), (-slope if z < 0 else slope)


@njit(**INLINE)
def soft_margin(z, y):
    """log(1 + exp(-y z))."""
    x = -y * zero_times(y, z)
    return softplus(x), -y * sigmoid(x)


@njit(**INLINE)
def hinge(z, y, margin):
    """max(0, margin - y z)."""
    zero = as_real(0.0, z)
    lack = margin - y * z
    loss = zero if lack <= 0 else lack
    return loss, -y if lack > 0 else loss  # NaN stays


@njit(**INLINE)
def nothing(z):
    """0, or NaN where z is."""
    highest = -LOWEST(z)
    size = abs(z)
    size = highest if size > highest else size
    return size - size


@njit(**INLINE)
def kl_div(z, y):
    """y (log(y) - z)."""
    return (nothing(z) if y == 0 else y * (log(y) - z)), -y


@njit(**INLINE)
def kl_div_log(z, y):
    """q (y - z), q = exp(y)."""
    q = exp_any(y)
    return (nothing(z) if q == 0 else q * (y - z)), -q


# ---- Blocks, tiles and all of them ----------------------------------------------------------------------------------


@njit(**PLAIN)
def labels(y, scale, shift, label):
    a, b = as_real(scale, y[0]), as_real(shift, y[0])
    for i in range(y.size):
        label[i] = y[i] * a + b


@njit(**PLAIN)
def element_block(kind, z, y, alpha, gamma, margin, loss, slope):
    """A loop for each kind, so that none holds a branch."""
    wide_vectors()
    if kind == BCE:
        for i in range(z.size):
            loss[i], slope[i] = bce(z[i], y[i])
    elif kind == SIGMOID_FOCAL and gamma == 2:  # known to the compiler, a power is a product
        for i in range(z.size):
            loss[i], slope[i] = sigmoid_focal(z[i], y[i], alpha, 2.0)
    elif kind == SIGMOID_FOCAL:
        for i in range(z.size):
            loss[i], slope[i] = sigmoid_focal(z[i], y[i], alpha, gamma)
    elif kind == SOFT_MARGIN:
        for i in range(z.size):
            loss[i], slope[i] = soft_margin(z[i], y[i])
    elif kind == HINGE:
        lead = as_real(margin, z[0])
        for i in range(z.size):
            loss[i], slope[i] = hinge(z[i], y[i], lead)
    elif kind == KL_DIV:
        for i in range(z.size):
            loss[i], slope[i] = kl_div(z[i], y[i])
    else:
        for i in range(z.size):
            loss[i], slope[i] = kl_div_log(z[i], y[i])


@njit(**PLAIN)
def weigh_block(y, weight, upstream, ignores, ignore, scale, loss, slope):
    """Arrays of no elements stand for ones that are not given."""
    one = as_real(1.0, y[0])
    zero = as_real(0.0, one)
    g = as_real(scale, one)
    missing = as_real(ignore, one)
    for i in range(y.size):
        w = weight[i] if weight.size else one
        counts = not ignores or y[i] != missing
        loss[i] = w * zero_times(w, loss[i]) if counts else zero
        slope[i] = slope[i] * (w * (g * upstream[i] if upstream.size else g)) if counts else zero


@njit(**PLAIN)
def element_tile(
    t, kind, z, grad, losses, y, weight, upstream, ignores, ignore, label_scale, label_shift, alpha, gamma, margin,
    scale,
):  # fmt: skip
    label, loss, slope = np.empty(BLOCK, z.dtype), np.empty(BLOCK, z.dtype), np.empty(BLOCK, z.dtype)
    result = 0.0
    for start in range(t * TILE, min(z.size, (t + 1) * TILE), BLOCK):
        n = min(BLOCK, z.size - start)
        at = slice(start, start + n)
        labels(y[at], label_scale, label_shift, label)
        element_block(kind, z[at], label, alpha, gamma, margin, loss, slope)
        weigh_block(y[at], weight[at], upstream[at], ignores, ignore, scale, loss, slope)
        result += total_in_double(loss[:n])
        if losses.size:
            copy_into(loss[:n], losses[at])
        if grad.size:
            copy_into(slope[:n], grad[at])
    return result


@cached
def element_loss_serial(sums, *arguments):
    for t in range(sums.size):
        sums[t] = element_tile(t, *arguments)


@threaded
def element_loss_parallel(sums, *arguments):
    for t in prange(sums.size):
        sums[t] = element_tile(t, *arguments)


@cached
def are_probabilities(p):
    bad = 0
    for i in range(p.size):
        bad += (p[i] < 0) | (p[i] > 1)
    return bad == 0
