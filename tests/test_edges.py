"""NaN, infinities, nothing that counts, sizes of 0 and 1."""

import math

import numpy as np
import pytest
from checks import DTYPES, assert_grad, assert_loss, compute_dtype

import fastloss as fl

INF, NAN = math.inf, math.nan

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
# Few rows and many, few classes and many, and classes in front: other kernels.
SHAPES = [((3, 2), 1), ((9, 5), 1), ((11, 10), 1), ((9, 40), 1), ((5, 1500), 1), ((2, 6, 13), 1), ((4, 700, 3), 1)]
every_shape = pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=str)


def batch(shape, axis, dtype, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, shape).astype(dtype)
    target = rng.integers(0, shape[axis], shape[:axis] + shape[axis + 1 :])
    return logits, target


def row_of(logits, axis, row):
    return logits[row[:axis] + (slice(None),) + row[axis:]]


@every_dtype
@every_shape
@pytest.mark.parametrize("bad", ["nan", "inf", "all -inf", "nan beside inf"])
def test_an_undefined_row_is_nan_and_touches_no_other(engine, dtype, shape, axis, bad):
    logits, target = batch(shape, axis, dtype)
    clean_loss, clean_grad = fl.cross_entropy(
        logits, target, axis=axis, reduction="none", return_grad=True, engine=engine
    )
    for row in [(0,) * target.ndim, tuple(n // 2 for n in target.shape), tuple(n - 1 for n in target.shape)]:
        for position in (0, shape[axis] // 2, shape[axis] - 1):
            broken = logits.copy()
            values = row_of(broken, axis, row)
            if bad == "all -inf":
                values[:] = -INF
            else:
                values[position] = NAN if bad.startswith("nan") else INF
                if bad == "nan beside inf":
                    values[position - 1] = INF
            loss, grad = fl.cross_entropy(broken, target, axis=axis, reduction="none", return_grad=True, engine=engine)
            assert np.isnan(loss[row])
            assert np.isnan(row_of(grad, axis, row).astype(np.float64)).all()
            loss[row], row_of(grad, axis, row)[:] = clean_loss[row], row_of(clean_grad, axis, row)
            assert np.array_equal(loss, clean_loss)
            assert np.array_equal(grad, clean_grad)
            for reduction in ("mean", "sum"):
                assert math.isnan(fl.cross_entropy(broken, target, axis=axis, reduction=reduction, engine=engine))


@every_dtype
@every_shape
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "z_loss": 0.1, "softcap": 4.0}], ids=str)
def test_an_ignored_row_is_never_read(engine, dtype, shape, axis, options):
    logits, target = batch(shape, axis, dtype)
    ignored = np.zeros(target.shape, bool)
    ignored.flat[::2] = True
    target[ignored] = -100
    keywords = {"axis": axis, "return_grad": True, "engine": engine, **options}
    clean_loss, clean_grad = fl.cross_entropy(logits, target, **keywords)
    assert math.isfinite(clean_loss)
    for garbage in (NAN, INF, -INF):
        broken = np.where(np.expand_dims(ignored, axis), np.asarray(garbage, dtype), logits)
        loss, grad = fl.cross_entropy(broken, target, **keywords)
        assert loss == clean_loss
        assert np.array_equal(grad, clean_grad)
        assert not np.moveaxis(grad, axis, -1)[ignored].any()
        losses = fl.cross_entropy(broken, target, axis=axis, reduction="none", engine=engine, **options)
        assert not losses[ignored].any()
        assert (losses[~ignored] > 0).all()


@every_dtype
@every_shape
def test_minus_infinity_is_a_class_of_probability_zero(engine, dtype, shape, axis):
    logits, target = batch(shape, axis, dtype)
    barred = (target + 1) % shape[axis]
    np.put_along_axis(logits, np.expand_dims(barred, axis), np.asarray(-INF, dtype), axis)
    low = np.where(np.isneginf(logits.astype(np.float64)), np.asarray(-1e4, dtype), logits)
    keywords = {"axis": axis, "return_grad": True, "engine": engine}
    loss, grad = fl.cross_entropy(logits, target, **keywords)
    low_loss, low_grad = fl.cross_entropy(low, target, **keywords)
    assert not np.take_along_axis(grad, np.expand_dims(barred, axis), axis).any()
    assert loss == pytest.approx(low_loss, rel=1e-6, abs=1e-7)
    assert np.array_equal(grad, low_grad)


def test_zero_times_infinity_is_zero(engine):
    logits = np.array([[-INF, 0.0, 0.0]])
    for keywords in ({"target": [[0.0, 0.25, 0.75]]}, {"target": [1]}):
        loss, grad = fl.cross_entropy(logits, return_grad=True, engine=engine, **keywords)
        assert loss == pytest.approx(math.log(2))
        assert grad[0, 0] == 0
    # A smoothed target's share of a class of weight 0 is 0 as well.
    loss = fl.cross_entropy(logits, [1], weight=[0, 1, 1], label_smoothing=0.3, engine=engine)
    assert loss == pytest.approx((0.8 + 0.1) * math.log(2))
    # A loss that overflows by its class's weight costs nothing where the sample's is 0.
    logits, weights = np.array([[-10.0, 10.0]], np.float32), {"weight": [3e38, 1.0], "sample_weight": [0.0]}
    loss = fl.cross_entropy(logits, [0], reduction="none", engine=engine, **weights)
    assert loss == 0


@every_dtype
def test_a_target_at_minus_infinity(engine, dtype):
    logits = np.array([[-INF, 0.0], [1.0, 1.0]], dtype)
    loss, grad = fl.cross_entropy(logits, [0, 1], reduction="none", return_grad=True, engine=engine)
    assert loss[0] == INF
    assert loss[1] == pytest.approx(math.log(2))
    assert grad.astype(np.float64).tolist() == [[-1.0, 1.0], [0.5, -0.5]]
    assert fl.cross_entropy(logits, [0, 1], engine=engine) == INF
    assert fl.cross_entropy(logits, [0, 1], label_smoothing=0.5, engine=engine) == INF


@every_dtype
def test_softcap_bounds_infinities(engine, dtype):
    logits = np.array([[INF, -INF, 0.0]], dtype)
    loss, grad = fl.cross_entropy(logits, [2], softcap=2.0, return_grad=True, engine=engine)
    assert loss == pytest.approx(math.log(math.exp(2) + math.exp(-2) + 1), rel=1e-6)
    assert grad[0, 0] == grad[0, 1] == 0
    p = 1 / (math.exp(2) + math.exp(-2) + 1)
    assert float(grad[0, 2]) == pytest.approx(p - 1, rel=1e-2 if dtype.itemsize == 2 else 1e-6)
    logits[0, 0] = NAN
    loss, grad = fl.cross_entropy(logits, [2], softcap=2.0, return_grad=True, engine=engine)
    assert math.isnan(loss) and np.isnan(grad.astype(np.float64)).all()


@every_dtype
@every_shape
def test_softcap_of_minus_infinity_is_minus_the_softcap(engine, dtype, shape, axis):
    logits, target = batch(shape, axis, dtype)
    barred = np.expand_dims((target + 1) % shape[axis], axis)
    np.put_along_axis(logits, barred, np.asarray(-INF, dtype), axis)
    low = logits.copy()
    np.put_along_axis(low, barred, np.asarray(-1e4, dtype), axis)  # far below the softcap
    keywords = {"axis": axis, "softcap": 2.0, "return_grad": True, "engine": engine}
    for options in ({}, {"label_smoothing": 0.1}):
        loss, grad = fl.cross_entropy(logits, target, **options, **keywords)
        low_loss, low_grad = fl.cross_entropy(low, target, **options, **keywords)
        assert loss == pytest.approx(low_loss, rel=1e-6)
        assert np.abs(grad.astype(np.float64) - low_grad.astype(np.float64)).max() <= (
            1e-2 if dtype.itemsize == 2 else 1e-6
        )
    even = np.full(shape, -INF, dtype)
    loss, grad = fl.cross_entropy(even, target, **keywords)
    assert loss == pytest.approx(math.log(shape[axis]), rel=1e-6)
    assert not grad.any()


@every_dtype
@every_shape
def test_a_row_of_weight_zero_counts(engine, dtype, shape, axis):
    """Its infinite loss becomes 0, but NaN stays: only ignored rows are not read."""
    logits, target = batch(shape, axis, dtype)
    sample_weight = np.ones(target.shape)
    first = (0,) * target.ndim
    sample_weight[first] = 0
    keywords = {"sample_weight": sample_weight, "axis": axis, "engine": engine, "return_grad": True}
    for options in ({}, {"label_smoothing": 0.1}):
        expected, _ = fl.cross_entropy(logits, target, **options, **keywords)
        broken = logits.copy()
        row_of(broken, axis, first)[target[first]] = -INF
        loss, grad = fl.cross_entropy(broken, target, **options, **keywords)
        assert loss == pytest.approx(expected, rel=1e-6)
        assert not row_of(grad, axis, first).any()
        row_of(broken, axis, first)[target[first]] = NAN
        loss, grad = fl.cross_entropy(broken, target, **options, **keywords)
        assert math.isnan(loss)
        assert np.isnan(row_of(grad, axis, first).astype(np.float64)).all()


@every_dtype
@pytest.mark.parametrize(
    "nothing",
    [
        {"target": [-100, -100]},
        {"target": [0, 1], "weight": [0, 0, 1]},
        {"target": [0, 1], "sample_weight": [0, 0]},
        {"target": [2, -100], "weight": [1, 1, 0], "label_smoothing": 0.1, "z_loss": 0.1},
        {"target": [[0.5, 0.5, 0]] * 2, "sample_weight": [0, 0]},
    ],
    ids=str,
)
def test_the_mean_over_nothing(engine, dtype, nothing):
    logits = np.array([[1.0, 2.0, 3.0], [NAN if nothing["target"][1] == -100 else 0.0, 1.0, 0.0]], dtype)
    keywords = {**nothing, "return_grad": True, "engine": engine}
    loss, grad = fl.cross_entropy(logits, **keywords)
    assert math.isnan(loss)
    assert not grad.any()
    loss, grad = fl.cross_entropy(logits, empty="zero", **keywords)
    assert loss == 0.0
    assert not grad.any()
    buffer = np.full((2, 3), 7.0)
    with pytest.raises(ValueError, match="mean is over nothing.*every target is ignored or has weight 0"):
        fl.cross_entropy(logits, empty="raise", out_grad=buffer, **keywords)
    assert (buffer == 7.0).all()
    for others in ({"normalizer": 4.0}, {"reduction": "sum"}):
        loss, grad = fl.cross_entropy(logits, empty="raise", **others, **keywords)
        assert math.isfinite(loss)


@every_dtype
def test_no_rows(engine, dtype):
    logits, target = np.zeros((0, 3), dtype), np.zeros(0, np.int64)
    loss, grad = fl.cross_entropy(logits, target, return_grad=True, engine=engine)
    assert math.isnan(loss)
    assert grad.shape == (0, 3) and grad.dtype == dtype
    assert fl.cross_entropy(logits, [], empty="zero", engine=engine) == 0.0
    assert fl.cross_entropy(logits, target, reduction="sum", engine=engine) == 0.0
    assert fl.cross_entropy(logits, np.zeros((0, 3)), reduction="sum", engine=engine) == 0.0
    assert fl.cross_entropy(logits, target, normalizer=3, engine=engine) == 0.0
    losses = fl.cross_entropy(logits, target, reduction="none", engine=engine)
    assert losses.shape == (0,) and losses.dtype == compute_dtype(dtype)
    with pytest.raises(ValueError, match="there are no targets"):
        fl.cross_entropy(logits, target, empty="raise", engine=engine)
    losses = fl.cross_entropy(
        np.zeros((2, 3, 0), dtype), np.zeros((2, 0), np.uint8), reduction="none", out_grad=None, engine=engine
    )
    assert losses.shape == (2, 0)
    assert fl.softmax(logits, engine=engine).shape == (0, 3)
    assert fl.logsumexp(logits, engine=engine).shape == (0,)
    assert fl.sigmoid(logits, engine=engine).shape == (0, 3)
    loss, grad = fl.binary_cross_entropy_with_logits(logits, np.zeros((0, 3)), return_grad=True, engine=engine)
    assert math.isnan(loss) and grad.shape == (0, 3)
    assert fl.binary_cross_entropy_with_logits(logits, np.zeros((0, 3)), reduction="sum", engine=engine) == 0.0


@every_dtype
def test_one_class(engine, dtype):
    logits = np.array([[5.0], [-3.0], [0.0]], dtype)
    for target in ([0, 0, 0], np.ones((3, 1))):
        loss, grad = fl.cross_entropy(logits, target, label_smoothing=0.1, return_grad=True, engine=engine)
        assert loss == 0.0
        assert not grad.any()
    loss, grad = fl.cross_entropy(logits, [0, 0, 0], z_loss=0.5, reduction="none", return_grad=True, engine=engine)
    assert loss.tolist() == [12.5, 4.5, 0.0]
    assert grad.astype(np.float64).ravel().tolist() == [5.0, -3.0, 0.0]
    assert math.isnan(fl.cross_entropy(np.array([[-INF]], dtype), [0], engine=engine))


@every_dtype
def test_one_dimensional_logits_use_their_only_axis(engine, dtype):
    logits = np.array([1.0, 2.0, 3.0], dtype)
    expected = fl.cross_entropy(logits[None], [1], engine=engine)
    for axis in (1, 0, -1, 5):
        loss, grad = fl.cross_entropy(logits, np.uint8(1), axis=axis, return_grad=True, engine=engine)
        assert loss == pytest.approx(expected, rel=1e-6)
        assert grad.shape == (3,)
    loss = fl.cross_entropy(logits, 1, reduction="none", engine=engine)
    assert isinstance(loss, np.ndarray) and loss.shape == ()
    assert fl.softmax(logits, engine=engine).shape == (3,)
    assert np.shape(fl.logsumexp(logits, engine=engine)) == ()


def test_huge_logits(engine):
    logits = np.array([[1e20, 0.0, -1e20], [1e20, 1e20, 0.0], [-1e20, -1e20, -1e20]], np.float32)
    loss, grad = fl.cross_entropy(logits, [0, 1, 2], reduction="none", return_grad=True, engine=engine)
    assert loss[0] == 0.0
    assert loss[1:] == pytest.approx([math.log(2), math.log(3)], rel=1e-6)
    expected = np.array([[0, 0, 0], [0.5, -0.5, 0], [1 / 3, 1 / 3, -2 / 3]])
    assert np.abs(grad - expected).max() <= 1e-6
    loss = fl.cross_entropy(logits, [2, 0, 0], reduction="none", engine=engine)
    assert loss[0] == pytest.approx(2e20, rel=1e-6)
    for value in (fl.softmax(logits, engine=engine), fl.log_softmax(logits, engine=engine)):
        assert np.isfinite(value).all()


def test_full_smoothing(engine):
    logits = np.random.default_rng(0).normal(0, 2, (6, 5))
    loss, grad = fl.cross_entropy(logits, [0, 1, 2, 3, 4, 0], label_smoothing=1.0, return_grad=True, engine=engine)
    uniform, uniform_grad = fl.cross_entropy(logits, np.full((6, 5), 0.2), return_grad=True, engine=engine)
    assert loss == pytest.approx(uniform, rel=1e-13)
    assert np.abs(grad - uniform_grad).max() <= 1e-15
    logits, target = logits.ravel(), np.ones(30)
    loss = fl.binary_cross_entropy_with_logits(logits, target, label_smoothing=1.0, engine=engine)
    assert loss == pytest.approx(
        fl.binary_cross_entropy_with_logits(logits, np.full(30, 0.5), engine=engine), rel=1e-13
    )


@every_dtype
def test_weight_zero_takes_a_class_out(engine, dtype):
    logits = np.random.default_rng(0).normal(0, 2, (4, 3)).astype(dtype)
    loss, grad = fl.cross_entropy(logits, [0, 1, 2, 1], weight=[1, 0, 1], return_grad=True, engine=engine)
    kept, kept_grad = fl.cross_entropy(logits[[0, 2]], [0, 2], return_grad=True, engine=engine)
    assert loss == pytest.approx(kept, rel=1e-6)
    assert not grad[[1, 3]].any()
    difference = np.abs(grad[[0, 2]].astype(np.float64) - kept_grad.astype(np.float64)).max()
    assert difference <= (1e-2 if dtype.itemsize == 2 else 1e-6)


@every_dtype
@pytest.mark.parametrize("n", [1, 3, 8, 33, 100])
def test_binary_infinities(engine, dtype, n):
    logits = np.resize(np.array([INF, -INF, INF, -INF, NAN, 0.0], dtype), n)
    target = np.resize([1, 0, 0, 1, 1, 1], n)
    loss, grad = fl.binary_cross_entropy_with_logits(logits, target, reduction="none", return_grad=True, engine=engine)
    assert np.array_equal(loss.round(4), np.resize([0, 0, INF, INF, NAN, 0.6931], n).astype(loss.dtype), equal_nan=True)
    expected = np.resize([0, 0, 1, -1, NAN, -0.5], n)
    assert np.array_equal(grad.astype(np.float64), expected, equal_nan=True)


@every_dtype
def test_binary_ignored_elements_have_no_effect(engine, dtype):
    logits = np.array([NAN, 1.0, INF, -2.0, -INF], dtype)
    target = np.array([-1, 1, -1, 0, -1])
    loss, grad = fl.binary_cross_entropy_with_logits(logits, target, ignore_index=-1, return_grad=True, engine=engine)
    kept, kept_grad = fl.binary_cross_entropy_with_logits(logits[[1, 3]], [1, 0], return_grad=True, engine=engine)
    assert loss == pytest.approx(kept, rel=1e-6)
    assert not grad[[0, 2, 4]].any()
    assert np.array_equal(grad[[1, 3]], kept_grad)
    loss, grad = fl.binary_cross_entropy_with_logits(
        logits, np.full(5, -1), ignore_index=-1, return_grad=True, engine=engine
    )
    assert math.isnan(loss)
    assert not grad.any()


def test_binary_ignores_a_value_that_the_target_type_rounds(engine):
    target = np.array([0.1, 1.0, 0.1], np.float32)
    losses = fl.binary_cross_entropy_with_logits(np.ones(3), target, ignore_index=0.1, reduction="none", engine=engine)
    assert losses.tolist() == [0.0, pytest.approx(math.log1p(math.exp(-1))), 0.0]


@every_dtype
def test_primitives_of_infinities(engine, dtype):
    rows = np.array([[0, 0, -INF], [INF, 0, 0], [-INF, -INF, -INF], [NAN, 0, 1], [3, -INF, -INF]], dtype)
    p = fl.softmax(rows, engine=engine).astype(np.float64)
    expected = [[0.5, 0.5, 0], [NAN] * 3, [NAN] * 3, [NAN] * 3, [1, 0, 0]]
    assert np.array_equal(p, expected, equal_nan=True)
    logs = fl.log_softmax(rows, engine=engine).astype(np.float64)
    with np.errstate(divide="ignore"):
        assert logs == pytest.approx(np.log(expected), rel=4e-3, nan_ok=True)
    lse = fl.logsumexp(rows, engine=engine)
    assert lse == pytest.approx([math.log(2), NAN, NAN, NAN, 3], nan_ok=True)
    entropy = fl.entropy(rows, engine=engine)
    assert entropy == pytest.approx([math.log(2), NAN, NAN, NAN, 0], nan_ok=True)
    x = np.array([-INF, INF, NAN], dtype)
    for function, values in (
        (fl.sigmoid, [0, 1, NAN]),
        (fl.log_sigmoid, [-INF, 0, NAN]),
        (fl.softplus, [0, INF, NAN]),
    ):
        assert np.array_equal(function(x, engine=engine).astype(np.float64), values, equal_nan=True)


def test_unsigned_targets_never_match_a_negative_ignore_index(engine):
    logits = np.zeros((1, 200))
    assert fl.cross_entropy(logits, np.array([156], np.uint8), engine=engine) == pytest.approx(math.log(200))
    # 156 is the byte of -100.
    assert math.isnan(fl.cross_entropy(logits, np.array([-100], np.int8), engine=engine))
    with pytest.raises(IndexError):
        fl.cross_entropy(logits, np.array([2**64 - 100], np.uint64), engine=engine)


def test_an_ignored_class_is_a_class_like_any(engine):
    logits = np.random.default_rng(0).normal(0, 2, (4, 3))
    loss, grad = fl.cross_entropy(logits, [0, 1, 2, 0], ignore_index=0, return_grad=True, engine=engine)
    assert loss == pytest.approx(fl.cross_entropy(logits[1:3], [1, 2], engine=engine), rel=1e-14)
    assert not grad[[0, 3]].any()
    assert (grad[1:3, 0] > 0).all()


@every_dtype
def test_binary_nan_of_weight_zero_stays(engine, dtype):
    logits = np.array([NAN, 1.0, NAN], dtype)
    losses, grad = fl.binary_cross_entropy_with_logits(
        logits, [1, 0, 0], weight=[0, 0, 1], reduction="none", return_grad=True, engine=engine
    )
    assert np.array_equal(losses, [NAN, 0, NAN], equal_nan=True)
    assert np.array_equal(grad.astype(np.float64), [NAN, 0, NAN], equal_nan=True)


@every_dtype
def test_large_elements(engine, dtype):
    x = np.array([10000.0, -10000.0], dtype)
    large = float(x[0])
    assert fl.softplus(x, engine=engine).astype(np.float64).tolist() == [large, 0]
    assert fl.log_sigmoid(x, engine=engine).astype(np.float64).tolist() == [0, -large]
    assert fl.sigmoid(x, engine=engine).astype(np.float64).tolist() == [1, 0]
    losses, grad = fl.binary_cross_entropy_with_logits(x, [0, 1], reduction="none", return_grad=True, engine=engine)
    assert losses.tolist() == [large, large]
    assert grad.astype(np.float64).tolist() == [1, -1]


@every_dtype
@pytest.mark.parametrize("steps", [(0, 10, 30), (0, 100, 15), (-50, -20, 45), (90, 0, -80), (-70, 60, 65)], ids=str)
@pytest.mark.parametrize("classes", [600, 1500, 5000])
def test_rows_that_rise_from_block_to_block(engine, dtype, steps, classes):
    """Long rows are done block by block against a reference, which later blocks may exceed, a little or by far."""
    rng = np.random.default_rng(classes)
    level = np.repeat(steps, -(-classes // len(steps)))[:classes]
    logits = (level + rng.normal(0, 2, (4, classes))).astype(dtype)
    target = np.array([0, classes // 2, classes - 1, int(logits[3].argmax())])
    for options in ({}, {"label_smoothing": 0.1}, {"z_loss": 0.01}, {"label_smoothing": 1.0}):
        keywords = {"reduction": "none", "return_grad": True, **options}
        alone = fl.cross_entropy(logits, target, reduction="none", engine=engine, **options)
        loss, grad = fl.cross_entropy(logits, target, engine=engine, **keywords)
        expected_loss, expected_grad = fl.cross_entropy(
            logits.astype(np.float64), target, engine="reference", **keywords
        )
        assert_loss(loss, expected_loss, dtype, options)
        assert_grad(grad, expected_grad, options)
        assert (alone == loss).all()
        logits_with_nan = logits.copy()
        logits_with_nan[1, classes - 1] = np.nan
        again, slope = fl.cross_entropy(logits_with_nan, target, engine=engine, **keywords)
        assert np.isnan(again[1]) and np.isnan(slope[1]).all()
        assert (again[[0, 2, 3]] == loss[[0, 2, 3]]).all()


@every_dtype
@pytest.mark.parametrize(
    ("shape", "axis"),
    [((3, 3), 1), ((3, 10), 1), ((3, 40), 1), ((3, 300), 1), ((3, 2000), 1), ((2, 5, 9), 1), ((40, 100), 0)],
    ids=str,
)
def test_an_impossible_target_of_weight_zero_costs_nothing(engine, dtype, shape, axis):
    """0 * infinity is 0: a class that weighs nothing, at -inf, as the target."""
    logits, target = batch(shape, axis, dtype)
    target[...] = 1
    target.flat[0] = 0
    logits_by_class = np.moveaxis(logits, axis, 0)
    logits_by_class[0] = -INF
    weight = np.ones(shape[axis], compute_dtype(dtype))
    weight[0] = 0
    losses, grad = fl.cross_entropy(
        logits, target, weight=weight, axis=axis, reduction="none", return_grad=True, engine=engine
    )
    assert losses.flat[0] == 0
    assert np.isfinite(losses).all() and (losses.ravel()[1:] > 0).all()
    assert np.isfinite(grad.astype(np.float64)).all()
    assert (np.moveaxis(grad, axis, 0)[0] == 0).all()
    assert (np.moveaxis(grad, axis, 0).reshape(shape[axis], -1)[:, 0] == 0).all()


@every_dtype
@pytest.mark.parametrize("classes", [3, 16, 17, 40, 600, 2000])
@pytest.mark.parametrize("bad", ["nan", "inf", "all -inf"])
def test_an_undefined_row_is_nan_with_every_kind_of_target(engine, dtype, classes, bad):
    """As above, where the class weights differ from class to class, and in the primitives."""
    logits, target = batch((5, classes), 1, dtype)
    clean = logits.copy()
    logits[2, :] = {"nan": logits[2], "inf": logits[2], "all -inf": -INF}[bad]
    logits[2, classes // 2] = {"nan": NAN, "inf": INF, "all -inf": -INF}[bad]
    probabilities = np.full((5, classes), 1 / classes, compute_dtype(dtype))
    weight = np.linspace(0.5, 2, classes).astype(compute_dtype(dtype))
    others = [0, 1, 3, 4]
    for labels, options in (
        (probabilities, {}),
        (probabilities, {"weight": weight}),
        (target, {"weight": weight, "label_smoothing": 0.1}),
    ):
        keywords = {"reduction": "none", "return_grad": True, "engine": engine, **options}
        losses, grad = fl.cross_entropy(logits, labels, **keywords)
        expected_losses, expected_grad = fl.cross_entropy(clean, labels, **keywords)
        assert np.isnan(losses[2]) and np.isnan(grad[2].astype(np.float64)).all()
        assert (losses[others] == expected_losses[others]).all() and (grad[others] == expected_grad[others]).all()
    for function in (fl.softmax, fl.log_softmax, fl.logsumexp, fl.entropy):
        values, expected = function(logits, engine=engine), function(clean, engine=engine)
        assert np.isnan(values[2].astype(np.float64)).all(), function.__name__
        assert (values[others] == expected[others]).all()
