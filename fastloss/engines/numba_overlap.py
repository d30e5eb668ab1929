"""Numba kernels of the overlap losses: one pass over the logits for each class's sums, another for the gradient.

Arrays are flat, as in numba_kernels.py. A few neighbouring targets at a time are brought into a scratch array of shape
(classes, targets), where every loop is one over targets. A span of them adds to sums of its own, and the spans depend
only on shapes, so bits do not depend on threads.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from fastloss.engines.numba_kernels import PLAIN, cached, columns, copy_into, focal_factors, threaded
from fastloss.engines.numba_math import SCALE_DOWN, as_real, exp, log1p, wide_vectors, zero_times
from fastloss.engines.numba_vectors import total, total_of_products

# Spans at most, as long as the groups are not more: there is a set of sums for each.
SPANS = 64
# Targets a span at least, so that the sums take little memory beside the logits.
TARGETS_A_SPAN = 256


def spans_a_group(rows: int, groups: int) -> int:
    return int(max(1, min(SPANS // max(groups, 1), rows // max(groups, 1) // TARGETS_A_SPAN)))


@njit(**PLAIN)
def span(t, spans, rows, groups):
    """(group, first, end) of span number t."""
    group, number = t // spans, t % spans
    rows_a_group = rows // groups
    size = (rows_a_group + spans - 1) // spans
    first = group * rows_a_group
    return group, first + min(rows_a_group, number * size), first + min(rows_a_group, (number + 1) * size)


@njit(**PLAIN)
def targets_at_once(classes):
    return max(16, min(512, 16384 // classes))


@njit(**PLAIN)
def gather(z, first, n, inner, x):
    """x[class, k] = what z holds for target first + k, with all n of them in one outer position."""
    classes = x.shape[0]
    if inner == 1:
        for k in range(n):
            for c in range(classes):
                x[c, k] = z[(first + k) * classes + c]
    else:
        base = first // inner * classes * inner + first % inner
        for c in range(classes):
            copy_into(z[base + c * inner : base + c * inner + n], x[c])


@njit(**PLAIN)
def scatter(x, first, n, inner, z):
    """The way back."""
    classes = x.shape[0]
    if inner == 1:
        for k in range(n):
            for c in range(classes):
                z[(first + k) * classes + c] = x[c, k]
    else:
        base = first // inner * classes * inner + first % inner
        for c in range(classes):
            copy_into(x[c, :n], z[base + c * inner : base + c * inner + n])


# ---- Class indices --------------------------------------------------------------------------------------------------


@njit(**PLAIN)
def softmax_of_targets(m, z_y, rest, p, not_p, nll, factor):
    """From what `columns` leaves: p of the target, 1 - p, -log p, and what makes probabilities of exponentials."""
    wide_vectors()
    one = as_real(1.0, m[0])
    for k in range(m.size):
        e_y = exp(z_y[k] - m[k])
        inverse = one / (rest[k] + e_y)
        p[k] = e_y * inverse
        not_p[k] = rest[k] * inverse
        nll[k] = (m[k] - z_y[k]) + log1p(rest[k] + (e_y - one))
        factor[k] = inverse * SCALE_DOWN(one)


@njit(**PLAIN)
def focus_targets(p, not_p, nll, focal, gamma, of_loss, of_grad):
    wide_vectors()
    for k in range(p.size):
        of_loss[k], of_grad[k] = focal_factors(nll[k], p[k], not_p[k], focal, gamma)


@njit(**PLAIN)
def multiply(values, factor):
    wide_vectors()
    for k in range(factor.size):
        values[k] *= factor[k]


@njit(**PLAIN)
def class_probabilities(z, first, n, inner, target, ignore, from_logits, focal, gamma, x, ys, counts, work, sums):
    """x[class, k] = probabilities, but 0 for the target's class, and for targets that don't count. Leaves in work the
    target's p, 1 - p, cross-entropy and factors of a focal one."""
    gather(z, first, n, inner, x)
    for k in range(n):
        counts[k] = target[first + k] != ignore
        ys[k] = target[first + k] if counts[k] else 0
        if not counts[k]:
            x[:, k] = 0
    p, not_p, nll = work[0], work[1], work[2]
    if not from_logits:
        for k in range(n):
            p[k] = x[ys[k], k]
            not_p[k] = as_real(1.0, p[k]) - p[k]
            x[ys[k], k] = 0
        return
    m, z_y, rest, factor = work[5], work[6], work[7], work[8]
    columns(x, ys[:n], False, m, z_y, rest, factor, sums)
    softmax_of_targets(m[:n], z_y, rest, p, not_p, nll, factor)
    for k in range(n):
        if not counts[k]:
            p[k], factor[k] = 0, 0
    for c in range(x.shape[0]):
        multiply(x[c], factor[:n])
    if focal > 0:
        focus_targets(p[:n], not_p, nll, focal, gamma, work[3], work[4])


@njit(**PLAIN)
def class_sums(
    z, target, class_weight, first, end, inner, ignore, from_logits, squared, with_entropy, focal, gamma, result,
    entropy,
):  # fmt: skip
    """Adds to result[class] the sums of p y, of p (1 - y) and of (1 - p) y; where they are squared of p y, p (p - y)
    and y (y - p)."""
    classes = result.shape[0]
    at_once = targets_at_once(classes)
    x, work = np.empty((classes, at_once), z.dtype), np.ones((9, at_once), z.dtype)
    ys, counts, sums = np.empty(at_once, np.int64), np.empty(at_once, np.bool_), np.empty((2, at_once), np.float64)
    p, not_p, nll, of_loss = work[0], work[1], work[2], work[3]
    start = first
    while start < end:
        n = min(at_once, end - start, inner - start % inner if inner > 1 else end)
        class_probabilities(z, start, n, inner, target, ignore, from_logits, focal, gamma, x, ys, counts, work, sums)
        for c in range(classes):
            positive = np.float64(total_of_products(x[c, :n], x[c, :n]) if squared else total(x[c, :n]))
            result[c, 1] += positive
            if positive != positive:  # NaN is in all sums, so that the class is not taken for one that no target has
                result[c, 2] += positive
        for k in range(n):
            if counts[k]:
                y, p_y, q_y = ys[k], np.float64(p[k]), np.float64(not_p[k])
                result[y, 0] += p_y
                result[y, 1] -= p_y * q_y if squared else 0.0
                result[y, 2] += q_y
                if with_entropy:
                    w = np.float64(class_weight[y]) if class_weight.size else 1.0
                    entropy[0] += w * zero_times(w, np.float64(of_loss[k]) * np.float64(nll[k]))
                    entropy[1] += w
        start += n


@njit(**PLAIN)
def class_slopes(x, b, shift, squared):
    """x = p (b + shift), or p (b p + shift)."""
    wide_vectors()
    real = as_real(b, x[0])
    if squared:
        for k in range(shift.size):
            x[k] *= real * x[k] + shift[k]
    else:
        for k in range(shift.size):
            x[k] *= real + shift[k]


@njit(**PLAIN)
def class_gradient(
    z, grad, target, class_weight, a, b, scale, first, end, inner, ignore, from_logits, squared, focal, gamma
):
    """a, b: the loss's derivatives by each class's sums of p y, and of p or p^2. With D the sum over the other classes
    of p_c b_c, and S the factor of cross-entropy, the gradient is p_y ((1 - p_y) (a_y + b_y) - D) - S (1 - p_y) at the
    target, and p_c (b_c - D - p_y (a_y + b_y) + S) elsewhere, where nothing cancels for a confident target."""
    classes = a.size
    at_once = targets_at_once(classes)
    x, work = np.empty((classes, at_once), z.dtype), np.ones((9, at_once), z.dtype)
    ys, counts, sums = np.empty(at_once, np.int64), np.empty(at_once, np.bool_), np.empty((2, at_once), np.float64)
    p, not_p, of_grad, at_target, shift, d = work[0], work[1], work[4], work[5], work[6], sums[0]
    twice = 2.0 if squared else 1.0
    start = first
    while start < end:
        n = min(at_once, end - start, inner - start % inner if inner > 1 else end)
        class_probabilities(z, start, n, inner, target, ignore, from_logits, focal, gamma, x, ys, counts, work, sums)
        d[:] = 0
        if from_logits:
            for c in range(classes):
                x_class, slope = x[c], twice * b[c]
                for k in range(n):
                    p_c = np.float64(x_class[k])
                    d[k] += slope * (p_c * p_c if squared else p_c)
        for k in range(n):
            y, p_y, q = ys[k], np.float64(p[k]), np.float64(not_p[k])
            of_y = a[y] + twice * b[y] * (p_y if squared else 1.0)
            if from_logits:
                s = 0.0
                if scale != 0:
                    s = scale * np.float64(of_grad[k]) * (np.float64(class_weight[y]) if class_weight.size else 1.0)
                shift[k] = s - d[k] - p_y * of_y
                at_target[k] = p_y * (q * of_y - d[k]) - s * q
            else:
                at_target[k] = of_y
        for c in range(classes):
            if from_logits:
                class_slopes(x[c], twice * b[c], shift[:n], squared)
            else:
                for k in range(n):
                    x[c, k] = twice * b[c] * x[c, k] if squared else b[c]
        for k in range(n):
            if counts[k]:
                x[ys[k], k] = at_target[k]
            else:
                x[:, k] = 0
        scatter(x, start, n, inner, grad)
        start += n


# ---- Masks ----------------------------------------------------------------------------------------------------------


@njit(**PLAIN)
def mask_probabilities(x, y, from_logits, ignores, ignore, p, q):
    """p and q = 1 - p; they and y become 0 where y is ignored."""
    wide_vectors()
    zero = as_real(0.0, x[0])
    one = as_real(1.0, x[0])
    missing = as_real(ignore, x[0])
    if from_logits:
        for k in range(x.size):
            u = exp(-abs(x[k]))
            inverse = one / (one + u)
            p[k] = (u if x[k] < 0 else one) * inverse
            q[k] = (one if x[k] < 0 else u) * inverse
    else:
        for k in range(x.size):
            p[k] = x[k]
            q[k] = one - x[k]
    if ignores:
        for k in range(x.size):
            counts = y[k] != missing
            p[k] = p[k] if counts else zero
            q[k] = q[k] if counts else zero
            y[k] = y[k] if counts else zero


@njit(**PLAIN)
def mask_totals(p, q, y, squared, rest):
    """The sums of p y, p (1 - y) and q y, or where they are squared of p y, p (p - y), y (y - p). rest is scratch."""
    one = as_real(1.0, p[0])
    if squared:
        for k in range(y.size):
            rest[k] = q[k] if y[k] == one else y[k] - p[k]  # q has the digits that the difference loses
        return total_of_products(p, y), -total_of_products(p, rest), total_of_products(y, rest)
    for k in range(y.size):
        rest[k] = one - y[k]
    return total_of_products(p, y), total_of_products(p, rest), total_of_products(q, y)


@njit(**PLAIN)
def mask_sums(z, labels, first, end, inner, from_logits, squared, ignores, ignore, result):
    classes = result.shape[0]
    at_once = targets_at_once(classes)
    x, y = np.empty((classes, at_once), z.dtype), np.empty((classes, at_once), z.dtype)
    p, q, rest = np.empty(at_once, z.dtype), np.empty(at_once, z.dtype), np.empty(at_once, z.dtype)
    start = first
    while start < end:
        n = min(at_once, end - start, inner - start % inner if inner > 1 else end)
        gather(z, start, n, inner, x)
        gather(labels, start, n, inner, y)
        for c in range(classes):
            mask_probabilities(x[c, :n], y[c, :n], from_logits, ignores, ignore, p, q)
            both, positive, negative = mask_totals(p[:n], q[:n], y[c, :n], squared, rest)
            result[c, 0] += np.float64(both)
            result[c, 1] += np.float64(positive)
            result[c, 2] += np.float64(negative)
        start += n


@njit(**PLAIN)
def mask_slopes(x, y, a, b, from_logits, squared, ignores, ignore):
    """x = p (1 - p) (a y + b), or p (1 - p) (a y + b p)."""
    wide_vectors()
    zero = as_real(0.0, x[0])
    one = as_real(1.0, x[0])
    of_y, of_p, missing = as_real(a, x[0]), as_real(b, x[0]), as_real(ignore, x[0])
    for k in range(x.size):
        u = exp(-abs(x[k]))
        inverse = one / (one + u)
        p = ((u if x[k] < 0 else one) * inverse) if from_logits else x[k]
        slope = of_y * y[k] + (of_p * p if squared else of_p)
        slope = slope * (u * inverse * inverse) if from_logits else slope
        x[k] = zero if ignores and y[k] == missing else slope


@njit(**PLAIN)
def mask_gradient(z, grad, labels, a, b, first, end, inner, from_logits, squared, ignores, ignore):
    classes = a.size
    at_once = targets_at_once(classes)
    x, y = np.empty((classes, at_once), z.dtype), np.empty((classes, at_once), z.dtype)
    twice = 2.0 if squared else 1.0
    start = first
    while start < end:
        n = min(at_once, end - start, inner - start % inner if inner > 1 else end)
        gather(z, start, n, inner, x)
        gather(labels, start, n, inner, y)
        for c in range(classes):
            mask_slopes(x[c, :n], y[c, :n], a[c], twice * b[c], from_logits, squared, ignores, ignore)
        scatter(x, start, n, inner, grad)
        start += n


# ---- All spans ------------------------------------------------------------------------------------------------------


@njit(**PLAIN)
def sums_of_span(
    t, result, entropy, masks, z, target, labels, class_weight, spans, rows, groups, inner, ignores, ignore,
    from_logits, squared, with_entropy, focal, gamma,
):  # fmt: skip
    _, first, end = span(t, spans, rows, groups)
    if masks:
        mask_sums(z, labels, first, end, inner, from_logits, squared, ignores, ignore, result)
    else:
        class_sums(
            z, target, class_weight, first, end, inner, ignore, from_logits, squared, with_entropy, focal, gamma,
            result, entropy,
        )  # fmt: skip


@cached
def overlap_sums_serial(sums, entropies, *arguments):
    for t in range(sums.shape[0]):
        sums_of_span(t, sums[t], entropies[t], *arguments)


@threaded
def overlap_sums_parallel(sums, entropies, *arguments):
    for t in prange(sums.shape[0]):
        sums_of_span(t, sums[t], entropies[t], *arguments)


@njit(**PLAIN)
def gradient_of_span(
    t, of_intersection, of_sum, scale, grad, masks, z, target, labels, class_weight, spans, rows, groups, inner,
    ignores, ignore, from_logits, squared, focal, gamma,
):  # fmt: skip
    group, first, end = span(t, spans, rows, groups)
    a, b = of_intersection[group], of_sum[group]
    if masks:
        mask_gradient(z, grad, labels, a, b, first, end, inner, from_logits, squared, ignores, ignore)
    else:
        class_gradient(
            z, grad, target, class_weight, a, b, scale, first, end, inner, ignore, from_logits, squared, focal, gamma
        )


@cached
def overlap_gradient_serial(count, *arguments):
    for t in range(count):
        gradient_of_span(t, *arguments)


@threaded
def overlap_gradient_parallel(count, *arguments):
    for t in prange(count):
        gradient_of_span(t, *arguments)
