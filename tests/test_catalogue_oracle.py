"""Focal losses and cross-entropy of probabilities against 100 digits: hard inputs, each row to its own scale."""

import itertools
from functools import cache

import numpy as np
import oracle
import pytest
from checks import DTYPES, assert_grad, assert_loss, compute_dtype

import fastloss as fl

GAMMAS = [0.0, 0.5, 1.0, 2.0, 3.7]
LEADS = [0.0, 1e-3, 0.1, 1.0, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 60.0, 80.0]
every_real = pytest.mark.parametrize("dtype", [np.dtype(np.float32), np.dtype(np.float64)], ids=str)
every_gamma = pytest.mark.parametrize("gamma", GAMMAS)


def assert_digits(actual, expected, gamma, lead, note):
    """To the digits of the dtype, less what its exponent gamma * log(1 - p) costs."""
    kind = np.finfo(actual.dtype)
    limit = (25 + 4 * gamma * np.asarray(lead)) * kind.eps * np.abs(expected) + kind.tiny
    error = np.abs(actual.astype(np.float64) - expected)
    assert (error <= limit).all(), f"{actual} instead of {expected}, off by {error / np.abs(expected)}. {note}"


@cache
def focal(dtype, classes, gamma):
    """Rows whose first class leads by LEADS or trails by it, others tied or apart, and what is expected of them."""
    rows, target = [], []
    for lead, trails, tied in itertools.product(LEADS, (False, True), (False, True)):
        others = np.zeros(classes - 1) if tied else -np.arange(classes - 1) * 0.75
        rows.append(np.concatenate([[-lead if trails else lead], others]) + 0.3)
        target.append(0)
        if lead == 0.0 and not trails:
            rows.append(rows[-1])
            target.append(classes - 1)
    logits, target = np.array(rows).astype(dtype), np.array(target)
    return logits, target, *oracle.cross_entropy(logits, target, gamma=gamma, reduction="none")


@every_real
@every_gamma
@pytest.mark.parametrize("classes", [2, 3, 10, 17])
def test_focal_cross_entropy_of_sure_rows(engine, dtype, gamma, classes):
    logits, target, losses, grads = focal(dtype, classes, gamma)
    loss, grad = fl.focal_cross_entropy(logits, target, gamma=gamma, reduction="none", return_grad=True, engine=engine)
    # Of a sure row log(1 - p) is about minus its lead, and log(p) of one that trails.
    lead = np.abs(logits[:, 0].astype(np.float64) - 0.3)
    assert_digits(loss, losses, gamma, lead, "loss")
    assert_digits(np.abs(grad).max(axis=1), np.abs(grads).max(axis=1), gamma, lead, "largest of the gradient")
    scale = np.abs(grads).max(axis=1, keepdims=True)
    limit = (25 + 4 * gamma * lead[:, None]) * np.finfo(dtype).eps * scale + np.finfo(dtype).tiny
    assert (np.abs(grad - grads) <= limit).all()


OPTIONS = list(itertools.product(GAMMAS, [(0.0, None, False), (0.1, None, True), (0.0, 3.0, True)], ["mean", "none"]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("is_probabilities", [False, True], ids=["indices", "probabilities"])
@pytest.mark.parametrize("layout", [((4, 5), 1), ((4, 3), 0), ((2, 4, 3), 1)], ids=str)
def test_focal_cross_entropy_options(engine, dtype, is_probabilities, layout):
    for options in OPTIONS:
        (logits, target, keywords), expected_loss, expected_grad = focal_case(dtype, *layout, is_probabilities, options)
        loss, grad = fl.focal_cross_entropy(logits, target, return_grad=True, engine=engine, **keywords)
        assert_loss(loss, expected_loss, dtype, keywords)
        assert_grad(grad, expected_grad, keywords)


@cache
def focal_case(dtype, shape, axis, is_probabilities, options):
    gamma, (smoothing, softcap, weighs), reduction = options
    rng = np.random.default_rng(1)
    rows, classes, working = shape[:axis] + shape[axis + 1 :], shape[axis], compute_dtype(dtype)
    logits = rng.normal(0, 3, shape).astype(dtype)
    target = rng.integers(0, classes, rows)
    target.flat[1] = -100
    if is_probabilities:
        target = np.moveaxis(rng.dirichlet(np.ones(classes), rows), -1, axis).astype(working)
    keywords = {"gamma": gamma, "label_smoothing": smoothing, "softcap": softcap, "axis": axis}
    keywords |= {"reduction": reduction, "grad_output": -1.3}
    if weighs:
        keywords["weight"] = rng.uniform(0.2, 2, classes).astype(working)
        keywords["sample_weight"] = rng.uniform(0.2, 2, rows).astype(working)
    return (logits, target, keywords), *oracle.cross_entropy(logits, target, **keywords)


@every_real
@every_gamma
@pytest.mark.parametrize("alpha", [0.25, None])
def test_sigmoid_focal_loss(engine, dtype, gamma, alpha):
    z = np.array([sign * lead for lead in LEADS for sign in (1, -1)]).astype(dtype)
    for y in (0.0, 1.0, 0.25, 0.5):
        target = np.full(z.shape, y, dtype)
        losses, slopes = oracle.sigmoid_focal_loss(z, target, alpha=alpha, gamma=gamma)
        options = {"alpha": alpha, "gamma": gamma, "return_grad": True, "engine": engine}
        loss, grad = fl.sigmoid_focal_loss(z, target, reduction="none", **options)
        assert_digits(loss, losses, gamma, np.abs(z), f"loss, {y}")
        if y in (0.0, 1.0):
            assert_digits(grad, slopes, gamma, np.abs(z), f"gradient, {y}")
        else:  # p - y cancels near p = y
            assert np.abs(grad - slopes).max() <= 25 * np.finfo(dtype).eps * np.abs(slopes).max()
        assert_loss(fl.sigmoid_focal_loss(z, target, **options)[0], losses.mean(), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_binary_cross_entropy(engine, dtype):
    tiny = 2.0**-8 if dtype.itemsize == 2 else 2.0**-20
    probs = np.array([tiny, 3 * tiny, 0.25, 0.5, 0.75, 1 - tiny, 1 - 3 * tiny, 0.1, 0.9]).astype(dtype)
    for y in (0.0, 1.0, 0.25, 0.75):
        target = np.full(probs.shape, y)
        losses, slopes = oracle.binary_cross_entropy(probs, target)
        loss, grad = fl.binary_cross_entropy(probs, target, reduction="none", return_grad=True, engine=engine)
        working = compute_dtype(dtype)
        assert (np.abs(loss - losses) <= 25 * np.finfo(working).eps * losses).all()
        for at in range(len(probs)):  # each element to its own scale
            assert_grad(grad[at : at + 1], slopes[at : at + 1], (y, probs[at]))
