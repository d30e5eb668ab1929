"""Numba kernels of the losses over an axis of classes that have no softmax: negative log likelihood and margins."""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from fastloss.engines.numba_kernels import PLAIN, TILE, cached, threaded
from fastloss.engines.numba_math import INLINE, as_real
from fastloss.engines.numba_vectors import total, total_of_products

NLL, MULTI_MARGIN, MULTILABEL_MARGIN = range(3)


@njit(**PLAIN)
def nll_rows(z, grad, losses, target, weight, sample_weight, upstream, classes, inner, first, end, ignore, scale):
    """-weight_y x_y of rows [first, end), their classes `inner` apart."""
    result = 0.0
    for row in range(first, end):
        base = row // inner * classes * inner + row % inner
        y = target[row]
        loss, slope = 0.0, 0.0
        if y != ignore:
            s = np.float64(sample_weight[row]) if sample_weight.size else 1.0
            a = s * (np.float64(weight[y]) if weight.size else 1.0)
            loss = -a * np.float64(z[base + y * inner]) if a != 0 else 0.0
            slope = -a * scale * (np.float64(upstream[row]) if upstream.size else 1.0)
        rounded = as_real(loss, z[0])
        result += np.float64(rounded)
        if losses.size:
            losses[row] = rounded
        if grad.size:
            for c in range(classes):
                grad[base + c * inner] = 0
            if y != ignore:
                grad[base + y * inner] = slope
    return result


@njit(**INLINE)
def violation(z, threshold):
    """max(0, z - threshold), in double: the sign is that of the exact difference of the numbers given."""
    lack = np.float64(z) - threshold
    return 0.0 if lack <= 0 else lack  # NaN stays


@njit(**INLINE)
def step(v):
    return 1.0 if v > 0 else v


@njit(**PLAIN)
def violation_sums(z, row, y, threshold, power, values, slopes):
    """The sums over all classes but y of v^p, and of its derivatives. values and slopes are scratch."""
    for c in range(z.shape[1]):
        values[c] = violation(z[row, c], threshold)
    values[y] = 0
    if power == 1:
        for c in range(z.shape[1]):
            slopes[c] = step(values[c])
        return total(values), total(slopes)
    return total_of_products(values, values), 2.0 * total(values)


@njit(**PLAIN)
def violation_slopes(z, row, threshold, power, g, grad):
    if power == 1:
        for c in range(z.shape[1]):
            grad[row, c] = g * step(violation(z[row, c], threshold))
    else:
        for c in range(z.shape[1]):
            v = violation(z[row, c], threshold)
            grad[row, c] = g * (v + v)


@njit(**PLAIN)
def multi_margin_row(z, row, y, power, margin, g, values, slopes, grad):
    """sum_{c != y} max(0, margin - z_y + z_c)^p, and its gradient times g where grad has elements."""
    threshold = np.float64(z[row, y]) - margin
    loss, slope = violation_sums(z, row, y, threshold, power, values, slopes)
    if grad.size:
        violation_slopes(z, row, threshold, power, g, grad)
        grad[row, y] = -g * slope
    return loss


@njit(**PLAIN)
def multilabel_margin_row(z, row, target, g, is_label, slopes, grad):
    """The sum over labels y and classes c that are none of max(0, 1 - z_y + z_c), and its gradient times g where grad
    has elements. is_label and slopes are for a number a class."""
    classes = z.shape[1]
    for c in range(classes):
        is_label[c], slopes[c] = False, 0
    labels = 0
    while labels < classes and target[row, labels] >= 0:
        is_label[target[row, labels]] = True
        labels += 1
    loss = 0.0
    for k in range(labels):
        y = target[row, k]
        threshold = np.float64(z[row, y]) - 1.0
        of_label = 0.0
        for c in range(classes):
            v = 0.0 if is_label[c] else violation(z[row, c], threshold)
            loss += v
            slopes[c] += step(v)
            of_label += step(v)
        slopes[y] -= of_label
    if grad.size:
        for c in range(classes):
            grad[row, c] = g * slopes[c]
    return loss


@njit(**PLAIN)
def margin_rows(kind, z, grad, losses, target, weight, sample_weight, upstream, first, end, power, margin, scale):
    """Rows [first, end). z and grad are (rows, classes), or grad (0, classes), and so are lists of labels."""
    classes = z.shape[1]
    is_label, values, slopes = np.empty(classes, np.bool_), np.empty(classes, np.float64), np.empty(classes, np.float64)
    result = 0.0
    for row in range(first, end):
        s = (np.float64(sample_weight[row]) if sample_weight.size else 1.0) / classes
        if weight.size:
            s *= np.float64(weight[target[row, 0]])
        g = s * scale * (np.float64(upstream[row]) if upstream.size else 1.0)
        if kind == MULTI_MARGIN:
            loss = multi_margin_row(z, row, target[row, 0], power, margin, g, values, slopes, grad)
        else:
            loss = multilabel_margin_row(z, row, target, g, is_label, slopes, grad)
        rounded = as_real(s * loss, z[0, 0])
        if grad.size and rounded != rounded:
            grad[row, :] = rounded
        result += np.float64(rounded)
        if losses.size:
            losses[row] = rounded
    return result


@njit(**PLAIN)
def tile(
    t, kind, z, grad, losses, target, weight, sample_weight, upstream, classes, inner, rows, ignore, power, margin,
    scale,
):  # fmt: skip
    per_tile = max(1, TILE // classes)
    first, end = t * per_tile, min(rows, (t + 1) * per_tile)
    if kind == NLL:
        return nll_rows(
            z, grad, losses, target, weight, sample_weight, upstream, classes, inner, first, end, ignore, scale
        )
    return margin_rows(
        kind, z.reshape((rows, classes)), grad.reshape((rows if grad.size else 0, classes)), losses,
        target.reshape((rows, target.size // rows)), weight, sample_weight, upstream, first, end, power, margin, scale,
    )  # fmt: skip


@cached
def class_loss_serial(sums, *arguments):
    for t in range(sums.size):
        sums[t] = tile(t, *arguments)


@threaded
def class_loss_parallel(sums, *arguments):
    for t in prange(sums.size):
        sums[t] = tile(t, *arguments)
