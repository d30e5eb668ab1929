"""Rows whose target leads by far keep their digits, and long sums keep theirs."""

import warnings

import numpy as np
import oracle
import pytest

import fastloss as fl


def test_float64(engine):
    loss, grad = fl.cross_entropy(np.array([100.0, 0.0]), 0, return_grad=True, engine=engine)
    assert loss == pytest.approx(3.720075976020836e-44, rel=1e-14)
    assert grad == pytest.approx([-3.720075976020836e-44, 3.720075976020836e-44], rel=1e-14)
    loss, grad = fl.cross_entropy(np.array([100.0, 0.0]), [1.0, 0.0], return_grad=True, engine=engine)
    assert loss == pytest.approx(3.720075976020836e-44, rel=1e-14)
    assert grad[0] == pytest.approx(-3.720075976020836e-44, rel=1e-14)
    assert fl.log_softmax([100.0, 0.0], engine=engine)[0] == pytest.approx(-3.720075976020836e-44, rel=1e-14)
    assert fl.binary_cross_entropy_with_logits([100.0], [1], engine=engine) == pytest.approx(
        3.720075976020836e-44, rel=1e-14
    )


@pytest.mark.parametrize("classes", [2, 3, 10, 16, 37, 200, 1000])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_relative_error(engine, dtype, classes):
    """At most (18 + 2 * margin) units of 2^-24, or of 2^-53 for float64, in the loss and each gradient entry."""
    unit = 2.0 ** (-24 if dtype == np.float32 else -53)
    rng = np.random.default_rng(classes)
    margins = np.array([0.5, 1, 3, 5, 10, 15, 20, 30, 40, 55, 70, 80])
    n = len(margins)
    target = rng.integers(0, classes, n)
    logits = -rng.random((n, classes))
    logits[np.arange(n), target] = margins
    logits = (logits + rng.normal(0, 5, (n, 1))).astype(dtype)
    axes = [(logits, 1), (np.ascontiguousarray(logits.T), 0)]
    for values, axis in axes:
        losses, grad = fl.cross_entropy(values, target, axis=axis, reduction="none", return_grad=True, engine=engine)
        expected_losses, expected_grad = oracle.cross_entropy(values, target, axis=axis, reduction="none")
        allowed = (18 + 2 * margins) * unit
        assert (np.abs(losses / expected_losses - 1) <= allowed).all()
        assert (np.abs(grad / expected_grad - 1) <= np.expand_dims(allowed, axis)).all()


@pytest.mark.parametrize("smoothing", [0.1, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("classes", [2, 3, 10, 37, 200])
def test_relative_error_of_smoothed_losses(engine, classes, smoothing):
    """Where most of a loss is the classes' mean, a large part of the target's must not be lost in between."""
    rng = np.random.default_rng(classes)
    for scale, shift in (1, 0), (5, 0), (12, 0), (3, -50), (0.5, 20):
        logits = rng.normal(shift, scale, (200, classes)).astype(np.float32)
        target = rng.integers(0, classes, 200)
        logits[:100][np.arange(100), target[:100]] -= 40 * (shift == 20)
        keywords = {"reduction": "none", "label_smoothing": smoothing}
        losses = fl.cross_entropy(logits, target, engine=engine, **keywords)
        expected = fl.cross_entropy(logits.astype(np.float64), target, engine="reference", **keywords)
        assert (np.abs(losses / expected - 1) <= 8 * 2.0**-24).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_binary_relative_error(engine, dtype):
    unit = 2.0 ** (-24 if dtype == np.float32 else -53)
    margins = np.concatenate([np.linspace(0.1, 80, 301), -np.linspace(0.1, 80, 301)]).astype(dtype)
    for target in (margins > 0, margins < 0):
        losses, grad = fl.binary_cross_entropy_with_logits(
            margins, target, reduction="none", return_grad=True, engine=engine
        )
        expected_losses, expected_grad = oracle.binary_cross_entropy_with_logits(margins, target, reduction="none")
        allowed = (18 + 2 * np.abs(margins)) * unit
        assert (np.abs(losses / expected_losses - 1) <= allowed).all()
        assert (np.abs(grad / expected_grad - 1) <= allowed).all()


@pytest.mark.parametrize("axis", [0, 1])
def test_log_softmax_relative_error(engine, axis):
    margins = np.array([1, 10, 30, 60, 80], np.float32)
    logits = np.zeros((5, 6), np.float32)
    logits[:, 2] = margins
    values = np.ascontiguousarray(logits if axis else logits.T)
    logs = np.moveaxis(fl.log_softmax(values, axis, engine=engine), axis, 1)
    expected = np.array([[float(value) for value in oracle.log_softmax(row)] for row in logits])
    assert (np.abs(logs / expected - 1) <= ((18 + 2 * margins) * 2.0**-24)[:, None]).all()


def test_torch_rounds_to_zero_what_fastloss_keeps(engine, peer):
    torch = peer("torch")
    for dtype in (torch.float32, torch.float64):
        margin = 30.0 if dtype == torch.float32 else 100.0
        logits = torch.tensor([[margin, 0.0]], dtype=dtype, requires_grad=True)
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor([0]))
        loss.backward()
        assert loss.item() == 0.0
        assert logits.grad[0, 0].item() == 0.0
        ours, grad = fl.cross_entropy(logits.detach(), [0], return_grad=True, engine=engine)
        assert ours == pytest.approx(np.exp(-margin), rel=1e-5)
        assert grad[0, 0] == pytest.approx(-np.exp(-margin), rel=1e-5)


def test_scikit_learn_rounds_to_zero_what_fastloss_keeps(engine, peer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer("sklearn")
        peer("sklearn._loss.loss")
        from sklearn._loss.loss import HalfMultinomialLoss
    logits = np.array([[100.0, 0.0, 0.0]])
    loss, grad = HalfMultinomialLoss(n_classes=3).loss_gradient(np.array([0.0]), logits)
    assert loss[0] == 0.0
    assert grad[0, 0] == 0.0
    ours, our_grad = fl.cross_entropy(logits, [0], return_grad=True, engine=engine)
    assert ours == pytest.approx(2 * np.exp(-100), rel=1e-13)
    assert our_grad[0, 0] == pytest.approx(-2 * np.exp(-100), rel=1e-13)


@pytest.mark.parametrize("shape", [(2, 262144), (2, 131072, 3), (1, 262144, 9)], ids=str)
def test_float32_sums_of_many_classes(engine, shape):
    logits = np.random.default_rng(0).normal(0, 1, shape).astype(np.float32)
    target = np.zeros(shape[:1] + shape[2:], int)
    exact = logits.astype(np.float64)
    lse = np.log(np.exp(exact).sum(1))
    assert np.abs(fl.logsumexp(logits, 1, engine=engine) / lse - 1).max() <= 2e-7
    loss = fl.cross_entropy(logits, target, engine=engine)
    assert loss == pytest.approx((lse - exact[:, 0]).mean(), rel=2e-7)


@pytest.mark.parametrize("value", [0.0, 0.3, 5.0])
def test_float32_sums_of_equal_elements(engine, value):
    """Equal losses, as before training, whose rounding errors do not average out."""
    logits = np.full(2_000_000, value, np.float32)
    exact = np.log1p(np.exp(-np.float64(logits[0])))
    assert fl.binary_cross_entropy_with_logits(logits, np.ones_like(logits), engine=engine) == pytest.approx(
        exact, rel=2e-7
    )


def test_float32_sums_of_many_elements(engine):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, 2_000_000).astype(np.float32)
    target = rng.random(2_000_000) < 0.3
    exact = logits.astype(np.float64)
    losses = np.maximum(exact, 0) - exact * target + np.log1p(np.exp(-np.abs(exact)))
    loss = fl.binary_cross_entropy_with_logits(logits, target, engine=engine)
    assert loss == pytest.approx(losses.mean(), rel=2e-7)
    rows = logits.reshape(-1, 2)
    loss = fl.cross_entropy(rows, target[::2].astype(np.int8), engine=engine)
    gap = np.where(target[::2], exact[::2] - exact[1::2], exact[1::2] - exact[::2])
    assert loss == pytest.approx((np.maximum(gap, 0) + np.log1p(np.exp(-np.abs(gap)))).mean(), rel=2e-7)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_slope_of_a_saturated_softcap(engine, dtype, axis):
    """1 - tanh^2 keeps its digits where tanh rounds to 1."""
    logits = np.array([[20.0, -12.0, 3.0], [-9.0, 1.0, 16.0], [24.0, 23.0, -22.0]], dtype)
    keywords = {"softcap": 2.0, "reduction": "sum", "axis": axis}
    _, grad = fl.cross_entropy(logits, [0, 1, 2], return_grad=True, engine=engine, **keywords)
    _, expected = oracle.cross_entropy(logits, [0, 1, 2], **keywords)
    assert np.abs(expected).min() < 1e-9
    assert np.abs(grad / expected - 1).max() <= (1e-5 if dtype == np.float32 else 1e-13)


@pytest.mark.parametrize("margin", [85, 88, 95, 100, 103])
@pytest.mark.parametrize("classes", [2, 17, 300])
def test_float32_below_the_normal_numbers(engine, margin, classes):
    """A loss and a gradient that no normal number holds are the nearest subnormal ones, not 0."""
    logits = np.full((3, classes), -300.0, np.float32)
    logits[:, 0], logits[:, -1] = margin, 0.0
    loss, grad = fl.cross_entropy(logits, np.zeros(3, int), reduction="none", return_grad=True, engine=engine)
    exact = np.exp(-float(margin))
    limit = (18 + 2 * margin) * 2**-24 * exact + 2 * 2.0**-149
    assert loss[0] > 0
    assert np.abs(loss - exact).max() <= limit
    assert np.abs(grad[:, 0] + exact).max() <= limit
    assert np.abs(grad[:, -1] - exact).max() <= limit
    assert (grad[:, 1:-1] == 0).all()


@pytest.mark.parametrize("classes", [3, 10, 40])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_relative_error_of_logits_of_any_size(engine, dtype, classes):
    """Around the sizes up to which, and the distances of the target up to which, no reference is needed."""
    unit = 2.0 ** (-24 if dtype == np.float32 else -53)
    ends = [-66.7, 22.0] if dtype == np.float32 else [-532.5, 177.0]
    rng = np.random.default_rng(classes)
    around = np.concatenate([end + np.linspace(-1.5, 1.5, 13) for end in [*ends, -22.2, 0]])
    offsets = np.concatenate([around, around, around])
    margins = np.repeat([-40, 2, 40], len(around))
    n = len(offsets)
    target = rng.integers(0, classes, n)
    logits = -rng.random((n, classes))
    logits[np.arange(n), target] += margins
    logits = (logits + offsets[:, None]).astype(dtype)
    losses, grad = fl.cross_entropy(logits, target, reduction="none", return_grad=True, engine=engine)
    expected_losses, expected_grad = oracle.cross_entropy(logits, target, reduction="none")
    allowed = (18 + 2 * np.abs(margins)) * unit
    assert (np.abs(losses / expected_losses - 1) <= allowed).all()
    assert (np.abs(grad / expected_grad - 1) <= allowed[:, None]).all()
