"""Losses and their relatives for your own compiled code: call them from @njit functions, also inside prange.

    @njit(parallel=True, cache=True)
    def train(...):
        for i in prange(n):
            losses[i] = fastloss.numba.cross_entropy_row_grad(logits[i], target[i], grad[i], 1 / n)

All compute in the type of their arrays, float32 or float64, and are serial: threads are yours. They are as exact as
fastloss's Numba engine, of which they are the parts.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from fastloss.engines import numba_kernels as _kernels
from fastloss.engines import numba_math as _math
from fastloss.engines import numba_vectors as _vectors

__all__ = [
    "binary_cross_entropy_with_logits",
    "binary_cross_entropy_with_logits_element",
    "binary_cross_entropy_with_logits_grad",
    "cross_entropy",
    "cross_entropy_grad",
    "cross_entropy_row",
    "cross_entropy_row_grad",
    "log_sigmoid",
    "log_softmax",
    "logsumexp",
    "sigmoid",
    "softmax",
    "softplus",
]

_IGNORE = -100


@njit(**_kernels.PLAIN)
def cross_entropy_row(logits, target):
    """Cross-entropy of one row of logits, of shape (C,), with a class index.

    NaN for a target that is no class: a parallel loop could not raise.

    >>> import numpy as np
    >>> import fastloss.numba
    >>> round(fastloss.numba.cross_entropy_row(np.array([3.05, 3.13, 3.48]), 2), 4)
    0.8566
    """
    if target < 0 or target >= logits.size:
        return np.nan
    e = np.empty(logits.size, logits.dtype)
    return _kernels.long_row(logits, e, target, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0)[0]


@njit(**_kernels.PLAIN)
def cross_entropy_row_grad(logits, target, grad, scale):
    """The same, and grad = scale * (softmax(logits) - one_hot(target)). grad may be the logits.

    >>> import numpy as np
    >>> import fastloss.numba
    >>> grad = np.empty(2)
    >>> f"{fastloss.numba.cross_entropy_row_grad(np.array([100.0, 0.0]), 0, grad, 1.0):.3g}", f"{grad[0]:.3g}"
    ('3.72e-44', '-3.72e-44')
    """
    if target < 0 or target >= logits.size:
        grad[:] = np.nan
        return np.nan
    e = np.empty(logits.size, logits.dtype)
    loss, factor, shift, target_grad = _kernels.long_row(logits, e, target, 1.0, 1.0, scale, 0.0, 0.0, 0.0, 0.0)
    _kernels.row_gradient(e, factor, shift, target, target_grad, grad)
    return loss


@njit(**_kernels.PLAIN)
def cross_entropy(logits, target):
    """Mean cross-entropy of logits of shape (N, C) with class indices of shape (N,), without targets of -100.

    IndexError for a target that is neither a class nor -100; NaN where no target counts.

    >>> import numpy as np
    >>> import fastloss.numba
    >>> logits = np.array([[2.0, 0.1, 0.4], [1.0, 8.0, -1.0]])
    >>> round(fastloss.numba.cross_entropy(logits, np.array([1, 2])), 6)
    5.601112
    """
    return _batch(logits, target, np.empty((0, logits.shape[1]), logits.dtype))


@njit(**_kernels.PLAIN)
def cross_entropy_grad(logits, target, grad):
    """The same, and in grad, of the logits' shape, the gradient of the mean. grad may be the logits.

    >>> import numpy as np
    >>> import fastloss.numba
    >>> logits, grad = np.zeros((2, 4), np.float32), np.empty((2, 4), np.float32)
    >>> loss = fastloss.numba.cross_entropy_grad(logits, np.array([1, -100]), grad)
    >>> round(loss, 4), grad[0].tolist(), bool(grad[1].any())
    (1.3863, [0.25, -0.75, 0.25, 0.25], False)
    """
    return _batch(logits, target, grad)


@njit(**_kernels.PLAIN)
def _batch(logits, target, grad):
    nothing = np.empty(0, logits.dtype)
    count = _kernels.check_targets(target, logits.shape[1], True, _IGNORE, nothing, nothing)
    if math.isnan(count):
        raise IndexError("a target is neither a class nor -100")
    rows = target.size
    scale = 1.0 / count if count > 0 else 0.0
    if logits.shape[1] <= _kernels.SHORT_ROW:
        total = _kernels.short_rows(
            logits, grad, nothing, target, nothing, nothing, nothing, 0, rows, _IGNORE, 0.0, 0.0, 0.0, 0.0, scale
        )
    else:
        total = _kernels.long_rows(
            logits, grad, nothing, target, nothing, nothing, nothing, 0, rows, _IGNORE, 0.0, 0.0, 0.0, 0.0, scale
        )
    return total / count if count > 0 else np.nan


@njit(**_math.INLINE)
def binary_cross_entropy_with_logits_element(z, y):
    """(loss, derivative) of one logit with one target in [0, 1].

    >>> import fastloss.numba
    >>> loss, slope = fastloss.numba.binary_cross_entropy_with_logits_element(0.0, 1.0)
    >>> round(loss, 4), slope
    (0.6931, -0.5)
    """
    one = _math.as_real(1.0, z)
    label = _math.as_real(y, z)
    u = _math.exp(-abs(z))
    return _kernels.binary_loss(z, u, label, one, one), _kernels.binary_slope(z, u, label, one, one, one)


@njit(**_kernels.PLAIN)
def binary_cross_entropy_with_logits(logits, target):
    """Mean binary cross-entropy of contiguous arrays of one shape; NaN where they are empty.

    >>> import numpy as np
    >>> import fastloss.numba
    >>> round(fastloss.numba.binary_cross_entropy_with_logits(np.array([1.8, 0.75]), np.array([1.0, 0.0])), 4)
    0.6449
    """
    return _binary_batch(logits.reshape(-1), target.reshape(-1), np.empty(0, logits.dtype))


@njit(**_kernels.PLAIN)
def binary_cross_entropy_with_logits_grad(logits, target, grad):
    """The same, and in grad the gradient of the mean. grad may be the logits.

    >>> import numpy as np
    >>> import fastloss.numba
    >>> grad = np.empty(2)
    >>> loss = fastloss.numba.binary_cross_entropy_with_logits_grad(np.array([1.8, 0.75]), np.array([1.0, 0.0]), grad)
    >>> grad.round(4).tolist()
    [-0.0709, 0.3396]
    """
    return _binary_batch(logits.reshape(-1), target.reshape(-1), grad.reshape(-1))


@njit(**_kernels.PLAIN)
def _binary_batch(z, y, grad):
    if z.size == 0:
        return np.nan
    if y.size != z.size:
        raise ValueError("target and logits differ in size")
    nothing = np.empty(0, z.dtype)
    total = _kernels.binary_tile(
        z, grad, nothing, y.astype(z.dtype), nothing, nothing, nothing, 0, z.size, False, 0.0, 0.0, 1.0 / z.size
    )
    return total / z.size


@njit(**_kernels.PLAIN)
def _exponentials(logits, e):
    """e = scaled exponentials below the maximum, 0 at it: (maximum, sum of e^(z - maximum) less 1)."""
    m = _vectors.largest(logits)
    if math.isinf(m):
        m = _math.as_real(np.nan, m)
    ties = 0
    for c in range(logits.size):
        ties += logits[c] == m
        e[c] = _math.as_real(0.0, m) if logits[c] == m else _math.exp_scaled(logits[c] - m)
    return m, _kernels.total_by_blocks(e) * np.float64(_math.SCALE_DOWN(m)) + (ties - 1)


@njit(**_kernels.PLAIN)
def logsumexp(logits):
    """log(sum(exp(logits))) of one row.

    >>> import numpy as np
    >>> import fastloss.numba
    >>> round(fastloss.numba.logsumexp(np.array([1000.0, 1000.0])), 4)
    1000.6931
    """
    m, rest = _exponentials(logits, np.empty(logits.size, logits.dtype))
    return np.float64(m) + math.log1p(rest)


@njit(**_kernels.PLAIN)
def softmax(logits, out):
    """out = softmax of one row; out may be the logits.

    >>> import numpy as np
    >>> import fastloss.numba
    >>> out = np.empty(2)
    >>> fastloss.numba.softmax(np.array([0.0, 0.0]), out)
    >>> out.tolist()
    [0.5, 0.5]
    """
    e = np.empty(logits.size, logits.dtype)
    m, rest = _exponentials(logits, e)
    at_max = _math.as_real(1.0 / (1.0 + rest), m)
    factor = at_max * _math.SCALE_DOWN(m)
    for c in range(logits.size):
        out[c] = at_max if logits[c] == m else e[c] * factor


@njit(**_kernels.PLAIN)
def log_softmax(logits, out):
    """out = log(softmax) of one row; out may be the logits.

    >>> import numpy as np
    >>> import fastloss.numba
    >>> out = np.empty(2)
    >>> fastloss.numba.log_softmax(np.array([0.0, -1000.0]), out)
    >>> out.tolist()
    [0.0, -1000.0]
    """
    m, rest = _exponentials(logits, np.empty(logits.size, logits.dtype))
    log_sum = _math.as_real(math.log1p(rest), m)
    for c in range(logits.size):
        out[c] = (logits[c] - m) - log_sum


@njit(**_math.INLINE)
def sigmoid(x):
    """1 / (1 + exp(-x)) of a number.

    >>> import fastloss.numba
    >>> fastloss.numba.sigmoid(0.0)
    0.5
    """
    return _math.sigmoid(x)


@njit(**_math.INLINE)
def log_sigmoid(x):
    """log(sigmoid(x)) of a number.

    >>> import fastloss.numba
    >>> fastloss.numba.log_sigmoid(-1000.0)
    -1000.0
    """
    return _math.log_sigmoid(x)


@njit(**_math.INLINE)
def softplus(x):
    """log(1 + exp(x)) of a number.

    >>> import fastloss.numba
    >>> fastloss.numba.softplus(1000.0)
    1000.0
    """
    return _math.softplus(x)
