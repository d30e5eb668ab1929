"""NaN, infinities, ignored targets, nothing at all, and targets of every dtype, for the losses of the catalogue."""

import math

import numpy as np
import pytest
from checks import BFLOAT16, DTYPES, INTEGERS, compute_dtype, same_bits
from test_catalogue_numeric import CASES, batch, every_dtype

import fastloss as fl

INF, NAN = math.inf, math.nan
OVERLAP = (fl.dice_loss, fl.jaccard_loss, fl.tversky_loss, fl.lovasz_loss)  # see test_overlap.py
every_case = pytest.mark.parametrize(
    "case",
    [case for case in CASES if case[0] not in OVERLAP],
    ids=lambda case: f"{case[0].__name__}-{case[1]}-{sorted(case[2])}",
)
every_class_shape = pytest.mark.parametrize(
    "shape", [(3, 2), (9, 5), (9, 40), (5, 1500), (2, 6, 13), (2, 700, 3)], ids=str
)


@every_case
@every_dtype
def test_nan_touches_no_other(engine, case, dtype):
    function, kind, _ = case
    given, target, options = batch(case, dtype, (5, 9, 3), 1)
    at = (2, 4, 1)[: given.ndim]
    if kind in ("classes", "lists"):
        target[2, 1 if kind == "classes" else 0] = 0  # not ignored, and a label there is
    if function is fl.nll_loss:
        at = (2, 0, 1)  # the only class that is read
    options |= {"reduction": "none", "return_grad": True, "engine": engine}
    loss, grad = function(given, target, **options)
    broken = given.copy()
    broken[at] = NAN
    again, slope = function(broken, target, **options)
    if kind in ("classes", "distributions"):
        row, grad, slope = (2, 1), np.moveaxis(grad, 1, -1), np.moveaxis(slope, 1, -1)
    else:
        row = at[: again.ndim]
    others = np.ones(again.shape, bool)
    others[row] = False
    assert np.isnan(again[row])
    assert same_bits(again[others], loss[others]) and same_bits(slope[others], grad[others])
    if function not in (fl.nll_loss, fl.kl_div):  # whose gradients do not depend on the input
        assert np.isnan(slope[row].astype(np.float64)).any()
    if function is fl.focal_cross_entropy:
        assert np.isnan(slope[row].astype(np.float64)).all()
    for reduction in ("mean", "sum"):
        assert math.isnan(function(broken, target, **{**options, "reduction": reduction, "return_grad": False}))


@every_dtype
@every_class_shape
@pytest.mark.parametrize("gamma", [0.5, 2.0])
@pytest.mark.parametrize("bad", ["nan", "inf", "all -inf"])
def test_an_undefined_row_of_the_focal_loss_is_nan(engine, dtype, shape, gamma, bad):
    rng = np.random.default_rng(2)
    logits = rng.normal(0, 2, shape).astype(dtype)
    rows = shape[:1] + shape[2:]
    target = rng.integers(0, shape[1], rows)
    options = {"gamma": gamma, "reduction": "none", "return_grad": True, "engine": engine}
    loss, grad = fl.focal_cross_entropy(logits, target, **options)
    row = tuple(n // 2 for n in rows)
    where = (row[0], slice(None), *row[1:])
    for position in (0, shape[1] - 1):
        broken = logits.copy()
        if bad == "all -inf":
            broken[where] = -INF
        else:
            broken[(row[0], position, *row[1:])] = NAN if bad == "nan" else INF
        again, slope = fl.focal_cross_entropy(broken, target, **options)
        assert np.isnan(again[row]) and np.isnan(slope[where].astype(np.float64)).all()
        again[row], slope[where] = loss[row], grad[where]
        assert same_bits(again, loss) and same_bits(slope, grad)


@every_dtype
@every_class_shape
def test_minus_infinity_is_a_class_of_probability_zero(engine, dtype, shape):
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 2, shape).astype(dtype)
    target = rng.integers(0, shape[1], shape[:1] + shape[2:])
    barred = np.expand_dims((target + 1) % shape[1], 1)
    low = logits.copy()
    np.put_along_axis(logits, barred, np.asarray(-INF, dtype), 1)
    np.put_along_axis(low, barred, np.asarray(-1e4, dtype), 1)
    for gamma in (0.5, 2.0):
        loss, grad = fl.focal_cross_entropy(logits, target, gamma=gamma, return_grad=True, engine=engine)
        low_loss, low_grad = fl.focal_cross_entropy(low, target, gamma=gamma, return_grad=True, engine=engine)
        assert not np.take_along_axis(grad, barred, 1).any()
        assert loss == pytest.approx(low_loss, rel=1e-6) and math.isfinite(loss)
        assert np.array_equal(grad, low_grad)


@every_dtype
def test_a_focal_target_at_minus_infinity(engine, dtype):
    logits = np.array([[-INF, 0.0], [1.0, 1.0], [0.0, -INF]], dtype)
    options = {"reduction": "none", "return_grad": True, "engine": engine}
    for gamma in (0.5, 1.0, 2.0):
        loss, grad = fl.focal_cross_entropy(logits, [0, 1, 0], gamma=gamma, **options)
        assert loss[0] == INF and loss[2] == 0  # and p = 1 costs nothing
        assert grad[0].astype(float).tolist() == [-1, 1] and grad[2].astype(float).tolist() == [0, 0]
        assert loss[1] == pytest.approx(0.5**gamma * math.log(2))


@every_dtype
def test_one_class(engine, dtype):
    for gamma in (0.0, 0.5, 2.0):
        loss, grad = fl.focal_cross_entropy(
            np.array([[3.0], [-8.0]], dtype), [0, 0], gamma=gamma, return_grad=True, engine=engine
        )
        assert loss == 0 and not grad.any()
    loss, grad = fl.multi_margin_loss(np.array([[3.0], [-8.0]], dtype), [0, 0], return_grad=True, engine=engine)
    assert loss == 0 and not grad.any()


@every_dtype
def test_infinite_elements(engine, dtype):
    z = np.array([INF, -INF, INF, -INF], dtype)
    options = {"reduction": "none", "return_grad": True, "engine": engine}
    for gamma in (0.0, 0.5, 2.0):
        loss, grad = fl.sigmoid_focal_loss(z, [1, 0, 0, 1], alpha=0.25, gamma=gamma, **options)
        assert loss.tolist() == [0, 0, INF, INF]
        assert grad.astype(float).tolist() == [0, 0, 0.75, -0.25]
    loss, grad = fl.soft_margin_loss(z, [1, -1, -1, 1], **options)
    assert loss.tolist() == [0, 0, INF, INF] and grad.astype(float).tolist() == [0, 0, 1, -1]
    loss, grad = fl.hinge_loss(z, [1, -1, -1, 1], **options)
    assert loss.tolist() == [0, 0, INF, INF] and grad.astype(float).tolist() == [0, 0, 1, -1]
    loss, grad = fl.multilabel_soft_margin_loss(z[:, None], [[1], [0], [0], [1]], **options)
    assert loss.tolist() == [0, 0, INF, INF] and grad[:, 0].astype(float).tolist() == [0, 0, 1, -1]


@every_dtype
def test_large_elements(engine, dtype):
    z = np.array([10000.0, -10000.0, 200.0, -200.0], dtype)
    sizes = np.abs(z.astype(float)).tolist()
    options = {"reduction": "none", "return_grad": True, "engine": engine}
    for sign in (1, -1):
        wrong = np.sign(z.astype(float)) * sign
        for function, target in ((fl.soft_margin_loss, wrong), (fl.sigmoid_focal_loss, wrong > 0)):
            more = {"alpha": None} if function is fl.sigmoid_focal_loss else {}
            loss, grad = function(z, target, **more, **options)
            assert loss == pytest.approx([0.0] * 4 if sign == 1 else sizes, rel=1e-7, abs=1e-30)
            expected = [0.0] * 4 if sign == 1 else np.sign(z.astype(float)).tolist()
            assert grad.astype(float) == pytest.approx(expected, rel=1e-7, abs=1e-30)


@every_dtype
def test_kl_div_where_the_target_is_nothing(engine, dtype):
    logs = np.array([-INF, INF, -1.0, -INF, NAN, -1.0], dtype)
    options = {"reduction": "none", "return_grad": True, "engine": engine}
    loss, grad = fl.kl_div(logs, [0, 0, 0, 0.5, 0, -0.5], **options)
    assert np.array_equal(loss, [0, 0, 0, INF, NAN, NAN], equal_nan=True)
    assert grad[:4].astype(float).tolist() == [0, 0, 0, -0.5]
    loss, grad = fl.kl_div(logs, [-INF, -INF, -INF, math.log(0.5), -INF, 0.0], log_target=True, **options)
    assert np.array_equal(loss[:5], [0, 0, 0, INF, NAN], equal_nan=True) and loss[5] == 1
    assert grad[[0, 1, 2, 5]].astype(float).tolist() == [0, 0, 0, -1]


@every_dtype
def test_nll_reads_the_target_only(engine, dtype):
    log_probs = np.array([[NAN, -0.5, INF], [-INF, NAN, -2.0]], dtype)
    loss, grad = fl.nll_loss(log_probs, [1, 2], return_grad=True, engine=engine)
    assert loss == 1.25 and grad.astype(float).tolist() == [[0, -0.5, 0], [0, 0, -0.5]]
    loss, grad = fl.nll_loss(log_probs, [1, 0], reduction="none", return_grad=True, engine=engine)
    assert loss.tolist() == [0.5, INF] and grad.astype(float).tolist() == [[0, -1, 0], [-1, 0, 0]]
    loss = fl.nll_loss(log_probs, [1, 0], weight=[0, 1, 1], engine=engine)
    assert loss == 0.5  # 0 times infinity is 0


@every_dtype
def test_margins_of_infinite_scores(engine, dtype):
    options = {"reduction": "none", "return_grad": True, "engine": engine}
    scores = np.array([[0.0, -INF, 0.5], [INF, 0.0, 0.0], [0.0, INF, 0.0], [-INF, 0.0, 0.0]], dtype)
    for p in (1, 2):
        loss, grad = fl.multi_margin_loss(scores, [0, 0, 0, 0], p=p, **options)
        assert loss == pytest.approx([1.5**p / 3, 0, INF, INF], rel=1e-6)
        assert not grad[1].any() and grad[0, 1] == 0
    loss, grad = fl.multilabel_margin_loss(scores, [[0, -1, 0]] * 4, **options)
    assert loss == pytest.approx([0.5, 0, INF, INF], rel=1e-6)
    assert grad[0].astype(float) == pytest.approx([-1 / 3, 0, 1 / 3], rel=1e-2)
    assert not grad[1].any()


@every_dtype
def test_margins_at_their_kinks(engine, dtype):
    options = {"reduction": "none", "return_grad": True, "engine": engine}
    loss, grad = fl.hinge_loss(np.array([1.0, -1.0, 0.5], dtype), [1, -1, 1], **options)
    assert loss.tolist() == [0, 0, 0.5] and grad.astype(float).tolist() == [0, 0, -1]
    scores = np.array([[1.0, 0.0, -1.0]], dtype)
    for loss, grad in (
        fl.multi_margin_loss(scores, [0], **options),
        fl.multi_margin_loss(scores, [0], p=2, **options),
        fl.multilabel_margin_loss(scores, [[0, -1, -1]], **options),
    ):
        assert loss == 0 and not grad.any()


def test_targets_of_zero_have_the_loss_of_the_margin(engine):
    loss, grad = fl.hinge_loss(np.array([3.0, -3.0]), [0, 0], margin=0.7, return_grad=True, engine=engine)
    assert loss == pytest.approx(0.7, rel=1e-15) and not grad.any()
    loss, grad = fl.soft_margin_loss(np.array([3.0, -3.0]), [0, 0], return_grad=True, engine=engine)
    assert loss == pytest.approx(math.log(2), rel=1e-14) and not grad.any()


@every_dtype
@every_class_shape
@pytest.mark.parametrize("function", [fl.nll_loss, fl.focal_cross_entropy], ids=lambda function: function.__name__)
def test_an_ignored_row_is_never_read(engine, dtype, shape, function):
    rng = np.random.default_rng(4)
    given = -rng.uniform(0.1, 3, shape).astype(dtype)
    target = rng.integers(0, shape[1], shape[:1] + shape[2:])
    target.flat[::2] = -100
    ignored = target == -100
    for reduction in ("mean", "none"):
        options = {"reduction": reduction, "return_grad": True, "engine": engine}
        loss, grad = function(given, target, **options)
        assert np.abs(loss).max() > 0
        for garbage in (NAN, INF, -INF):
            broken = np.where(np.expand_dims(ignored, 1), np.asarray(garbage, dtype), given)
            again, slope = function(broken, target, **options)
            assert same_bits(again, loss) and same_bits(slope, grad)
            assert not np.moveaxis(slope, 1, -1)[ignored].any()


@pytest.mark.parametrize("function", [fl.nll_loss, fl.focal_cross_entropy], ids=lambda function: function.__name__)
def test_the_mean_over_nothing(engine, function):
    given = np.full((3, 4), NAN, np.float32)
    for target, options in (
        (np.full(3, -100), {}),
        (np.full(3, 7), {"ignore_index": 7}),
        (np.zeros(3, int), {"sample_weight": np.zeros(3)}),
        (np.zeros(3, int), {"weight": [0, 1, 1, 1]}),
    ):
        source = given if (target != 0).all() else np.zeros((3, 4))
        keywords = {"return_grad": True, "engine": engine, **options}
        loss, grad = function(source, target, **keywords)
        assert math.isnan(loss) and not grad.any()
        loss, grad = function(source, target, empty="zero", **keywords)
        assert loss == 0 and not grad.any()
        with pytest.raises(ValueError, match="the mean is over nothing: every target is ignored or has weight 0"):
            function(source, target, empty="raise", **keywords)
        assert function(source, target, empty="raise", reduction="sum", **keywords)[0] == 0
    with pytest.raises(ValueError, match="the mean is over nothing: there are no targets"):
        function(np.zeros((0, 4)), np.zeros(0, int), empty="raise", engine=engine)


@every_case
@every_dtype
def test_nothing(engine, case, dtype):
    function, kind, options = case
    shapes = [(0, 4), (0, 4, 3), (2, 4, 0)]
    if kind in ("scores", "lists"):
        shapes = [(0, 4)]
    elif kind not in ("classes", "distributions"):
        shapes += [(0,)]
    for shape in shapes:
        given, target, options = batch(case, dtype, shape)
        options |= {"return_grad": True, "engine": engine}
        if function is fl.multilabel_soft_margin_loss and shape[-1] == 0:
            continue  # no labels, see below
        loss, grad = function(given, target, **options)
        assert math.isnan(loss) or "normalizer" in options
        assert grad.shape == given.shape and grad.dtype == dtype
        assert function(given, target, reduction="sum", **options)[0] == 0
        losses, _ = function(given, target, reduction="none", **options)
        assert losses.size == 0 and losses.dtype == compute_dtype(dtype)


def test_samples_without_labels(engine):
    z = np.zeros((3, 0))
    losses, grad = fl.multilabel_soft_margin_loss(z, z, reduction="none", return_grad=True, engine=engine)
    assert losses.shape == (3,) and np.isnan(losses).all() and grad.shape == (3, 0)
    assert math.isnan(fl.multilabel_soft_margin_loss(z, z, engine=engine))


TARGETS = [np.dtype(bool), *INTEGERS, *DTYPES, np.dtype(">i4"), np.dtype(">f8")]


@pytest.mark.parametrize("target_dtype", TARGETS, ids=str)
@every_dtype
def test_labels_of_every_dtype(engine, dtype, target_dtype):
    rng = np.random.default_rng(5)
    z, labels = rng.normal(0, 2, (13, 7)).astype(dtype), rng.integers(0, 2, (13, 7))
    probs = rng.uniform(0.1, 0.9, (13, 7)).astype(dtype)
    options = {"reduction": "none", "return_grad": True, "engine": engine}
    for function, given in (
        (fl.binary_cross_entropy, probs),
        (fl.sigmoid_focal_loss, z),
        (fl.multilabel_soft_margin_loss, z),
        (fl.kl_div, z),
    ):
        loss, grad = function(given, labels.astype(np.float32), **options)
        again, slope = function(given, labels.astype(target_dtype), **options)
        assert same_bits(again, loss) and same_bits(slope, grad), function.__name__


@pytest.mark.parametrize("target_dtype", [*"?bhilq", *DTYPES, np.dtype(">i2"), np.dtype(">f8")], ids=str)
@every_dtype
def test_signs_of_every_dtype(engine, dtype, target_dtype):
    """A boolean array says True for 1 and False for -1."""
    rng = np.random.default_rng(6)
    z, signs = rng.normal(0, 2, (13, 7)).astype(dtype), rng.choice([-1, 1], (13, 7))
    target = signs > 0 if target_dtype == "?" else signs.astype(target_dtype)
    options = {"reduction": "none", "return_grad": True, "engine": engine}
    for function in (fl.soft_margin_loss, fl.hinge_loss):
        loss, grad = function(z, signs, **options)
        again, slope = function(z, target, **options)
        assert same_bits(again, loss) and same_bits(slope, grad), function.__name__
        assert len(np.unique(np.sign(slope.astype(float)))) >= 2
    # Unsigned targets can't say -1: those of 0 are numbers like any.
    loss = fl.hinge_loss(z, np.zeros(z.shape, np.uint8), reduction="none", engine=engine)
    assert (loss == 1).all()


@pytest.mark.parametrize("target_dtype", [*INTEGERS, np.dtype(">i4")], ids=str)
@every_dtype
def test_indices_of_every_dtype(engine, dtype, target_dtype):
    rng = np.random.default_rng(7)
    z, target = rng.normal(0, 2, (13, 7)).astype(dtype), rng.integers(0, 7, 13)
    options = {"reduction": "none", "return_grad": True, "engine": engine}
    for function in (fl.nll_loss, fl.focal_cross_entropy, fl.multi_margin_loss):
        loss, grad = function(z, target, **options)
        again, slope = function(z, target.astype(target_dtype), **options)
        assert same_bits(again, loss) and same_bits(slope, grad), function.__name__
    lists = rng.integers(0, 7, (13, 7))  # rows full of labels: there is no -1 where the dtype has none
    lists[:, 1:] = lists[:, :1]
    loss, grad = fl.multilabel_margin_loss(z, lists, **options)
    again, slope = fl.multilabel_margin_loss(z, lists.astype(target_dtype), **options)
    assert loss.max() > 0 and same_bits(again, loss) and same_bits(slope, grad)


def test_half_targets_of_wide_input(engine):
    """Targets are read in their own dtype: probabilities of bfloat16 with float64 logits."""
    z, y = np.array([0.3, -0.7]), np.array([0.1, 0.6], BFLOAT16)
    assert fl.sigmoid_focal_loss(z, y, engine=engine) == fl.sigmoid_focal_loss(z, y.astype(np.float64), engine=engine)
