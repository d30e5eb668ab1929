"""The gradient is the derivative of the loss: central differences in float64, over every option."""

import itertools

import numpy as np
import pytest

import fastloss as fl

STEP = 1e-5


def derivative(loss, x):
    slope = np.empty(x.shape)
    for at in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[at] += STEP
        down[at] -= STEP
        slope[at] = (loss(up) - loss(down)) / (up[at] - down[at])
    return slope


@pytest.mark.parametrize("is_probabilities", [False, True], ids=["indices", "probabilities"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_cross_entropy(engine, axis, reduction, is_probabilities):
    rng = np.random.default_rng(axis)
    logits = rng.normal(0, 2, (3, 4, 2))
    rows = logits.shape[:axis] + logits.shape[axis + 1 :]
    target = rng.integers(0, logits.shape[axis], rows)
    if is_probabilities:
        target = rng.random(logits.shape)  # need not sum to 1
    for smoothing, z_loss, softcap in itertools.product([0.0, 0.3], [0.0, 0.1], [None, 2.0]):
        upstream = rng.normal(0, 1, rows) if reduction == "none" else 1.0
        keywords = {
            "weight": rng.random(logits.shape[axis]),
            "sample_weight": rng.random(rows),
            "label_smoothing": smoothing,
            "z_loss": z_loss,
            "softcap": softcap,
            "axis": axis,
            "reduction": reduction,
            "engine": engine,
        }
        if not is_probabilities:
            keywords["ignore_index"] = int(target.flat[0])
        _, grad = fl.cross_entropy(logits, target, return_grad=True, grad_output=upstream, **keywords)
        slope = derivative(lambda x, k=keywords, u=upstream: np.sum(u * fl.cross_entropy(x, target, **k)), logits)
        assert np.abs(grad - slope).max() <= 1e-8


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_binary(engine, reduction):
    rng = np.random.default_rng(0)
    logits, target = rng.normal(0, 2, (3, 4)), rng.random((3, 4))
    target[1] = -1
    for smoothing, ignore_index in itertools.product([0.0, 0.3], [None, -1]):
        upstream = rng.normal(0, 1, logits.shape) if reduction == "none" else 1.0
        keywords = {
            "weight": rng.random((3, 1)),
            "pos_weight": rng.random(4) * 3,
            "label_smoothing": smoothing,
            "ignore_index": ignore_index,
            "reduction": reduction,
            "engine": engine,
        }
        _, grad = fl.binary_cross_entropy_with_logits(
            logits, target, return_grad=True, grad_output=upstream, **keywords
        )
        slope = derivative(
            lambda x, k=keywords, u=upstream: np.sum(u * fl.binary_cross_entropy_with_logits(x, target, **k)), logits
        )
        assert np.abs(grad - slope).max() <= 1e-8


def test_entropy_falls_where_a_logit_grows(engine):
    """d logsumexp / d z is softmax, and d entropy / d z_c = -p_c (log p_c + entropy)."""
    z = np.random.default_rng(2).normal(0, 2, 6)
    p, entropy = fl.softmax(z, engine=engine), fl.entropy(z, engine=engine)
    slope = derivative(lambda x: fl.logsumexp(x, engine=engine), z)
    assert np.abs(slope - p).max() <= 1e-9
    slope = derivative(lambda x: fl.entropy(x, engine=engine), z)
    assert np.abs(slope + p * (np.log(p) + entropy)).max() <= 1e-9
