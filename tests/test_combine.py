"""A combined loss is the weighted sum of its parts, whether they share their passes or not."""

import re

import numpy as np
import pytest
from checks import BFLOAT16, DTYPES, assert_grad, assert_loss

import fastloss as fl

W = np.array([0.2, 1.0, 2.0, 0.5], np.float32)
CE, FOCAL = fl.cross_entropy, fl.focal_cross_entropy
SHARED = {
    "ce, dice": [(0.5, CE), (0.5, fl.dice_loss)],
    "dice, ce with options": [(2.0, fl.dice_loss, {"smooth": 1.0, "log_loss": True, "weight": W}), (0.3, CE)],
    "focal, tversky": [
        (0.7, FOCAL, {"gamma": 1.5}),
        (1.3, fl.tversky_loss, {"alpha": 0.3, "beta": 0.7, "gamma": 0.75}),
    ],
    "ce, focal": [(0.5, CE), (2.0, FOCAL, {"gamma": 0.5})],
    "ce, focal with options": [
        (0.5, CE, {"weight": W, "label_smoothing": 0.1, "softcap": 4.0}),
        (1.5, FOCAL, {"weight": W, "label_smoothing": 0.1, "softcap": 4.0}),
    ],
    "ce, focal, jaccard": [
        (0.5, CE, {"weight": W}),
        (2.0, FOCAL, {"weight": W}),
        (0.7, fl.jaccard_loss, {"weight": W, "ignore_index": -100, "per_sample": True, "squared": True}),
    ],
    "ce, ce, dice": [(0.5, CE), (0.25, CE), (-0.7, fl.dice_loss, {"absent": "count"})],
}  # fmt: skip
APART = {
    "ce, dice of another ignore_index": [(0.5, CE, {"ignore_index": 1}), (1.0, fl.dice_loss)],
    "ce smoothed, dice": [(0.7, CE, {"label_smoothing": 0.1}), (0.3, fl.dice_loss, {"ignore_index": -100})],
    "ce, focal of other options": [(0.7, CE, {"weight": W}), (0.3, FOCAL)],
    "ce less focal": [(0.7, CE), (-0.3, FOCAL)],
    "focal, focal": [(0.7, FOCAL, {"gamma": 1.0}), (0.3, FOCAL, {"gamma": 2.0})],
    "ce with z_loss, focal": [(0.7, CE, {"z_loss": 1e-2}), (0.3, FOCAL)],
    "ce, dice, jaccard": [(0.7, CE), (0.3, fl.dice_loss), (0.2, fl.jaccard_loss)],
    "dice, lovasz": [(0.7, fl.dice_loss), (0.3, fl.lovasz_loss, {})],
    "one": [(3.0, CE, {"weight": W})],
    "nothing": [(0.0, CE), (0.0, FOCAL)],
    "nested": [(0.5, fl.combine([(0.5, CE), (2.0, fl.dice_loss)])), (0.25, FOCAL)],
    "a part's own reduction": [(0.5, CE, {"reduction": "sum"}), (0.5, fl.dice_loss)],
}
every_combination = pytest.mark.parametrize("parts", [*SHARED.values(), *APART.values()], ids=[*SHARED, *APART])
every_reduced = pytest.mark.parametrize("reduction", ["mean", "sum"])


def batch(dtype=np.float64, shape=(2, 4, 5, 3), seed=0, ignored=None):
    rng = np.random.default_rng(seed)
    logits, target = rng.normal(0, 2, shape).astype(dtype), rng.integers(0, 4, shape[:1] + shape[2:])
    if ignored is not None:
        target.flat[::5] = ignored
    return logits, target


def weighted_sum(parts, logits, target, grad_output=1.0, **keywords):
    total, slope = 0.0, 0.0
    for weight, loss, *options in parts:
        more = {**keywords, **(options[0] if options else {})}
        value, grad = loss(logits, target, return_grad=True, grad_output=grad_output, **more)
        total, slope = total + weight * value, slope + weight * grad
    return total, slope


@every_combination
@every_reduced
def test_the_weighted_sum(engine, parts, reduction):
    logits, target = batch()
    keywords = {"reduction": reduction, "engine": engine}
    for upstream in (None, -2.5):
        expected, slope = weighted_sum(parts, logits, target, upstream, **keywords)
        loss, grad = fl.combine(parts)(logits, target, return_grad=True, grad_output=upstream, **keywords)
        assert type(loss) is float
        assert loss == pytest.approx(expected, rel=1e-13, abs=1e-15)
        assert grad.dtype == logits.dtype
        assert np.abs(grad - slope).max() <= 1e-13 * np.abs(slope).max()
    assert fl.combine(parts)(logits, target, **keywords) == pytest.approx(expected, rel=1e-13, abs=1e-15)


@every_combination
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(engine, parts, dtype):
    logits, target = batch(dtype, seed=1)
    wide = logits.astype(np.float64)
    expected, slope = weighted_sum(parts, wide, target, engine="reference")
    loss, grad = fl.combine(parts)(logits, target, return_grad=True, engine=engine)
    lovasz_of_halves = dtype.itemsize == 2 and any(part[1] is fl.lovasz_loss for part in parts)
    assert grad.dtype == dtype
    if not lovasz_of_halves:  # the order of equal errors
        assert_loss(loss, expected, dtype)
        if dtype.itemsize > 2:
            assert_grad(grad, slope)
        else:  # each part's gradient is rounded before they are added
            limit = (2**-7 if dtype == BFLOAT16 else 2**-10) * 4
            assert np.abs(grad.astype(np.float64) - slope).max() <= limit * np.abs(slope).max()


@every_combination
def test_in_place_and_out_grad(engine, parts):
    logits, target = batch(np.float32, seed=2)
    loss, grad = fl.combine(parts)(logits, target, return_grad=True, engine=engine)
    buffer = logits.copy()
    again, same = fl.combine(parts)(buffer, target, out_grad=buffer, engine=engine)
    assert same is buffer and again == loss and np.array_equal(same, grad)
    memory = np.full((4, 4, 5, 6), 7.0)
    out = memory[::2, :, :, ::2]
    assert fl.combine(parts)(logits, target, out_grad=out, engine=engine)[1] is out
    assert np.abs(out - grad).max() <= 1e-6 * np.abs(grad).max()
    out[...] = 7
    assert (memory == 7).all()
    assert fl.combine(parts)(logits, target, engine=engine) == pytest.approx(loss, rel=1e-12)


@every_combination
def test_threads(engine, parts):
    logits, target = batch(np.float32, (4, 4, 60, 30), seed=3)
    loss, grad = fl.combine(parts)(logits, target, return_grad=True, num_threads=1, engine=engine)
    again, slope = fl.combine(parts)(logits, target, return_grad=True, num_threads=2, engine=engine)
    assert again == loss and np.array_equal(slope, grad)


@pytest.mark.parametrize("name", [name for name in SHARED if name != "ce, ce, dice"])  # which counts absent classes
@every_reduced
def test_ignored_targets(engine, name, reduction):
    """Of a shared pass: never read, whatever they hold; and nothing at all is NaN."""
    parts = [
        (weight, loss, {**(options[0] if options else {}), "ignore_index": 9})
        for weight, loss, *options in SHARED[name]
    ]
    logits, target = batch(np.float32, seed=4, ignored=9)
    keywords = {"reduction": reduction, "return_grad": True, "engine": engine}
    loss, grad = fl.combine(parts)(logits, target, **keywords)
    expected, slope = weighted_sum(parts, logits.astype(np.float64), target, reduction=reduction, engine="reference")
    assert_loss(loss, expected, logits.dtype)
    assert_grad(grad, slope)
    for garbage in (np.nan, np.inf, -np.inf):
        broken = np.where((target == 9)[:, None], np.float32(garbage), logits)
        again, same = fl.combine(parts)(broken, target, **keywords)
        assert again == loss and np.array_equal(same, grad)
    loss, grad = fl.combine(parts)(logits, np.full_like(target, 9), **keywords)
    assert not grad.any()
    assert np.isnan(loss) if reduction == "mean" else loss == 0


def test_a_class_that_one_part_ignores(engine):
    logits, target = batch(seed=5)
    for options in ({}, {"ignore_index": 2}):
        parts = [(0.5, CE, {"ignore_index": 1}), (1.0, fl.tversky_loss, options)]
        expected, slope = weighted_sum(parts, logits, target, engine=engine)
        loss, grad = fl.combine(parts)(logits, target, return_grad=True, engine=engine)
        assert loss == pytest.approx(expected, rel=1e-13)
        assert np.abs(grad - slope).max() <= 1e-13


@pytest.mark.parametrize("axis", [0, 2, -1])
def test_the_class_axis(engine, axis):
    logits, target = batch(seed=6)
    moved = np.moveaxis(logits, 1, axis).copy()
    labels = np.moveaxis(np.expand_dims(target, 1), 1, axis).squeeze(axis)
    options = {"axis": axis}
    for parts in (
        [(0.5, CE, options), (0.7, fl.dice_loss, options)],
        [(0.5, CE, options), (0.7, FOCAL, options), (0.1, fl.jaccard_loss, options)],
        [(0.5, CE, options), (0.7, FOCAL, options)],
    ):
        expected, slope = weighted_sum([(w, loss) for w, loss, _ in parts], logits, target, engine=engine)
        loss, grad = fl.combine(parts)(moved, labels, return_grad=True, engine=engine)
        assert loss == pytest.approx(expected, rel=1e-12)
        assert np.abs(np.moveaxis(grad, axis, 1) - slope).max() <= 1e-13


def test_parts_of_different_class_axes(engine):
    logits, target = batch(seed=6, shape=(4, 4))
    parts = [(0.5, CE), (0.7, fl.dice_loss, {"axis": 0})]
    expected, slope = weighted_sum(parts, logits, target, engine=engine)
    loss, grad = fl.combine(parts)(logits, target, return_grad=True, engine=engine)
    assert loss == pytest.approx(expected, rel=1e-13)
    assert np.abs(grad - slope).max() <= 1e-13


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_elements(engine, reduction):
    rng = np.random.default_rng(7)
    logits, target = rng.normal(0, 2, (6, 5)), rng.integers(0, 2, (6, 5))
    parts = [
        (0.5, fl.binary_cross_entropy_with_logits, {"pos_weight": 3.0}),
        (-0.25, fl.hinge_loss, {"margin": 0.5}),
        (2.0, fl.sigmoid_focal_loss, {"gamma": 1.5}),
    ]
    upstream = rng.normal(0, 1, (6, 5)) if reduction == "none" else 0.3
    keywords = {"reduction": reduction, "engine": engine}
    for these in (parts, parts[:2], [*parts, (1.0, fl.combine(parts))]):
        expected, slope = weighted_sum(these, logits, target, upstream, **keywords)
        buffer = logits.copy()
        loss, grad = fl.combine(these)(buffer, target, out_grad=buffer, grad_output=upstream, **keywords)
        assert grad is buffer
        assert loss == pytest.approx(expected, rel=1e-13)
        assert grad == pytest.approx(slope, rel=1e-12, abs=1e-14)
        assert fl.combine(these)(logits, target, **keywords) == pytest.approx(expected, rel=1e-13)


def test_losses_of_each_target(engine):
    logits, target = batch(seed=8)
    upstream = np.random.default_rng(0).normal(0, 1, target.shape)
    for parts in (SHARED["ce, focal"], SHARED["ce, focal with options"], [(0.5, CE), (-1.0, fl.nll_loss)]):
        keywords = {"reduction": "none", "engine": engine}
        expected, slope = weighted_sum(parts, logits, target, upstream, **keywords)
        loss, grad = fl.combine(parts)(logits, target, return_grad=True, grad_output=upstream, **keywords)
        assert loss.shape == target.shape
        assert loss == pytest.approx(expected, rel=1e-12) and grad == pytest.approx(slope, rel=1e-11, abs=1e-14)


@pytest.fixture
def custom():
    """Losses made from formulas, where those can be."""
    pytest.importorskip("sympy")
    if "numba" not in fl.engines():
        pytest.skip("custom losses need Numba")

    @fl.elementwise
    def square(z, y, *, factor=1.0):
        return factor * (z - y) ** 2

    @fl.rowwise
    def poly(log_p, not_p, *, epsilon=1.0):
        return -log_p + epsilon * not_p

    return square, poly


def test_custom_losses(engine, custom):
    square, poly = custom
    if engine == "cython":
        pytest.skip("custom losses are for the engines numba and reference")
    rng = np.random.default_rng(9)
    logits, labels = rng.normal(0, 2, (6, 5)), rng.integers(0, 2, (6, 5))
    binary = [(0.5, fl.binary_cross_entropy_with_logits), (0.1, square, {"factor": 3.0})]
    for target, parts in (
        (labels, binary),
        (labels, binary[::-1]),
        (rng.integers(0, 5, 6), [(0.5, CE), (0.25, poly, {"epsilon": 2.0}), (1.0, FOCAL)]),
        (rng.integers(0, 5, 6), [(1.0, poly), (0.25, fl.combine([(0.5, CE), (1.0, fl.dice_loss)]))]),
    ):
        expected, slope = weighted_sum(parts, logits, target, engine=engine)
        buffer = logits.copy()
        loss, grad = fl.combine(parts)(buffer, target, out_grad=buffer, engine=engine)
        assert grad is buffer
        assert loss == pytest.approx(expected, rel=1e-12)
        assert grad == pytest.approx(slope, rel=1e-11, abs=1e-14)


def test_names():
    loss = fl.combine([(0.5, CE), (2, fl.dice_loss)])
    assert repr(loss) == "<CombinedLoss 0.5 cross_entropy + 2 dice_loss>"
    assert loss.__name__ == "0.5 cross_entropy + 2 dice_loss"


def test_options_are_copied(engine):
    options = {"smooth": 1.0}
    logits, target = batch()
    loss = fl.combine([(1.0, fl.dice_loss, options), (1.0, CE)])
    before = loss(logits, target, engine=engine)
    options["smooth"] = 100.0
    assert loss(logits, target, engine=engine) == before


PARTS = [
    (None, TypeError, "combine needs a sequence of (weight, loss, options), not None"),
    ([], TypeError, "combine needs a sequence of (weight, loss, options), not []"),
    ("ab", TypeError, "combine needs a sequence of (weight, loss, options), not 'ab'"),
    ([CE], TypeError, "part 0 must be (weight, loss) or (weight, loss, options), not <function cross_entropy"),
    ([(1, CE), (1,)], TypeError, "part 1 must be (weight, loss) or (weight, loss, options), not (1,)"),
    ([(1, "dice")], TypeError, "part 0: the loss must be a function, not 'dice'"),
    ([(CE, 1.0)], TypeError, "part 0: the loss must be a function, not 1.0"),
    ([(1, CE), (1, CE, 3)], TypeError, "part 1: the options must be a dictionary, not 3"),
    ([("1", CE)], TypeError, "part 0: the weight must be a number, not '1'"),
    ([(1, CE), (np.nan, CE)], ValueError, "part 1: the weight must be finite, not nan"),
    ([(np.inf, CE)], ValueError, "part 0: the weight must be finite, not inf"),
    ([(1, CE, {"return_grad": True})], ValueError, "part 0: return_grad belongs to the combined loss, not to"),
    ([(1, CE, {"out_grad": None})], ValueError, "part 0: out_grad belongs to the combined loss"),
    ([(1, CE, {"engine": "reference"})], ValueError, "part 0: engine belongs to the combined loss"),
]


@pytest.mark.parametrize(("parts", "error", "text"), PARTS, ids=[text for *_, text in PARTS])
def test_errors_of_parts(parts, error, text):
    with pytest.raises(error, match=re.escape(text)) as caught:
        fl.combine(parts)
    assert type(caught.value) is error


LOGITS, TARGET = batch(seed=10)
CALLS = [
    (dict(target=np.full_like(TARGET, 4)), IndexError, "target[0, 0, 0] is 4, but logits have 4 classes"),
    (dict(target=TARGET[:1]), ValueError, "target has shape (1, 5, 3)"),
    (dict(target=TARGET > 0), TypeError, "target is boolean"),
    (dict(input=LOGITS.astype(int)), TypeError, "logits must be float32, float64, float16 or bfloat16"),
    (dict(reduction="avg"), ValueError, "reduction must be one of 'mean', 'sum', 'none', not 'avg'"),
    (dict(reduction=None), TypeError, "reduction must be one of 'mean', 'sum', 'none', not None"),
    (dict(grad_output="x"), TypeError, "grad_output must be"),
    (dict(grad_output=True), TypeError, "grad_output must be a number, not True"),
    (dict(grad_output=np.ones(4)), ValueError, "grad_output has shape (4,), but the loss"),
    (dict(num_threads=0), ValueError, "num_threads must be None or at least 1, not 0"),
    (dict(engine="abacus"), ValueError, "engine is 'abacus', which is not available"),
    (dict(out_grad=np.zeros(3)), ValueError, "out_grad has shape (3,), but the gradient has the logits'"),
    (dict(out_grad=LOGITS[::-1]), ValueError, "out_grad partly overlaps logits"),
]


@pytest.mark.parametrize("name", ["ce, dice", "ce, focal", "dice, lovasz", "ce less focal"])
@pytest.mark.parametrize(("case", "error", "text"), CALLS, ids=[text for *_, text in CALLS])
def test_errors_of_calls(engine, name, case, error, text):
    out = np.full(LOGITS.shape, 7.0)
    before = LOGITS.copy()
    keywords = {"input": LOGITS, "target": TARGET, "engine": engine, "out_grad": out, **case}
    with pytest.raises(error, match=re.escape(text)) as caught:
        fl.combine({**SHARED, **APART}[name])(**keywords)
    assert type(caught.value) is error
    assert (out == 7).all() and np.array_equal(LOGITS, before)


OPTIONS = [
    ([(1, CE), (1, fl.dice_loss, {"smoth": 1.0})], TypeError, "smoth"),
    ([(1, CE), (1, fl.dice_loss, {"alpha": 0.3})], TypeError, "alpha"),
    ([(1, CE, {"gamma": 2.0}), (1, FOCAL)], TypeError, "gamma"),
    ([(1, CE, {"label_smooting": 0.1}), (1, FOCAL, {"label_smooting": 0.1})], TypeError, "label_smooting"),
    ([(1, CE), (1, FOCAL, {"gamma": "a"})], TypeError, "gamma must be a number, not 'a'"),
    ([(1, CE), (1, FOCAL, {"gamma": -1}), (1, fl.dice_loss)], ValueError, "gamma must be finite and at least 0"),
    ([(1, CE), (1, fl.dice_loss, {"smooth": -1})], ValueError, "smooth must be finite and at least 0, not -1"),
    ([(1, CE), (1, fl.dice_loss, {"weight": [1, 2]})], ValueError, "weight has shape (2,), but 4 classes need one"),
    ([(1, CE, {"weight": [1, 2]}), (1, fl.dice_loss)], ValueError, "weight has shape (2,), but 4 classes need one"),
    ([(1, CE, {"ignore_index": 1.5}), (1, FOCAL, {"ignore_index": 1.5})], TypeError, "ignore_index must be an int"),
    ([(1, CE, {"axis": 9}), (1, fl.dice_loss, {"axis": 9})], ValueError, "axis is 9, but logits of shape"),
    ([(1, fl.dice_loss), (1, FOCAL), (1, fl.lovasz_loss, {"mode": "x"})], ValueError, "mode must be one of"),
]


@pytest.mark.parametrize(("parts", "error", "text"), OPTIONS, ids=[text for *_, text in OPTIONS])
def test_errors_of_options(engine, parts, error, text):
    out = np.full(LOGITS.shape, 7.0)
    with pytest.raises(error, match=re.escape(text)) as caught:
        fl.combine(parts)(LOGITS, TARGET, out_grad=out, engine=engine)
    assert type(caught.value) is error
    assert (out == 7).all()


def test_losses_of_different_shapes_are_refused(engine):
    out = np.full(LOGITS.shape, 7.0)
    text = 'losses of different shapes can only be combined with reduction "mean" or "sum"'
    with pytest.raises(ValueError, match=text):
        fl.combine(SHARED["ce, dice"])(LOGITS, TARGET, reduction="none", engine=engine)
    with pytest.raises(ValueError, match=text):
        fl.combine(SHARED["ce, dice"])(LOGITS, TARGET, reduction="none", out_grad=out, engine=engine)
    assert (out == 7).all()
