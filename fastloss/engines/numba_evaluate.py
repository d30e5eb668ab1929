"""Numba kernel of fl.evaluate: ranks, entropies and logsumexps of rows, in one pass."""

from __future__ import annotations

import math

import numpy as np
from numba import njit, prange

from fastloss.engines.numba_kernels import PLAIN, TILE, cached, threaded, total_by_blocks
from fastloss.engines.numba_math import SCALE_DOWN, as_real, exp_scaled, wide_vectors
from fastloss.engines.numba_vectors import largest, total_in_double

# Behind every k of a top-k accuracy.
NEVER = 1 << 62


@njit(**PLAIN)
def exponentials_below(x, m, e, moment):
    """e = scaled exponentials of x - m, but 0 where x is m; moment = e (m - x). Returns how many x are m."""
    wide_vectors()
    zero = as_real(0.0, m)
    ties = 0
    for c in range(x.size):
        e[c] = zero if x[c] == m else exp_scaled(x[c] - m)
    for c in range(x.size):
        moment[c] = e[c] * (m - x[c]) if e[c] != 0 else zero
        ties += x[c] == m
    return ties


@njit(**PLAIN)
def statistics(x, e, moment):
    """logsumexp and entropy of one row; e and moment are scratch."""
    m = largest(x)
    if math.isinf(m):
        m = as_real(np.nan, m)
    ties = exponentials_below(x, m, e, moment)
    distance = total_in_double(moment)
    down = np.float64(SCALE_DOWN(m))
    rest = total_by_blocks(e) * down + (ties - 1)
    log_sum = math.log1p(rest)
    return np.float64(m) + log_sum, log_sum + distance * down / (1.0 + rest)


@njit(**PLAIN)
def rank_of(x, y):
    """How many classes rank in front of y: larger ones, and equal ones before it."""
    z_y = x[y]
    in_front = 0
    for c in range(x.size):
        in_front += x[c] > z_y
    for c in range(y):
        in_front += x[c] == z_y
    return in_front


@njit(**PLAIN)
def tile(t, correct, entropies, counts, z, target, lse, ks, classes, inner, ignore):
    per_tile = max(1, TILE // classes)
    x, e, moment = np.empty(classes, z.dtype), np.empty(classes, z.dtype), np.empty(classes, z.dtype)
    for row in range(t * per_tile, min(target.size, (t + 1) * per_tile)):
        y = target[row]
        if y == ignore:
            continue
        base = row // inner * classes * inner + row % inner
        for c in range(classes):
            x[c] = z[base + c * inner]
        of_row, entropy = statistics(x, e, moment)
        if lse.size:
            lse[row] = of_row
        counts[t] += 1
        entropies[t] += np.float64(as_real(entropy, z[0]))
        rank = rank_of(x, y)
        if of_row != of_row or x[y] == -np.inf:  # no softmax, or a target of probability 0: a miss
            rank = NEVER
        for k in range(ks.size):
            correct[t, k] += rank < ks[k]


@cached
def evaluate_serial(*arguments):
    for t in range(arguments[0].shape[0]):
        tile(t, *arguments)


@threaded
def evaluate_parallel(*arguments):
    for t in prange(arguments[0].shape[0]):
        tile(t, *arguments)
