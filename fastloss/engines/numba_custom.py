"""Numba kernels around the generated code of custom losses: see fastloss/custom.py. Compiled at the first call, in
every process: generated functions have no file whose age could tell whether what lies on disk is still true."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
from numba import njit, prange

from fastloss.engines import numba_kernels as kernels
from fastloss.engines import numba_math
from fastloss.engines.numba_kernels import BLOCK, PLAIN, TILE, copy_into
from fastloss.engines.numba_math import INLINE, SCALE_DOWN, as_real, wide_vectors, zero_times
from fastloss.engines.numba_vectors import total_in_double

FUNCTIONS = {
    "as_real": numba_math.as_real,
    "exp": numba_math.exp_any,
    "log": numba_math.log,
    "log1p": numba_math.log1p_any,
    **{
        name: getattr(numba_math, name)
        for name in (
            "sqrt", "tanh", "tanh_slope", "sigmoid", "log_sigmoid", "softplus", "absolute", "sign", "power",
            "power_slope", "select_less", "select_less_equal",
        )
    },
}  # fmt: skip

# The least not_p, so that a negative power of it times log_p is a number.
SMALLEST = 2.0**-1022

OPTIONS = {"error_model": "numpy", "nogil": True}


def _compiled(source: str) -> Any:
    namespace = dict(FUNCTIONS)
    exec(source, namespace)
    return njit(**INLINE)(namespace["element"])


def elementwise(source: str) -> Any:
    """The serial and the parallel kernel of element(z, y, parameters) -> (loss, first, second derivative)."""
    element = _compiled(source)

    @njit(**PLAIN)
    def losses_block(z, y, parameters, out):
        wide_vectors()
        for i in range(z.size):
            out[i] = element(z[i], y[i], parameters)[0]

    @njit(**PLAIN)
    def losses_and_slopes_block(z, y, parameters, scale, losses, slopes):
        wide_vectors()
        factor = as_real(scale, z[0])
        for i in range(z.size):
            loss, slope, _ = element(z[i], y[i], parameters)
            losses[i] = loss
            slopes[i] = slope * factor

    @njit(**PLAIN)
    def curves_block(z, y, parameters, scale, out):
        wide_vectors()
        factor = as_real(scale, z[0])
        for i in range(z.size):
            out[i] = element(z[i], y[i], parameters)[2] * factor

    @njit(**PLAIN)
    def weigh(values, weight, upstream):
        if weight.size:
            for i in range(values.size):
                values[i] *= weight[i]
        if upstream.size:
            for i in range(values.size):
                values[i] *= upstream[i]

    @njit(**PLAIN)
    def tile(z, y, grad, hess, losses, weight, upstream, parameters, scale, first, end):
        in_place = grad.ctypes.data == z.ctypes.data
        loss, slope = np.empty(BLOCK, z.dtype), np.empty(BLOCK, z.dtype)
        result = 0.0
        for start in range(first, end, BLOCK):
            n = min(BLOCK, end - start)
            at = slice(start, start + n)
            if hess.size:
                curves_block(z[at], y[at], parameters, scale, hess[at])
                weigh(hess[at], weight[at], upstream[at])
            if not grad.size:
                losses_block(z[at], y[at], parameters, loss)
            else:  # the last: it may replace the logits
                out = slope[:n] if in_place else grad[at]
                losses_and_slopes_block(z[at], y[at], parameters, scale, loss, out)
                weigh(out, weight[at], upstream[at])
                if in_place:
                    copy_into(out, grad[at])
            if weight.size:
                for i in range(n):
                    loss[i] = weight[start + i] * zero_times(weight[start + i], loss[i])
            result += total_in_double(loss[:n])
            if losses.size:
                copy_into(loss[:n], losses[at])
        return result

    @njit(**OPTIONS)
    def serial(sums, z, y, grad, hess, losses, weight, upstream, parameters, scale):
        for t in range(sums.size):
            end = min(z.size, (t + 1) * TILE)
            sums[t] = tile(z, y, grad, hess, losses, weight, upstream, parameters, scale, t * TILE, end)

    @njit(parallel=True, **OPTIONS)
    def parallel(sums, z, y, grad, hess, losses, weight, upstream, parameters, scale):
        for t in prange(sums.size):
            end = min(z.size, (t + 1) * TILE)
            sums[t] = tile(z, y, grad, hess, losses, weight, upstream, parameters, scale, t * TILE, end)

    return SimpleNamespace(serial=serial, parallel=parallel)


def rowwise(source: str) -> Any:
    """The kernels of element(z_target, lse, log_p, p, not_p, parameters) -> (loss, others, target): the gradient is
    others * p_c at other classes, and `target` at the target's."""
    element = _compiled(source)

    @njit(**PLAIN)
    def rows_tile(z, grad, losses, target, weight, sample_weight, upstream, parameters, first, end, ignore, scale):
        in_place = grad.ctypes.data == z.ctypes.data
        scratch = np.empty(z.shape[1] if in_place or grad.size == 0 else 0, z.dtype)
        result = 0.0
        for row in range(first, end):
            y = target[row]
            if y == ignore:
                kernels.ignore_row(row, grad, losses)
                continue
            e = scratch if scratch.size else grad[row]
            reference, rest, _ = kernels.row_sums(z[row], e, y, False)
            distance = np.float64(z[row, y]) - reference
            e_y = math.exp(distance)
            nll, log_sum = kernels.nll_of(rest, distance, e_y)
            every = rest + e_y
            not_p = rest / every
            not_p = SMALLEST if not_p < SMALLEST else not_p
            loss, others, at_target = element(
                np.float64(z[row, y]), reference + log_sum, -nll, e_y / every, not_p, parameters
            )
            w = np.float64(weight[y]) if weight.size else 1.0
            w *= np.float64(sample_weight[row]) if sample_weight.size else 1.0
            g = scale * w * (np.float64(upstream[row]) if upstream.size else 1.0)
            rounded = as_real(w * zero_times(w, loss), z[0, 0])
            result += np.float64(rounded)
            if losses.size:
                losses[row] = rounded
            if grad.size:
                factor = g * others / every * np.float64(SCALE_DOWN(z[0, 0]))
                kernels.row_gradient(e, factor, 0.0, y, g * at_target, grad[row])
        return result

    @njit(**PLAIN)
    def tile(t, z, grad, losses, target, weight, sample_weight, upstream, parameters, classes, ignore, scale):
        rows = target.size
        per_tile = max(1, TILE // classes)
        return rows_tile(
            z.reshape((rows, classes)), grad.reshape((rows if grad.size else 0, classes)), losses, target, weight,
            sample_weight, upstream, parameters, t * per_tile, min(rows, (t + 1) * per_tile), ignore, scale,
        )  # fmt: skip

    @njit(**OPTIONS)
    def serial(sums, z, grad, losses, target, weight, sample_weight, upstream, parameters, classes, ignore, scale):
        for t in range(sums.size):
            sums[t] = tile(
                t, z, grad, losses, target, weight, sample_weight, upstream, parameters, classes, ignore, scale
            )

    @njit(parallel=True, **OPTIONS)
    def parallel(sums, z, grad, losses, target, weight, sample_weight, upstream, parameters, classes, ignore, scale):
        for t in prange(sums.size):
            sums[t] = tile(
                t, z, grad, losses, target, weight, sample_weight, upstream, parameters, classes, ignore, scale
            )

    return SimpleNamespace(serial=serial, parallel=parallel)
