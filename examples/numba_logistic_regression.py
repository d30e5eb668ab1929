"""Logistic regression whose whole training is one compiled, parallel function: fastloss inside @njit.

python examples/numba_logistic_regression.py
"""

import numba
import numpy as np

import fastloss.numba as fn


@numba.njit(parallel=True, cache=True)
def train(x, y, w, b, steps, rate):
    """Gradient descent on the mean cross-entropy of x @ w + b; returns the loss of each step."""
    n = len(y)
    losses, row_losses = np.empty(steps), np.empty(n)
    logits = np.empty((n, w.shape[1]))
    for step in range(steps):
        for i in numba.prange(n):
            for c in range(w.shape[1]):
                z = b[c]
                for k in range(x.shape[1]):
                    z += x[i, k] * w[k, c]
                logits[i, c] = z
            row_losses[i] = fn.cross_entropy_row_grad(logits[i], y[i], logits[i], 1.0 / n)  # in place
        losses[step] = row_losses.mean()
        for c in numba.prange(w.shape[1]):
            for i in range(n):
                b[c] -= rate * logits[i, c]
                for k in range(x.shape[1]):
                    w[k, c] -= rate * x[i, k] * logits[i, c]
    return losses


rng = np.random.default_rng(0)
y = rng.integers(0, 3, 3000)
x = rng.standard_normal((3000, 5)) + 2 * np.eye(5)[y]
w, b = np.zeros((5, 3)), np.zeros(3)
losses = train(x, y, w, b, 200, 1.0)
accuracy = ((x @ w + b).argmax(axis=1) == y).mean()
print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}, accuracy {accuracy:.3f}")
