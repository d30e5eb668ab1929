"""Numba kernels: tiles of rows in, sums of losses and gradients out. The formulas are those of csrc/.

Arrays are flat and contiguous: logits, gradients and probabilities as (outer, classes, inner), all else as
(outer, inner). Each tile is computed alone and leaves its sum in its place, so bits do not depend on threads. Loops are
short and do one thing, because LLVM makes vectors of such loops; it does so for two arrays only where they lie apart,
so a gradient that replaces the logits is made in a scratch array first.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit, prange

from fastloss.engines.numba_math import (
    INLINE,
    LOWEST,
    SCALE_DOWN,
    as_real,
    exp,
    exp_and_rest,
    exp_scaled,
    log1p,
    log1p_unit,
    power_of_unit,
    wide_vectors,
    zero_times,
)
from fastloss.engines.numba_vectors import (
    distance_below,
    exponentials,
    exponentials_below_largest,
    largest,
    room,
    scale_into,
    total,
    total_in_double,
)

PLAIN = {"error_model": "numpy"}

_SOURCES = hashlib.sha256(
    b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("numba_*.py")))
).digest()


def _kept(parallel: bool) -> Callable[[Callable[..., Any]], Any]:
    """njit whose machine code stays on disk until a file of this engine changes: by itself Numba would look at the
    function's own file alone, and run old code of the others after an update."""

    def decorate(function: Callable[..., Any]) -> Any:
        compiled = njit(cache=True, nogil=True, parallel=parallel, **PLAIN)(function)
        file: Any = getattr(compiled._cache, "_cache_file", None)  # Numba's own, and so may be named otherwise one day
        if hasattr(file, "_source_stamp"):
            file._source_stamp = _SOURCES
        return compiled

    return decorate


cached = _kept(parallel=False)
threaded = _kept(parallel=True)

# Elements a tile, as in csrc/kernels.h.
TILE = 32768
# Elements a block: its exponentials stay in the first-level cache, and float sums over it keep their digits.
BLOCK = 512
# Up to here rows are computed many at a time.
SHORT_ROW = 256
# Elements of such rows at a time, with all that belongs to them in the second-level cache.
SHORT_ROWS_AT_ONCE = 8192
# How far a logit may exceed the reference of its row, which need not be the maximum, before a new one is taken.
JUMP = 16.0

# ---- Loops over contiguous elements ---------------------------------------------------------------------------------


@njit(**PLAIN)
def total_by_blocks(values):
    """The sum of any number of elements, in double."""
    result = 0.0
    for i in range(0, values.size, BLOCK):
        result += np.float64(total(values[i : i + BLOCK]))
    return result


@njit(**PLAIN)
def copy_into(values, out):
    for i in range(values.size):
        out[i] = values[i]


# ---- Cross-entropy with class indices, after the sums of a row are known: see csrc/cross_entropy.h ------------------


TINY = 2.0**-126


@njit(**INLINE)
def focal_factors(nll, p, not_p, focal, gamma):
    """Of the loss, f = (1 - focal) + focal not_p^gamma, and of its gradient, f + focal gamma p not_p^(gamma - 1) nll.

    nll / not_p tends to 1 where both vanish, so that neither overflows for gamma below 1.
    """
    one = as_real(1.0, p)
    share = as_real(focal, p)
    power = share * power_of_unit(not_p, gamma)
    ratio = one if not_p < as_real(TINY, p) else nll / not_p
    f = (one - share) + power
    return f, f + as_real(gamma, p) * power * (p * zero_times(p, ratio))


@njit(**PLAIN)
def focus(n, m, z_y, rest, focal, gamma, a, a_grad):
    """n rows as `finish` takes them: the targets' factors a become those of the loss, and a_grad the gradient's."""
    wide_vectors()
    one = as_real(1.0, m[0])
    for i in range(n):
        e_y = exp(z_y[i] - m[i])
        inverse = one / (rest[i] + e_y)
        nll = (m[i] - z_y[i]) + log1p(rest[i] + (e_y - one))
        of_loss, of_grad = focal_factors(nll, e_y * inverse, rest[i] * inverse, focal, gamma)
        a_grad[i] = a[i] * of_grad
        a[i] *= of_loss


@njit(**PLAIN)
def finish(n, m, z_y, rest, distance, a, a_grad, s, g, smoothing, u, z_loss, loss, factor, target_grad, shift):
    """n rows: m is the maximum, rest the sum of exp(z - m) without the target's, distance the sum of m - z."""
    wide_vectors()
    one = as_real(1.0, m[0])
    smoothing = as_real(smoothing, one)
    u = as_real(u, one)
    z_loss = as_real(z_loss, one)
    # Short loops, of which the processor overlaps many turns.
    for i in range(n):
        target_grad[i] = exp(z_y[i] - m[i])
    for i in range(n):
        shift[i] = log1p(rest[i] + (target_grad[i] - one))
    for i in range(n):
        e_y, log_sum = target_grad[i], shift[i]
        inverse = one / (rest[i] + e_y)
        nll = (m[i] - z_y[i]) + log_sum
        lse = m[i] + log_sum
        extra = (z_loss + z_loss) * lse
        every = a_grad[i] + smoothing
        value = a[i] * zero_times(a[i], nll) + (u * distance[i] + smoothing * log_sum) + z_loss * lse * lse
        loss[i] = s[i] * zero_times(s[i], value)
        factor[i] = g[i] * (every + extra) * inverse * SCALE_DOWN(one)
        target_grad[i] = g[i] * ((extra * e_y - every * rest[i]) * inverse + smoothing - u)
        shift[i] = g[i] * u


@njit(**PLAIN)
def columns_max(x, m):
    """m = the maximum of each column, NaN where it begins with NaN."""
    for k in range(m.size):
        m[k] = x[0, k]
    for c in range(1, x.shape[0]):
        x_class = x[c]
        for k in range(m.size):
            m[k] = x_class[k] if x_class[k] > m[k] else m[k]


@njit(**PLAIN)
def columns_exponentials(x_class, m):
    wide_vectors()
    for k in range(m.size):
        x_class[k] = exp_scaled(x_class[k] - m[k])


@njit(**PLAIN)
def columns(x, ys, smoothing, m, z_y, rest, distance, sums):
    """Logits of targets side by side, x[class, target], become scaled exponentials, but 0 for the targets' classes.
    Leaves what `finish` needs. sums is for two sums in double a target."""
    classes, n = x.shape[0], ys.size
    for k in range(n):
        z_y[k] = x[ys[k], k]
    m, rest, distance, sums = m[:n], rest[:n], distance[:n], sums[:, :n]
    columns_max(x, m)
    sums[:] = 0
    if smoothing:
        for c in range(classes):
            for k in range(n):
                sums[1, k] += np.float64(m[k] - x[c, k])
    for c in range(classes):
        columns_exponentials(x[c], m)
    for k in range(n):
        x[ys[k], k] = 0
    for start in range(0, classes, BLOCK):
        rest[:] = 0
        for c in range(start, min(classes, start + BLOCK)):
            x_class = x[c]
            for k in range(n):
                rest[k] += x_class[k]
        for k in range(n):
            sums[0, k] += np.float64(rest[k])
    for k in range(n):
        rest[k] = sums[0, k] * np.float64(SCALE_DOWN(m[k]))
        distance[k] = sums[1, k]


@njit(**PLAIN)
def take_target(k, row, y, share, scale, weight, sample_weight, upstream, a, s, g):
    """The factors of target number `row`, as entry k. Arrays of no elements stand for ones that are not given."""
    a[k] = share * weight[y] if weight.size else share
    s[k] = sample_weight[row] if sample_weight.size else 1.0
    g[k] = scale * s[k] * (upstream[row] if upstream.size else 1.0)


@njit(**PLAIN)
def ignore_row(row, grad, losses):
    if grad.size:
        grad[row, :] = 0
    if losses.size:
        losses[row] = 0


@njit(**PLAIN)
def short_rows(
    z, grad, losses, target, weight, sample_weight, upstream, first, end, ignore, smoothing, z_loss, focal, gamma,
    scale,
):  # fmt: skip
    """Rows [first, end) of few classes: everything but maxima and sums in loops over many rows.

    z and grad are (rows, classes), or grad (0, 0); they may be the same.
    """
    classes = z.shape[1]
    at_once = max(8, min(256, SHORT_ROWS_AT_ONCE // classes))
    share = 1.0 - smoothing
    same_factors = not (weight.size or sample_weight.size or upstream.size or focal > 0)
    x = np.empty((at_once, room(classes, z[0, 0])), z.dtype)
    index = np.empty(at_once, np.int64)
    ys = np.empty(at_once, np.int64)
    work = np.zeros((12, at_once), z.dtype)
    m, z_y, rest, distance, a, s, g = work[0], work[1], work[2], work[3], work[4], work[5], work[6]
    loss, factor, target_grad, shift = work[7], work[8], work[9], work[10]
    a_grad = work[11] if focal > 0 else a
    a[:], s[:], g[:] = share, 1.0, scale
    result = 0.0
    row = first
    while row < end:
        n = 0
        while row < end and n < at_once:
            y = target[row]
            if y == ignore:
                ignore_row(row, grad, losses)
            else:
                if not same_factors:
                    take_target(n, row, y, share, scale, weight, sample_weight, upstream, a, s, g)
                index[n], ys[n], z_y[n] = row, y, z[row, y]
                m[n], rest_of_row = exponentials_below_largest(z[row], y, x[n])
                rest[n] = rest_of_row * SCALE_DOWN(rest_of_row)
                if smoothing > 0:
                    distance[n] = distance_below(z[row], m[n])
                n += 1
            row += 1
        if focal > 0:
            focus(n, m, z_y, rest, focal, gamma, a, a_grad)
        finish(
            n, m, z_y, rest, distance, a, a_grad, s, g, smoothing, smoothing / classes, z_loss, loss, factor,
            target_grad, shift,
        )  # fmt: skip
        result += total_in_double(loss[:n])
        if losses.size:
            for k in range(n):
                losses[index[k]] = loss[k]
        if grad.size:
            for k in range(n):
                scale_into(x[k], factor[k], shift[k], grad[index[k]])
                grad[index[k], ys[k]] = target_grad[k]
    return result


@njit(**PLAIN)
def row_sums(z, e, y, smoothing):
    """One row: (reference, sum of exp(z - reference) without the target's, sum of z - reference where labels are
    smoothed). Leaves the scaled exponentials in e, but 0 for the target.

    They are made block by block against the reference: the first block's maximum, until a block exceeds it by far.
    """
    classes = z.size
    z_y = z[y]
    reference = largest(z[:BLOCK])
    if reference < LOWEST(reference):
        reference = LOWEST(reference)
    limit = math.exp(JUMP) / np.float64(SCALE_DOWN(z_y))
    rest = 0.0
    x_sum = 0.0
    for start in range(0, classes, BLOCK):
        z_block = z[start : start + BLOCK]
        e_block = e[start : start + BLOCK]
        block_sum = exponentials(z_block, reference, y - start, e_block)
        has_target = start <= y < start + BLOCK
        if block_sum > limit or (has_target and z_y > reference + as_real(JUMP, z_y)):
            top = largest(z[start:])
            if top > reference:
                shrink = math.exp(np.float64(reference) - np.float64(top))
                rest *= shrink
                x_sum += start * (np.float64(reference) - np.float64(top))
                scale_into(e[:start], as_real(shrink, z_y), as_real(0.0, z_y), e[:start])
                reference = top
                block_sum = exponentials(z_block, reference, y - start, e_block)
        rest += np.float64(block_sum)
        if smoothing:
            for i in range(z_block.size):
                x_sum += np.float64(z_block[i] - reference)
    return np.float64(reference), rest * np.float64(SCALE_DOWN(z_y)), x_sum


@njit(**PLAIN)
def nll_of(rest, distance, e_y):
    """-log p of the target, which lies `distance` above the reference, and logsumexp less the reference."""
    log_sum = math.log(rest + e_y)
    return (math.log1p(rest / e_y) if e_y > rest else log_sum - distance), log_sum


@njit(**PLAIN)
def long_row(z, e, y, a, s, g, smoothing, z_loss, focal, gamma):
    """One row: (loss, factor, shift, the target's gradient), and its exponentials in e."""
    reference, rest, x_sum = row_sums(z, e, y, smoothing > 0)
    distance = np.float64(z[y]) - reference
    e_y = math.exp(distance)
    nll, log_sum = nll_of(rest, distance, e_y)
    lse = reference + log_sum
    u = smoothing / z.size
    extra = 2 * z_loss * lse
    a_grad = a
    if focal > 0:
        of_loss, of_grad = focal_factors(nll, e_y / (rest + e_y), rest / (rest + e_y), focal, gamma)
        a_grad = a * of_grad
        a *= of_loss
    every = a_grad + smoothing
    value = a * (nll if a != 0 or nll != nll else 0.0) + z_loss * lse * lse
    if smoothing > 0:
        value += smoothing * log_sum - u * x_sum
    loss = s * (value if s != 0 or value != value else 0.0)
    target_grad = g * ((extra * e_y - every * rest) / (rest + e_y) + smoothing - u)
    return loss, g * (every + extra) / (rest + e_y) * np.float64(SCALE_DOWN(z[y])), g * u, target_grad


@njit(**PLAIN)
def row_gradient(e, factor, shift, y, target_grad, grad):
    """From exponentials, which may lie in grad itself."""
    f, minus = as_real(factor, e[0]), as_real(shift, e[0])
    scale_into(e, f, minus, grad)
    grad[y] = target_grad


@njit(**PLAIN)
def long_rows(
    z, grad, losses, target, weight, sample_weight, upstream, first, end, ignore, smoothing, z_loss, focal, gamma,
    scale,
):  # fmt: skip
    """Rows [first, end), one after the other. z and grad are (rows, classes), or grad (0, 0)."""
    in_place = grad.ctypes.data == z.ctypes.data
    scratch = np.empty(z.shape[1] if in_place or grad.size == 0 else 0, z.dtype)
    result = 0.0
    for row in range(first, end):
        y = target[row]
        if y == ignore:
            ignore_row(row, grad, losses)
            continue
        a = (1.0 - smoothing) * (np.float64(weight[y]) if weight.size else 1.0)
        s = np.float64(sample_weight[row]) if sample_weight.size else 1.0
        g = scale * s * (np.float64(upstream[row]) if upstream.size else 1.0)
        e = scratch if scratch.size else grad[row]
        loss, factor, shift, target_grad = long_row(z[row], e, y, a, s, g, smoothing, z_loss, focal, gamma)
        rounded = as_real(loss, z[0, 0])
        result += np.float64(rounded)
        if losses.size:
            losses[row] = rounded
        if grad.size:
            row_gradient(e, factor, shift, y, target_grad, grad[row])
    return result


@njit(**PLAIN)
def lanes(
    z, grad, losses, target, weight, sample_weight, upstream, classes, inner, outer, first, end, ignore, smoothing,
    z_loss, focal, gamma, scale,
):  # fmt: skip
    """Positions [first, end) of an outer one, their classes `inner` apart: loops over neighbouring positions."""
    at_once = max(64, min(512, 16384 // classes))
    share = 1.0 - smoothing
    x = np.empty((classes, at_once), z.dtype)
    counts = np.empty(at_once, np.bool_)
    ys = np.empty(at_once, np.int64)
    sums = np.empty((2, at_once), np.float64)
    work = np.zeros((12, at_once), z.dtype)
    m, z_y, rest, distance, a, s, g = work[0], work[1], work[2], work[3], work[4], work[5], work[6]
    loss, factor, target_grad, shift = work[7], work[8], work[9], work[10]
    a_grad = work[11] if focal > 0 else a
    result = 0.0
    for position in range(first, end, at_once):
        n = min(at_once, end - position)
        base = outer * classes * inner + position
        for k in range(n):
            row = outer * inner + position + k
            counts[k] = target[row] != ignore
            ys[k] = target[row] if counts[k] else 0
            take_target(k, row, ys[k], share, scale, weight, sample_weight, upstream, a, s, g)
        for c in range(classes):
            copy_into(z[base + c * inner : base + c * inner + n], x[c])
        columns(x, ys[:n], smoothing > 0, m, z_y, rest, distance, sums)
        if focal > 0:
            focus(n, m, z_y, rest, focal, gamma, a, a_grad)
        finish(
            n, m, z_y, rest, distance, a, a_grad, s, g, smoothing, smoothing / classes, z_loss, loss, factor,
            target_grad, shift,
        )  # fmt: skip
        for k in range(n):
            if not counts[k]:
                loss[k] = 0
            result += np.float64(loss[k])
        if losses.size:
            copy_into(loss[:n], losses[outer * inner + position : outer * inner + position + n])
        if grad.size:
            for c in range(classes):
                x_class = x[c]
                grad_class = grad[base + c * inner : base + c * inner + n]
                for k in range(n):
                    grad_class[k] = x_class[k] * factor[k] - shift[k]
            for k in range(n):
                if counts[k]:
                    grad[base + ys[k] * inner + k] = target_grad[k]
                else:
                    for c in range(classes):
                        grad[base + c * inner + k] = 0
    return result


# ---- Everything over the class axis, with every option: see csrc/softmax.h ------------------------------------------

SOFTMAX, LOG_SOFTMAX, LOGSUMEXP, ENTROPY = 1, 2, 3, 4  # 0: cross-entropy


@njit(**PLAIN)
def soft_row(kind, z, softcap, a, s, g, z_loss, focal, gamma, x, e, slope, out):
    """One row, whose class weights are a: its loss, or its value. `out` receives its gradient, or its softmax.

    a is left as the weights of the gradient."""
    one = as_real(1.0, z[0])
    zero = one - one
    if softcap > 0:
        limit = as_real(softcap, one)
        for c in range(z.size):
            u, rest_of_u = exp_and_rest(-(abs(z[c]) + abs(z[c])) / limit)
            inverse = one / (one + u)
            x[c] = math.copysign(limit * (rest_of_u * inverse), z[c])
            slope[c] = (u + u + u + u) * (inverse * inverse)
    else:
        copy_into(z, x)
    m = largest(x)
    if math.isinf(m):
        m = as_real(np.nan, one)
    ties = 0
    for c in range(x.size):
        ties += x[c] == m
        e[c] = zero if x[c] == m else exp_scaled(x[c] - m)
    rest = total_by_blocks(e) * np.float64(SCALE_DOWN(one)) + (ties - 1)
    log_sum = math.log1p(rest)
    sums = 1.0 + rest
    lse = np.float64(m) + log_sum
    if kind == LOGSUMEXP:
        return lse
    if kind == LOG_SOFTMAX:
        for c in range(x.size):
            out[c] = (x[c] - m) - as_real(log_sum, one)
        return 0.0
    if kind == ENTROPY:
        entropy = 0.0
        for c in range(x.size):
            if e[c] != 0:
                entropy += np.float64(e[c]) * np.float64(m - x[c])
        return log_sum + entropy * np.float64(SCALE_DOWN(one)) / sums
    loss = 0.0
    weights = 0.0
    b = 1.0
    if kind == 0:
        weights_of_loss = 0.0
        for c in range(x.size):
            if a[c] != 0:
                of_loss, of_grad = 1.0, 1.0
                if focal > 0:
                    p = np.float64(e[c] * SCALE_DOWN(one)) / sums if x[c] != m else 1.0 / sums
                    not_p = 1.0 - p if x[c] != m else rest / sums
                    nll = np.float64(m - x[c]) + log_sum
                    of_loss, of_grad = focal_factors(nll, p, not_p, focal, gamma)
                loss += np.float64(a[c]) * of_loss * np.float64(m - x[c])
                weights_of_loss += np.float64(a[c]) * of_loss
                a[c] *= of_grad
                weights += np.float64(a[c])
        loss += weights_of_loss * log_sum + (z_loss * lse * lse if z_loss > 0 else 0.0)
        loss = s * (loss if s != 0 or loss != loss or m != m else 0.0)
        b = weights + 2 * z_loss * lse
    if out.size:
        factor = as_real(g * b / sums * np.float64(SCALE_DOWN(one)), one)
        at_max = as_real(g * ((b - weights) - weights * rest) / sums, one)
        g_real = as_real(g, one)
        every = as_real(weights, one)
        for c in range(x.size):
            below = e[c] * factor - g_real * a[c]
            top = at_max + g_real * (every - a[c])
            out[c] = top if x[c] == m else below
            if x[c] != x[c] or m != m:
                out[c] = np.nan
        if softcap > 0:
            for c in range(x.size):
                out[c] *= slope[c]
    return loss


@njit(**PLAIN)
def soft_rows(
    kind, z, out, losses, target, probabilities, weight, sample_weight, upstream, classes, inner, first, end, ignore,
    smoothing, z_loss, softcap, focal, gamma, scale,
):  # fmt: skip
    """Rows [first, end), each gathered from where its classes lie."""
    work = np.zeros((5, classes), z.dtype)
    z_row, x, e, slope, a = work[0], work[1], work[2], work[3], work[4]
    out_row = np.empty(classes if out.size else 0, z.dtype)
    indexed = kind == 0 and probabilities.size == 0
    result = 0.0
    for row in range(first, end):
        base = row // inner * classes * inner + row % inner
        counts = not indexed or target[row] != ignore
        value = 0.0
        if counts:
            for c in range(classes):
                z_row[c] = z[base + c * inner]
            if kind == 0:
                for c in range(classes):
                    q = np.float64(probabilities[base + c * inner]) if not indexed else 0.0
                    if indexed and c == target[row]:
                        q = 1.0
                    w = np.float64(weight[c]) if weight.size else 1.0
                    a[c] = w * (q * (1.0 - smoothing) + smoothing / classes)
            s = np.float64(sample_weight[row]) if sample_weight.size else 1.0
            g = scale * s * (np.float64(upstream[row]) if upstream.size else 1.0)
            value = soft_row(kind, z_row, softcap, a, s, g, z_loss, focal, gamma, x, e, slope, out_row)
        rounded = as_real(value, z[0])
        result += np.float64(rounded)
        if losses.size:
            losses[row] = rounded
        for c in range(out_row.size):
            out[base + c * inner] = out_row[c] if counts else as_real(0.0, z[0])
    return result


# ---- Binary cross-entropy and maps: see csrc/binary.h and csrc/map.h ------------------------------------------------


@njit(**INLINE)
def binary_loss(z, u, y, w, p):
    """Of one element, with u = exp(-|z|)."""
    zero = as_real(0.0, z)
    positive = p * y
    negative = as_real(1.0, z) - y
    far = positive if z < 0 else negative
    linear = zero if far == 0 else far * abs(z)
    loss = (positive + negative) * log1p_unit(u) + linear
    return w * zero_times(w, loss)


@njit(**INLINE)
def binary_slope(z, u, y, w, p, g):
    one = as_real(1.0, z)
    positive = p * y
    negative = one - y
    far = positive if z < 0 else negative
    near = negative if z < 0 else positive
    slope = (far - near * u) / (one + u) * (w * g)
    return -slope if z < 0 else slope


@njit(**PLAIN)
def exponentials_of_distance(z, u):
    wide_vectors()
    for i in range(z.size):
        u[i] = exp(-abs(z[i]))


@njit(**INLINE)
def plain_binary_loss(z, u, y):
    """Without weights, where the factor of the logarithm is y + (1 - y)."""
    far = y if z < 0 else as_real(1.0, z) - y
    return log1p_unit(u) + (as_real(0.0, z) if far == 0 else far * abs(z))


@njit(**PLAIN)
def plain_binary_losses(z, y, u):
    """u becomes the losses."""
    wide_vectors()
    for i in range(z.size):
        u[i] = plain_binary_loss(z[i], u[i], y[i])


@njit(**PLAIN)
def plain_binary_block(z, y, scale, u, slope):
    """u becomes the losses."""
    wide_vectors()
    one = as_real(1.0, z[0])
    g = as_real(scale, one)
    for i in range(z.size):
        slope[i] = binary_slope(z[i], u[i], y[i], one, one, g)
        u[i] = plain_binary_loss(z[i], u[i], y[i])


@njit(**PLAIN)
def binary_block(z, u, y, weight, pos_weight, upstream, ignores, ignore, smoothing, scale, loss, slope):
    """With options; arrays of no elements stand for ones that are not given."""
    one = as_real(1.0, z[0])
    zero = as_real(0.0, one)
    smooth = as_real(1.0 - smoothing, one)
    half = as_real(smoothing / 2, one)
    g = as_real(scale, one)
    missing = as_real(ignore, one)
    for i in range(z.size):
        w = weight[i] if weight.size else one
        p = pos_weight[i] if pos_weight.size else one
        label = y[i] * smooth + half
        counts = not ignores or y[i] != missing
        loss[i] = binary_loss(z[i], u[i], label, w, p) if counts else zero
        slope[i] = binary_slope(z[i], u[i], label, w, p, g * upstream[i] if upstream.size else g) if counts else zero


@njit(**PLAIN)
def binary_tile(z, grad, losses, y, weight, pos_weight, upstream, first, end, ignores, ignore, smoothing, scale):
    plain = not (weight.size or pos_weight.size or upstream.size or ignores or smoothing > 0)
    in_place = grad.ctypes.data == z.ctypes.data
    u = np.empty(BLOCK, z.dtype)
    loss = np.empty(BLOCK, z.dtype)
    slope = np.empty(BLOCK, z.dtype)
    result = 0.0
    for start in range(first, end, BLOCK):
        n = min(BLOCK, end - start)
        at = slice(start, start + n)
        exponentials_of_distance(z[at], loss if plain else u)
        if plain and grad.size:
            plain_binary_block(z[at], y[at], scale, loss, slope if in_place else grad[at])
        elif plain:
            plain_binary_losses(z[at], y[at], loss)
        else:
            binary_block(
                z[at], u, y[at], weight[at], pos_weight[at], upstream[at], ignores, ignore, smoothing, scale, loss,
                slope,
            )  # fmt: skip
        result += total_in_double(loss[:n])
        if losses.size:
            copy_into(loss[:n], losses[at])
        if grad.size and (in_place or not plain):
            copy_into(slope[:n], grad[at])
    return result


SIGMOID, LOG_SIGMOID, SOFTPLUS = 0, 1, 2


@njit(**PLAIN)
def map_tile(kind, z, out, first, end):
    one = as_real(1.0, z[0])
    zero = one - one
    z = z[first:end]
    out = out[first:end]
    if kind == SIGMOID:
        for i in range(z.size):
            u = exp(-abs(z[i]))
            out[i] = (u if z[i] < 0 else one) / (one + u)
    elif kind == LOG_SIGMOID:
        for i in range(z.size):
            out[i] = (z[i] if z[i] < 0 else zero) - log1p_unit(exp(-abs(z[i])))
    else:
        for i in range(z.size):
            out[i] = (zero if z[i] < 0 else z[i]) + log1p_unit(exp(-abs(z[i])))


# ---- All tiles, on one thread and on several ------------------------------------------------------------------------


@njit(**PLAIN)
def cross_entropy_tile(
    t, general, z, grad, losses, target, probabilities, weight, sample_weight, upstream, classes, inner, rows, ignore,
    smoothing, z_loss, softcap, focal, gamma, scale,
):  # fmt: skip
    if general or inner == 1:
        per_tile = max(1, TILE // classes)
        first = t * per_tile
        end = min(rows, first + per_tile)
        if general:
            return soft_rows(
                0, z, grad, losses, target, probabilities, weight, sample_weight, upstream, classes, inner, first, end,
                ignore, smoothing, z_loss, softcap, focal, gamma, scale,
            )  # fmt: skip
        z_rows = z.reshape((rows, classes))
        grad_rows = grad.reshape((rows if grad.size else 0, classes))
        if classes <= SHORT_ROW:
            return short_rows(
                z_rows, grad_rows, losses, target, weight, sample_weight, upstream, first, end, ignore, smoothing,
                z_loss, focal, gamma, scale,
            )  # fmt: skip
        return long_rows(
            z_rows, grad_rows, losses, target, weight, sample_weight, upstream, first, end, ignore, smoothing, z_loss,
            focal, gamma, scale,
        )  # fmt: skip
    per_tile = max(64, TILE // classes)
    pieces = (inner + per_tile - 1) // per_tile
    first = t % pieces * per_tile
    return lanes(
        z, grad, losses, target, weight, sample_weight, upstream, classes, inner, t // pieces, first,
        min(inner, first + per_tile), ignore, smoothing, z_loss, focal, gamma, scale,
    )  # fmt: skip


def cross_entropy_tiles(general: bool, classes: int, inner: int, rows: int) -> int:
    """Their number."""
    if general or inner == 1:
        per_tile = max(1, TILE // classes)
        return (rows + per_tile - 1) // per_tile
    per_tile = max(64, TILE // classes)
    return rows // inner * ((inner + per_tile - 1) // per_tile)


@cached
def cross_entropy_serial(sums, *arguments):
    for t in range(sums.size):
        sums[t] = cross_entropy_tile(t, *arguments)


@threaded
def cross_entropy_parallel(sums, *arguments):
    for t in prange(sums.size):
        sums[t] = cross_entropy_tile(t, *arguments)


@cached
def check_targets(target, classes, ignores, ignore, weight, sample_weight):
    """The mean's denominator, or NaN where a target is neither a class nor ignored."""
    bad = 0
    count = 0
    for i in range(target.size):
        counts = not ignores or target[i] != ignore
        count += counts
        bad += counts and (target[i] < 0 or target[i] >= classes)
    if bad:
        return np.nan
    if not weight.size and not sample_weight.size:
        return np.float64(count)
    result = 0.0
    for i in range(target.size):
        if not ignores or target[i] != ignore:
            w = np.float64(weight[target[i]]) if weight.size else 1.0
            result += w * (np.float64(sample_weight[i]) if sample_weight.size else 1.0)
    return result


@njit(**PLAIN)
def softmax_tile(t, kind, z, out, values, classes, inner, rows):
    per_tile = max(1, TILE // classes)
    nothing = z[:0]
    target = np.empty(0, np.int64)
    soft_rows(
        kind, z, out, values, target, nothing, nothing, nothing, nothing, classes, inner, t * per_tile,
        min(rows, (t + 1) * per_tile), -1, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0,
    )  # fmt: skip


@cached
def softmax_serial(tiles, *arguments):
    for t in range(tiles):
        softmax_tile(t, *arguments)


@threaded
def softmax_parallel(tiles, *arguments):
    for t in prange(tiles):
        softmax_tile(t, *arguments)


@cached
def binary_serial(sums, z, grad, losses, y, weight, pos_weight, upstream, ignores, ignore, smoothing, scale):
    for t in range(sums.size):
        sums[t] = binary_tile(
            z, grad, losses, y, weight, pos_weight, upstream, t * TILE, min(z.size, (t + 1) * TILE), ignores, ignore,
            smoothing, scale,
        )  # fmt: skip


@threaded
def binary_parallel(sums, z, grad, losses, y, weight, pos_weight, upstream, ignores, ignore, smoothing, scale):
    for t in prange(sums.size):
        sums[t] = binary_tile(
            z, grad, losses, y, weight, pos_weight, upstream, t * TILE, min(z.size, (t + 1) * TILE), ignores, ignore,
            smoothing, scale,
        )  # fmt: skip


@cached
def map_serial(kind, z, out):
    map_tile(kind, z, out, 0, z.size)


@threaded
def map_parallel(kind, z, out):
    for t in prange((z.size + TILE - 1) // TILE):
        map_tile(kind, z, out, t * TILE, min(z.size, (t + 1) * TILE))
