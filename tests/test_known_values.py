"""Values from textbooks, papers and tutorials, and examples whose values were computed in 100 digits."""

import math

import numpy as np
import pytest
from checks import BFLOAT16

import fastloss as fl

LOGITS = np.array(
    [
        [0.52, 1.23, 0.5, -1.95, 1.36, 0.67, -0.81, 0.87, 0.55, 0.44],
        [0.04, 0.82, -1.1, -0.24, -0.72, 0.9, 0.06, -0.44, -1.17, -0.39],
        [0.01, -0.41, 1.94, 1.51, -4.07, -2.83, -0.26, -0.63, 0.32, 0.33],
        [3.18, -1.67, -0.57, 3.06, 0.97, 0.99, -0.77, -2.47, 0.25, 0.16],
    ]
)
CLASSES = [3, 0, 9, 5]
LABELS = np.array(
    [
        [0, 0, 1, 0, 0, 0, 0, 1, 0, 0],
        [0, 1, 0, 1, 1, 0, 0, 0, 0, 1],
        [1, 0, 0, 0, 1, 1, 0, 0, 0, 1],
        [0, 0, 0, 0, 1, 0, 0, 0, 0, 0],
    ]
)


@pytest.mark.parametrize("target", [2, [0.0, 0.0, 1.0]])
def test_one_row(engine, target):
    assert fl.cross_entropy([3.05, 3.13, 3.48], target, engine=engine) == pytest.approx(0.8566, abs=5e-5)


def test_two_rows(engine):
    logits = [[2, 0.1, 0.4], [1, 8, -1]]
    assert fl.cross_entropy(np.array(logits), [1, 2], engine=engine) == pytest.approx(5.601112, abs=5e-7)
    assert fl.cross_entropy(np.array(logits, np.float32), [1, 2], engine=engine) == pytest.approx(5.601112, abs=2e-6)


def test_one_row_of_three(engine):
    assert fl.cross_entropy([[-0.8956, 1.1171, 1.3302]], [1], engine=engine) == pytest.approx(0.8634, abs=5e-5)


def test_distributions(engine):
    target = np.array([[0.4, 0.1, 0.25, 0.25]])
    logits = np.log([[0.3, 0.15, 0.25, 0.3]])
    assert fl.cross_entropy(logits, target, engine=engine) == pytest.approx(1.3189, abs=5e-5)
    assert fl.entropy(np.log(target), engine=engine)[0] == pytest.approx(
        -sum(p * math.log(p) for p in target[0]), rel=1e-14
    )
    assert fl.cross_entropy(np.log(target), target, engine=engine) == pytest.approx(1.2899, abs=6e-5)


def test_binary(engine):
    loss = fl.binary_cross_entropy_with_logits([1.8, 0.75], [1, 0], engine=engine)
    assert loss == pytest.approx(0.6449, abs=5e-5)
    assert fl.sigmoid([1.8, 0.75], engine=engine) == pytest.approx([0.8581, 0.6792], abs=5e-5)


def test_multi_class(engine):
    losses = [4.887171175008664, 2.269606555430992, 2.521111720198434, 3.007510488575107]
    assert fl.cross_entropy(LOGITS, CLASSES, engine=engine) == pytest.approx(3.171349984803299, rel=1e-14)
    assert fl.cross_entropy(LOGITS, CLASSES, reduction="none", engine=engine) == pytest.approx(losses, rel=1e-14)
    smooth = fl.cross_entropy(LOGITS, CLASSES, label_smoothing=0.1, engine=engine)
    assert smooth == pytest.approx(3.156149984803299, rel=1e-14)


def test_multi_label(engine):
    loss = fl.binary_cross_entropy_with_logits(LOGITS, LABELS, engine=engine)
    assert loss == pytest.approx(1.008855722210516, rel=1e-14)
    probabilities = LABELS / LABELS.sum(axis=1, keepdims=True)
    assert fl.cross_entropy(LOGITS, probabilities, engine=engine) == pytest.approx(3.053224984803299, rel=1e-14)


def test_gradient_of_even_logits(engine):
    loss, grad = fl.cross_entropy(np.zeros((2, 4)), [0, 3], return_grad=True, engine=engine)
    assert loss == pytest.approx(math.log(4), rel=4e-15)
    expected = np.array([[-0.375, 0.125, 0.125, 0.125], [0.125, 0.125, 0.125, -0.375]])
    assert grad == pytest.approx(expected, rel=4e-15)
    loss, grad = fl.binary_cross_entropy_with_logits(np.zeros(2), [0, 1], return_grad=True, engine=engine)
    assert loss == pytest.approx(math.log(2), rel=4e-15)
    assert grad == pytest.approx([0.25, -0.25], rel=4e-15)


def test_primitives(engine):
    x = np.array([[0.0, math.log(3.0)], [2.0, 2.0]])
    assert fl.softmax(x, engine=engine) == pytest.approx(np.array([[0.25, 0.75], [0.5, 0.5]]), rel=4e-15)
    assert fl.softmax(x, axis=0, engine=engine)[:, 0] == pytest.approx(
        [1 / (1 + math.exp(2)), 1 / (1 + math.exp(-2))], rel=1e-14
    )
    assert fl.log_softmax(x, engine=engine) == pytest.approx(np.log([[0.25, 0.75], [0.5, 0.5]]), rel=1e-14)
    assert fl.logsumexp(x, engine=engine) == pytest.approx([math.log(4), 2 + math.log(2)], rel=4e-15)
    assert fl.entropy(x, engine=engine)[1] == pytest.approx(math.log(2), rel=4e-15)
    assert fl.sigmoid([-50.0, 0.0], engine=engine) == pytest.approx([1.928749847963918e-22, 0.5], rel=1e-14)
    assert fl.log_sigmoid([50.0, -2.0], engine=engine) == pytest.approx(
        [-1.928749847963918e-22, -2.1269280110429727], rel=1e-14
    )
    assert fl.softplus([-50.0, 2.0], engine=engine) == pytest.approx(
        [1.928749847963918e-22, 2.1269280110429727], rel=1e-14
    )


def test_probabilities(engine):
    for probs, target, loss in (
        ([0.75], [1], 0.2877),
        ([0.277, 0.299, 0.424], [0, 0, 1], 0.5125),
        ([0.858, 0.679], [1, 0], 0.6447),
    ):
        assert fl.binary_cross_entropy(probs, target, engine=engine) == pytest.approx(loss, abs=5e-5)
    assert fl.nll_loss([[-0.6, -0.5, -0.3]], [1], engine=engine) == 0.5
    # Divergences are in nats: 0.4 log(0.4 / 0.3) + ...
    p, q = np.array([[0.4, 0.1, 0.25, 0.25]]), np.array([[0.3, 0.15, 0.25, 0.3]])
    divergence = fl.cross_entropy(np.log(q), p, engine=engine) - fl.entropy(np.log(p), engine=engine)[0]
    assert fl.kl_div(np.log(q), p, reduction="batchmean", engine=engine) == pytest.approx(divergence, rel=1e-12)


def test_focal(engine):
    """A probability of 0.9 counts a hundredth of its cross-entropy with gamma = 2: Lin et al. 2017, section 3.1."""
    logits = np.array([[math.log(9.0), 0.0]])
    for gamma in (0, 1, 2, 5):
        expected = pytest.approx(-(0.1**gamma) * math.log(0.9), rel=1e-12)
        assert fl.focal_cross_entropy(logits, [0], gamma=gamma, engine=engine) == expected
        assert fl.sigmoid_focal_loss(logits[:, 0], [1], alpha=None, gamma=gamma, engine=engine) == expected


def test_margins(engine):
    assert fl.hinge_loss([0.5, 2.0, -0.25], [1, 1, -1], engine=engine) == pytest.approx(1.25 / 3, rel=1e-15)
    # The examples in torch's documentation of MultiMarginLoss and MultiLabelMarginLoss.
    scores = [[0.1, 0.2, 0.4, 0.8]]
    assert fl.multi_margin_loss(scores, [3], engine=engine) == pytest.approx(0.325, rel=1e-14)
    assert fl.multilabel_margin_loss(scores, [[3, 0, -1, 1]], engine=engine) == pytest.approx(0.85, rel=1e-14)


def test_overlap(engine):
    """Half of a mask of two found, and nothing else: Dice 2 / 3, Jaccard 1 / 2."""
    probs, mask = np.array([1.0, 0.0, 0.0, 0.0]), [1, 1, 0, 0]
    options = {"mode": "binary", "from_logits": False, "engine": engine}
    assert fl.dice_loss(probs, mask, **options) == pytest.approx(1 / 3, rel=1e-14)
    assert fl.jaccard_loss(probs, mask, **options) == pytest.approx(1 / 2, rel=1e-14)
    assert fl.tversky_loss(probs, mask, alpha=0.3, beta=0.7, **options) == pytest.approx(1 - 1 / 1.7, rel=1e-14)


@pytest.mark.parametrize("dtype", [np.dtype(np.float16), BFLOAT16], ids=str)
def test_half_gradients_are_rounded_to_the_nearest(engine, dtype):
    """To even where two are equally near; NaN stays NaN, whatever its bits. nll_loss's gradient of a target is minus
    what comes down, rounded, and sigmoid writes whole vectors."""
    rng = np.random.default_rng(23)
    halves = np.arange(1, 2**15, dtype=np.uint32)[rng.permutation(2**15 - 1)[:6000]].astype(np.uint16).view(dtype)
    values = halves[np.isfinite(halves.astype(np.float32)) & (halves.astype(np.float32) < 6e4)].astype(np.float32)
    above = np.nextafter(values.astype(dtype), dtype.type(np.inf)).astype(np.float32)
    middle = (values + above) / 2  # exact: between neighbours is one more bit
    weights = np.concatenate([values, middle, np.nextafter(middle, np.float32(0)), np.nextafter(middle, above)])
    logits = np.zeros((len(weights), 2), dtype)
    target = np.zeros(len(weights), np.int64)
    _, grad = fl.nll_loss(logits, target, reduction="none", grad_output=weights, return_grad=True, engine=engine)
    assert np.array_equal(grad[:, 0].view(np.uint16), (-weights).astype(dtype).view(np.uint16))

    signalling = [0x7F800001, 0xFF800001, 0x7F80FFFF, 0xFF80FFFF]
    lost = np.array([0x7FFFFFFF, 0xFFFFFFFF, 0x7FC00000, 0xFFC00000, *signalling], np.uint32).view(np.float32)
    _, grad = fl.nll_loss(logits[:8], target[:8], reduction="none", grad_output=lost, return_grad=True, engine=engine)
    assert np.isnan(grad[:, 0].astype(np.float32)).all()
    for classes in (10, 40, 1000):
        logits = np.zeros((8, classes), dtype)
        _, grad = fl.cross_entropy(
            logits, target[:8], reduction="none", grad_output=lost, return_grad=True, engine=engine
        )
        assert np.isnan(grad.astype(np.float32)).all()

    few = weights[weights > 1e-20][:: len(weights) // 300]
    for classes in (32, 1024):  # of equal logits, each class gets exactly what comes down over their number
        logits, target = np.zeros((len(few), classes), dtype), np.zeros(len(few), np.int64)
        _, grad = fl.cross_entropy(logits, target, reduction="none", grad_output=few, return_grad=True, engine=engine)
        expected = np.broadcast_to((few / np.float32(classes)).astype(dtype)[:, None], logits[:, 1:].shape)
        assert np.array_equal(grad[:, 1:].view(np.uint16), expected.view(np.uint16))

    every = np.arange(2**16, dtype=np.uint32).astype(np.uint16).view(dtype)
    nan = np.isnan(every.astype(np.float32))
    assert np.isnan(fl.sigmoid(every[nan], engine=engine).astype(np.float32)).all()
    wide = every[~nan].astype(np.float64 if engine == "reference" else np.float32)  # what it computes in
    found, exact = fl.sigmoid(every[~nan], engine=engine), fl.sigmoid(wide, engine=engine).astype(dtype)
    assert np.array_equal(found.view(np.uint16), exact.view(np.uint16))
