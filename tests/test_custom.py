"""Custom losses: the gallery against numeric derivatives and the built-in losses, and the errors of bad formulas."""

import math

import numpy as np
import pytest
from checks import same_bits

import fastloss as fl
from fastloss import math as m

pytest.importorskip("sympy")
if "numba" not in fl.engines():
    pytest.skip("custom losses need Numba", allow_module_level=True)


@fl.elementwise
def huber(z, y, *, delta=1.0):
    distance = m.abs(z - y)
    return m.where(distance < delta, 0.5 * (z - y) ** 2, delta * (distance - 0.5 * delta))


@fl.elementwise
def log_cosh(z, y):
    distance = m.abs(z - y)
    return distance + m.log1p(m.exp(-2 * distance)) - math.log(2)


@fl.elementwise
def logistic(z, y):
    return m.softplus(z) - y * z


@fl.elementwise
def everything(z, y, *, a=0.7, b=2.0):
    value = m.exp(-z * z) + m.sqrt(1 + z**2) + m.tanh(z * a) + m.sigmoid(z - y) ** 3 + m.log(1 + m.exp(z))
    value = value + m.maximum(z, y) * m.minimum(z, b) + m.log1p(z * z) + (1 + z * z) ** a / (3 + z) ** 2
    return value - m.log_sigmoid(z) + m.where((z > y) & ~(z > 2) | (y <= -3), z, a * z) + abs(z) * m.log(z * z + b)


@fl.rowwise
def negative_log_likelihood(log_p):
    return -log_p


@fl.rowwise
def focal(log_p, not_p, *, gamma=2.0):
    return -(not_p**gamma) * log_p


@fl.rowwise
def poly_1(log_p, not_p, *, epsilon=1.0):
    return -log_p + epsilon * not_p


@fl.rowwise
def z_loss(z_target, lse, *, factor=0.1):
    return lse - z_target + factor * lse**2


@fl.rowwise
def generalised(p, *, q=0.7):
    return (1 - p**q) / q


ELEMENTWISE = [huber, log_cosh, logistic, everything]
ROWWISE = [negative_log_likelihood, focal, poly_1, z_loss, generalised]
IDS = {"ids": lambda loss: loss.__name__}


@pytest.mark.parametrize("engine", ["numba", "reference"])
@pytest.mark.parametrize("loss", ELEMENTWISE, **IDS)
def test_derivatives_of_elements(loss, engine):
    z = np.linspace(-2.9, 3.1, 400) + 0.00137
    y = np.random.default_rng(0).uniform(-4, 4, z.size)
    keywords = {"reduction": "none", "engine": engine}
    _, grad, hess = loss(z, y, return_hess=True, **keywords)
    step = 1e-6
    below, above = (loss(z + sign * step, y, return_grad=True, **keywords) for sign in (-1, 1))
    np.testing.assert_allclose((above[0] - below[0]) / (2 * step), grad, rtol=2e-6, atol=2e-8)
    np.testing.assert_allclose((above[1] - below[1]) / (2 * step), hess, rtol=2e-6, atol=2e-8)


@pytest.mark.parametrize("engine", ["numba", "reference"])
@pytest.mark.parametrize("classes", [1, 2, 5, 600])
@pytest.mark.parametrize("loss", ROWWISE, **IDS)
def test_gradients_of_rows(loss, classes, engine):
    rng = np.random.default_rng(1)
    logits, target = rng.normal(0, 2, (6, classes)), rng.integers(0, classes, 6)
    keywords = {"reduction": "none", "engine": engine}
    _, grad = loss(logits, target, return_grad=True, **keywords)
    for c in {0, classes // 2, *target.tolist()}:
        step = np.zeros(classes)
        step[c] = 1e-5
        numeric = (loss(logits + step, target, **keywords) - loss(logits - step, target, **keywords)) / 2e-5
        np.testing.assert_allclose(numeric, grad[:, c], rtol=1e-6, atol=2e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_numba_agrees_with_the_reference(dtype, reduction):
    rng = np.random.default_rng(2)
    z = rng.normal(0, 3, (70, 600)).astype(dtype)
    y = rng.choice([-1.0, 1.0], z.shape).astype(dtype)
    weight = rng.random(600)
    # The formulas subtract terms of up to 4, so a few roundings of those are what is left near 0.
    limit = {"rtol": {2: 2e-3, 4: 2e-6, 8: 1e-13}[z.itemsize], "atol": {2: 1e-4, 4: 1e-6, 8: 1e-14}[z.itemsize]}
    for loss in (huber, log_cosh, logistic):
        results = [
            loss(z, y, weight=weight, reduction=reduction, return_hess=True, grad_output=2.0, engine=engine)
            for engine in ("numba", "reference")
        ]
        for got, want in zip(*results, strict=True):
            np.testing.assert_allclose(np.asarray(got, np.float64), np.asarray(want, np.float64), **limit)


def test_logistic_is_the_built_in_loss():
    rng = np.random.default_rng(3)
    z = np.concatenate([rng.normal(0, 30, 5000), [-1e4, 1e4]]).astype(np.float32)
    y = rng.integers(0, 2, z.size)
    expected, expected_grad = fl.binary_cross_entropy_with_logits(z, y, return_grad=True, engine="reference")
    loss, grad = logistic(z, y, return_grad=True)
    assert loss == pytest.approx(expected, rel=1e-6)
    # As it is written, sigmoid(z) - y, its gradient cancels; the built-in one does not.
    np.testing.assert_allclose(grad, expected_grad, rtol=1e-6, atol=2**-24 / z.size * 1.5)


@pytest.mark.parametrize("shape", [(50, 4), (50, 700), (3, 4, 5, 6), (4,)])
def test_negative_log_likelihood_is_cross_entropy(shape):
    rng = np.random.default_rng(4)
    axis = min(1, len(shape) - 1)
    logits = rng.normal(0, 4, shape)
    logits.reshape(-1)[0] = 90  # confident: the digits of log_p and not_p must be there
    target = np.asarray(rng.integers(0, shape[axis], shape[:axis] + shape[axis + 1 :]))
    if target.ndim:
        target.reshape(-1)[1] = -100
    for reduction in ("mean", "sum", "none"):
        keywords = {
            "weight": rng.random(shape[axis]), "sample_weight": rng.random(target.shape), "reduction": reduction,
            "return_grad": True,
        }  # fmt: skip
        want = fl.cross_entropy(logits, target, engine="reference", **keywords)
        for engine in ("numba", "reference"):
            got = negative_log_likelihood(logits, target, engine=engine, **keywords)
            np.testing.assert_allclose(got[0], want[0], rtol=1e-12)
            np.testing.assert_allclose(got[1], want[1], rtol=1e-11, atol=1e-300)


def test_rows_without_a_softmax_and_targets_that_do_not_count():
    logits = np.array([[0.0, 1.0], [np.nan, 1.0], [np.inf, 0.0], [-np.inf, -np.inf], [np.nan, np.nan]])
    target = np.array([0, 1, 0, 0, -100])
    for engine in ("numba", "reference"):
        losses, grad = focal(logits, target, reduction="none", return_grad=True, engine=engine)
        assert np.isnan(losses).tolist() == [False, True, True, True, False]
        assert np.isnan(grad).all(axis=1).tolist() == [False, True, True, True, False]
        assert losses[4] == 0 and not grad[4].any()
        mean, grad = focal(logits[4:], target[4:], return_grad=True, engine=engine)
        assert np.isnan(mean) and not grad.any()
        with pytest.raises(IndexError, match=r"target\[1\] is 2, but logits have 2 classes"):
            focal(logits, [0, 2, 0, 0, 0], engine=engine)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 3.7])
def test_confident_rows_of_a_power(gamma):
    logits = np.array([[0.0, -20.0], [0.0, -800.0], [3000.0, 0.0], [0.0, -np.inf], [-20.0, 0.0]])
    for engine in ("numba", "reference"):
        losses, grad = focal(logits, np.zeros(5, int), gamma=gamma, reduction="none", return_grad=True, engine=engine)
        rest = np.exp(-20.0) / (1 + np.exp(-20.0))
        assert losses[0] == pytest.approx(rest**gamma * np.log1p(np.exp(-20.0)), rel=1e-12)
        assert np.isfinite(losses).all() and np.isfinite(grad).all()
        assert (np.abs(grad[1:4]) < 1e-100).all()
        if gamma == 0:
            assert grad[4] == pytest.approx([-1, 1], rel=1e-8)


@pytest.mark.parametrize("loss", [huber, focal], **IDS)
def test_same_bits_for_any_number_of_threads_in_place_and_alone(loss):
    rng = np.random.default_rng(5)
    z = rng.normal(0, 2, (3000, 40)).astype(np.float32)
    y = z[::-1] if loss is huber else rng.integers(0, 40, 3000)
    value, grad = loss(z, y, return_grad=True, num_threads=1)
    for threads in (1, 2, 5):
        again, other = loss(z, y, return_grad=True, num_threads=threads)
        assert again == value and same_bits(other, grad)
        assert loss(z, y, num_threads=threads) == value
    buffer = z.copy()
    again, other = loss(buffer, y, out_grad=buffer)
    assert again == value and other is buffer and same_bits(buffer, grad)


def test_parameters_and_outputs():
    z, y = np.array([0.5, 3.0]), np.zeros(2)
    assert huber(z, y, delta=2.0, reduction="sum") == 0.125 + 2 * (3 - 1)
    assert huber.defaults == {"delta": 1.0}
    out = np.empty(2)
    hess = np.empty(2, np.float32)
    result = huber(z, y, reduction="sum", out_grad=out, out_hess=hess)
    assert result[1] is out and result[2] is hess
    assert out.tolist() == [0.5, 1.0] and hess.tolist() == [1.0, 0.0]
    assert huber.__name__ == "huber" and "select" in repr(huber)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda z, y: z if z > 0 else y, "branches on its arguments.*where"),
        (lambda z, y: max(z, y), "branches on its arguments.*maximum"),
        (lambda z, y: np.exp(z), "use those of fastloss.math"),
        (lambda z, y: math.exp(z), "use those of fastloss.math"),
        (lambda z, y: z // 1, "uses floor, which fastloss can't differentiate"),
        (lambda z, y: z % y, "uses Mod, which fastloss can't differentiate"),
        (lambda z, y: None, "must return a formula"),
        (lambda z: z, "takes 1 plain arguments, expected 2"),
        (lambda z, y, delta=1.0: z, "'delta' must be plain, or keyword-only with a default"),
        (lambda z, y, *, delta: z, "'delta' needs a number as its default"),
        (lambda z, y, *, delta="x": z, "'delta' needs a number as its default, not 'x'"),
    ],
)
def test_bad_formulas(function, message):
    with pytest.raises(TypeError, match=message):
        fl.elementwise(function)


def test_bad_formulas_of_rows_and_bad_calls():
    with pytest.raises(TypeError, match="plain arguments are z: expected some of z_target, lse, log_p, p, not_p"):
        fl.rowwise(lambda z: z)
    with pytest.raises(TypeError, match="huber has no parameter 'detla': its own are delta"):
        huber([1.0], [1.0], detla=2.0)
    with pytest.raises(ValueError, match="delta must be finite, not nan"):
        huber([1.0], [1.0], delta=math.nan)
    with pytest.raises(ValueError, match="engine is 'cython', but custom losses have the engines numba and reference"):
        huber([1.0], [1.0], engine="cython")
    with pytest.raises(TypeError, match="focal takes class indices as targets, not probabilities"):
        focal([[1.0, 2.0]], [[0.5, 0.5]])
    with pytest.raises(ValueError, match="out_hess has shape"):
        huber([1.0], [1.0], out_hess=np.empty(2))
    z = np.ones(3)
    with pytest.raises(ValueError, match="out_hess overlaps logits"):
        huber(z, z.copy(), out_hess=z)


def test_debug_mode_compares_with_numeric_derivatives(monkeypatch):
    monkeypatch.setenv("FASTLOSS_DEBUG", "1")
    right = fl.elementwise(huber.__wrapped__)
    right([1.0], [0.5])
    fl.rowwise(focal.__wrapped__)([[1.0, 2.0]], [0])
    wrong = fl.elementwise(huber.__wrapped__)
    wrong._source = wrong._source.replace("return (", "return (as_real(0.001, z) * z + ")
    with pytest.raises(ArithmeticError, match="the gradient of huber is"):
        wrong([1.0], [0.5])
    wrong = fl.rowwise(focal.__wrapped__)
    wrong._source = wrong._source.replace("return (", "return (as_real(0.001, p) * p + ")
    with pytest.raises(ArithmeticError, match="the gradient of <?\\w+>? at class"):
        wrong([[1.0, 2.0]], [0])
