"""Dice, Jaccard, Tversky and Lovász losses: those of segmentation_models.pytorch and MONAI, and plain NumPy."""

import itertools
import warnings

import numpy as np
import pytest
from checks import BFLOAT16, DTYPES, assert_grad, assert_loss, compute_dtype
from test_numeric_gradients import derivative

import fastloss as fl
from fastloss.bench.calls import segmentation_models

MODES = ["multiclass", "multilabel", "binary"]
every_mode = pytest.mark.parametrize("mode", MODES)
SCORES = {fl.dice_loss: (0.5, 0.5), fl.jaccard_loss: (1.0, 1.0), fl.tversky_loss: (0.5, 0.5)}
every_score = pytest.mark.parametrize("function", SCORES, ids=lambda function: function.__name__)


@pytest.fixture
def smp(peer):
    return peer(segmentation_models())


@pytest.fixture
def monai(peer):
    return peer("monai.losses")


def batch(mode, seed=0, dtype=np.float64, shape=(2, 4, 5, 3)):
    rng = np.random.default_rng(seed)
    if mode == "binary":
        shape = (shape[0], 1, *shape[2:])
    logits = rng.normal(0, 2, shape).astype(dtype)
    target = rng.integers(0, 2, shape) if mode != "multiclass" else rng.integers(0, shape[1], shape[:1] + shape[2:])
    return logits, target


def check(result, theirs, logits, target, torch, note, limit=1e-6):
    tensor = torch.tensor(logits, requires_grad=True)
    expected = theirs(tensor, torch.tensor(target))
    expected.backward()
    loss, grad = result
    assert loss == pytest.approx(expected.item(), rel=limit, abs=1e-7), note
    slope = tensor.grad.numpy()
    error, scale = np.abs(grad - slope).max(), np.abs(slope).max()
    assert error <= limit * scale, note


@every_mode
@pytest.mark.parametrize("ignore_index", [None, 255, 0])
def test_segmentation_models(engine, smp, peer, mode, ignore_index):
    torch = peer("torch")
    logits, target = batch(mode)
    if ignore_index is not None:
        target.flat[::4] = ignore_index
    cases = [
        (fl.dice_loss, smp.DiceLoss, {}),
        (fl.jaccard_loss, smp.JaccardLoss, {}),
        (fl.tversky_loss, smp.TverskyLoss, {"alpha": 0.3, "beta": 0.7}),
        (fl.tversky_loss, smp.TverskyLoss, {"alpha": 0.3, "beta": 0.9, "gamma": 1.5}),
        (fl.tversky_loss, smp.TverskyLoss, {"alpha": 0.6, "beta": 0.4, "gamma": 0.75}),
    ]
    weights = [None] if mode == "binary" else [None, [0.5, 1.0, 2.0, 0.0]]
    for (ours, theirs, fixed), smooth, log_loss, weight in itertools.product(cases, [0.0, 1.0], [False, True], weights):
        options = {"smooth": smooth, "log_loss": log_loss, "ignore_index": ignore_index, **fixed}
        result = ours(logits, target, mode=mode, weight=weight, return_grad=True, engine=engine, **options)
        function = theirs(mode, class_weights=weight, **options)
        check(result, function, logits, target, torch, (ours.__name__, options, weight))


@every_mode
def test_segmentation_models_of_probabilities(engine, smp, peer, mode):
    torch = peer("torch")
    logits, target = batch(mode)
    probs = fl.sigmoid(logits, engine="reference") if mode != "multiclass" else fl.softmax(logits, 1)
    for ours, theirs in ((fl.dice_loss, smp.DiceLoss), (fl.jaccard_loss, smp.JaccardLoss)):
        result = ours(probs, target, mode=mode, from_logits=False, return_grad=True, engine=engine)
        check(result, theirs(mode, from_logits=False), probs, target, torch, ours.__name__)


@every_score
@every_mode
def test_an_absent_class_costs_nothing(engine, smp, peer, function, mode):
    torch = peer("torch")
    logits, target = batch(mode)
    if mode == "multiclass":
        target[target == 2] = 0
    else:
        target[:, -1] = 0
    theirs = getattr(smp, {"dice": "Dice", "jaccard": "Jaccard", "tversky": "Tversky"}[function.__name__[:-5]] + "Loss")
    result = function(logits, target, mode=mode, return_grad=True, engine=engine)
    if mode == "binary":
        assert result[0] == 0 and not result[1].any()
    else:
        check(result, theirs(mode), logits, target, torch, mode)
    counted = function(logits, target, mode=mode, absent="count", engine=engine)
    assert counted > result[0] + 0.1


@every_mode
@pytest.mark.parametrize("ignore_index", [None, 255])
@pytest.mark.parametrize("per_sample", [False, True])
def test_lovasz_of_segmentation_models(engine, smp, peer, mode, ignore_index, per_sample):
    torch = peer("torch")
    for seed in range(3):
        logits, target = batch(mode, seed, np.float32)  # its own is for float32 only
        if ignore_index is not None:
            target.flat[seed::3] = ignore_index
        options = {"mode": mode, "ignore_index": ignore_index}
        result = fl.lovasz_loss(logits, target, per_sample=per_sample, return_grad=True, engine=engine, **options)
        function = smp.LovaszLoss(per_image=per_sample, **options)
        check(result, function, logits, target, torch, seed, limit=1e-5)


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("batched", [False, True])
def test_monai(engine, monai, peer, softmax, batched):
    """How its options map is said in the docstring of dice_loss."""
    torch = peer("torch")
    mode = "multiclass" if softmax else "multilabel"
    logits, target = batch(mode)
    labels = target[:, None] if softmax else target.astype(float)
    theirs = {"softmax": softmax, "sigmoid": not softmax, "to_onehot_y": softmax, "batch": batched}
    ours = {"mode": mode, "per_sample": not batched, "absent": "count", "return_grad": True, "engine": engine}
    weight = [0.5, 1.0, 2.0, 0.5]
    for squared in (False, True):
        for function, jaccard in ((fl.dice_loss, False), (fl.jaccard_loss, True)):
            options = {"squared_pred": squared, "jaccard": jaccard, **theirs}
            result = function(logits, target, smooth=5e-6, squared=squared, **ours)
            check(result, monai.DiceLoss(**options), logits, labels, torch, options)
            # MONAI does not divide by the sum of the weights.
            result = function(logits, target, smooth=5e-6, squared=squared, weight=weight, **ours)
            result = [value * sum(weight) / 4 for value in result]
            check(result, monai.DiceLoss(weight=weight, **options), logits, labels, torch, options)
            # include_background=False
            result = function(logits, target, smooth=5e-6, squared=squared, weight=[0, 1, 1, 1], **ours)
            check(result, monai.DiceLoss(include_background=False, **options), logits, labels, torch, options)
    for alpha, beta in ((0.5, 0.5), (0.3, 0.9)):
        result = fl.tversky_loss(logits, target, smooth=1e-5, alpha=alpha, beta=beta, **ours)
        check(result, monai.TverskyLoss(alpha=alpha, beta=beta, **theirs), logits, labels, torch, (alpha, beta))


def plain(logits, target, mode, alpha, beta, *, axis=1, weight=None, ignore_index=None, smooth=0.0, eps=1e-7,
          log_loss=False, from_logits=True, per_sample=False, squared=False, absent="zero", gamma=1.0,
          reduction="mean"):  # fmt: skip
    """The docstring's formula, sample by sample and class by class."""
    z = np.moveaxis(logits.astype(np.float64), axis, 1)
    p = z
    if from_logits:
        p = np.exp(z - z.max(1, keepdims=True)) if mode == "multiclass" else 1 / (1 + np.exp(-z))
        p = p / p.sum(1, keepdims=True) if mode == "multiclass" else p
    if mode == "multiclass":
        y = np.stack([target == c for c in range(z.shape[1])], axis=1).astype(float)
        counts = np.broadcast_to((target != ignore_index)[:, None], z.shape)
    else:
        y = np.moveaxis(target, axis, 1).astype(float)
        counts = y != ignore_index
    groups = [[n] for n in range(len(z))] if per_sample else [list(range(len(z)))]
    losses = np.empty((len(groups), z.shape[1]))
    for (g, group), c in itertools.product(enumerate(groups), range(z.shape[1])):
        keep = counts[group, c]
        p_c, y_c = p[group, c][keep], y[group, c][keep]
        power = 2 if squared else 1
        i = (p_c * y_c).sum()
        below = i + alpha * ((p_c**power).sum() - i) + beta * ((y_c**power).sum() - i) + smooth
        score = (i + smooth) / max(below, eps)
        losses[g, c] = -np.log(max(score, eps)) if log_loss else 1 - score
        if absent == "zero" and not y_c.any():
            losses[g, c] = 0
    if reduction == "none":
        return (losses if per_sample else losses[0]) ** gamma
    means = np.average(losses, axis=1, weights=weight) ** gamma
    return means.mean() if reduction == "mean" else means.sum()


@every_score
@every_mode
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_formula(engine, function, mode, reduction):
    logits, target = batch(mode, 3)
    classes = logits.shape[1]
    if mode == "multiclass":
        target[0][target[0] == 3] = 1  # absent from the first sample only
    else:
        target[0, -1] = 0
    for per_sample, squared, absent, ignore_index, options in itertools.product(
        [False, True], [False, True], ["zero", "count"], [None, 0],
        [{}, {"smooth": 0.5, "eps": 30.0}, {"log_loss": True, "eps": 0.3}, {"from_logits": False}],
    ):  # fmt: skip
        given = np.abs(logits) / 9 if "from_logits" in options else logits
        options = {
            "per_sample": per_sample, "squared": squared, "absent": absent, "ignore_index": ignore_index,
            "reduction": reduction, **options,
        }  # fmt: skip
        if mode != "binary":
            options["weight"] = np.linspace(0, 2, classes)
        alpha, beta = SCORES[function]
        if function is fl.tversky_loss:
            alpha, beta = 0.2, 0.9
            options["gamma"] = 1.3
        expected = plain(given, target, mode, alpha, beta, **options)
        if function is fl.tversky_loss:
            options |= {"alpha": alpha, "beta": beta}
        loss = function(given, target, mode=mode, engine=engine, **options)
        assert np.shape(loss) == np.shape(expected)
        assert loss == pytest.approx(expected, rel=1e-12, abs=1e-14), options


@every_score
@every_mode
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_and_layouts(engine, function, mode, dtype):
    logits, target = batch(mode, 4, dtype, (3, 4, 9, 7))
    wide = logits.astype(np.float64)
    for per_sample, reduction, options in itertools.product(
        [False, True], ["mean", "none"], [{}, {"smooth": 1.0, "squared": True, "ignore_index": 0}]
    ):
        options = {"mode": mode, "per_sample": per_sample, "reduction": reduction, "return_grad": True, **options}
        loss, grad = function(wide, target, engine="reference", **options)
        same = function(logits, target, engine=engine, **options)
        assert same[1].dtype == dtype
        assert_loss(same[0], loss, dtype, options)
        assert_grad(same[1], grad, options)
        if reduction == "none":
            assert same[0].dtype == compute_dtype(dtype)
        for step in (2, -1):  # strided, and backwards
            memory = np.zeros(tuple(n * abs(step) for n in logits.shape), dtype)
            view = memory[(slice(None, None, step),) * 4]
            view[...] = logits
            assert_grad(function(view, target[..., ::1], engine=engine, **options)[1], grad, step)
            into = np.zeros(memory.shape, np.float32)[(slice(None, None, step),) * 4]
            function(view, target, engine=engine, out_grad=into, **options)
            limit = 1e-12 if dtype == np.float64 else 3e-6
            assert np.abs(into - grad).max() <= max(limit, 1e-7) * np.abs(grad).max()


@every_mode
@pytest.mark.parametrize("function", [*SCORES, fl.lovasz_loss], ids=lambda function: function.__name__)
def test_the_class_axis_may_be_any(engine, function, mode):
    logits, target = batch(mode, 5)
    for per_sample in (False, True):
        options = {"mode": mode, "per_sample": per_sample, "return_grad": True, "engine": engine}
        loss, grad = function(logits, target, **options)
        for axis in (2, 3, -1):
            moved = np.moveaxis(logits, 1, axis).copy()
            labels = target if mode == "multiclass" else np.moveaxis(target, 1, axis).copy()
            again, slope = function(moved, labels, axis=axis, **options)
            assert again == pytest.approx(loss, rel=1e-13)
            assert np.moveaxis(slope, axis, 1) == pytest.approx(grad, rel=1e-11, abs=1e-16)
    options["per_sample"] = False
    front = np.moveaxis(logits, 1, 0).copy()
    labels = target if mode == "multiclass" else np.moveaxis(target, 1, 0).copy()
    assert function(front, labels, axis=0, **options)[0] == pytest.approx(function(logits, target, **options)[0])


@pytest.mark.parametrize("function", [*SCORES, fl.lovasz_loss], ids=lambda function: function.__name__)
def test_a_binary_target_may_lack_the_class_axis(engine, function):
    logits, target = batch("binary", 6)
    options = {"mode": "binary", "return_grad": True, "engine": engine}
    loss, grad = function(logits, target, **options)
    for given, mask in (
        (logits, target[:, 0]),
        (logits[:, 0], target[:, 0]),
        (logits.ravel(), target.ravel()),
        (logits, target.astype(bool)),
        (logits, target.astype(np.uint8)),
        (logits, target.astype(np.float32)),
    ):
        again, slope = function(given, mask, **options)
        assert again == pytest.approx(loss, rel=1e-14)
        assert slope.shape == given.shape
        assert slope.ravel() == pytest.approx(grad.ravel(), rel=1e-12)
        out = np.full(given.shape, 7.0)
        assert function(given, mask, out_grad=out, **options)[1] is out
        assert np.array_equal(out, slope)


@every_mode
@pytest.mark.parametrize("function", [*SCORES, fl.lovasz_loss], ids=lambda function: function.__name__)
@pytest.mark.parametrize("dtype", [np.dtype(np.float32), np.dtype(np.float64), BFLOAT16], ids=str)
def test_ignored_targets_are_never_read(engine, function, mode, dtype):
    logits, target = batch(mode, 7, dtype)
    target.flat[::3] = 255
    ignored = target == 255
    where = np.broadcast_to(np.expand_dims(ignored, 1), logits.shape) if mode == "multiclass" else ignored
    for per_sample in (False, True):
        options = {"mode": mode, "ignore_index": 255, "per_sample": per_sample, "engine": engine}
        loss, grad = function(logits, target, return_grad=True, **options)
        assert loss > 0 and not grad[where].any()
        for garbage in (np.nan, np.inf, -np.inf):
            broken = np.where(where, np.asarray(garbage, dtype), logits)
            again, slope = function(broken, target, return_grad=True, **options)
            assert again == loss
            assert np.array_equal(slope, grad)
    loss, grad = function(np.full_like(logits, np.nan), np.full_like(target, 255), return_grad=True, **options)
    assert loss == 0 and not grad.any()


@every_mode
@pytest.mark.parametrize("function", [*SCORES, fl.lovasz_loss], ids=lambda function: function.__name__)
def test_nan_is_not_hidden(engine, function, mode):
    logits, target = batch(mode, 8)
    logits[1, 0, 2, 1] = np.nan
    assert np.isnan(function(logits, target, mode=mode, engine=engine))
    losses = function(logits, target, mode=mode, reduction="none", per_sample=True, engine=engine)
    clean = function(np.nan_to_num(logits), target, mode=mode, reduction="none", per_sample=True, engine=engine)
    assert np.array_equal(losses[0], clean[0])
    assert np.isnan(losses[1]).any()


@every_score
def test_infinities(engine, function):
    """-inf is a class of probability 0, and for masks inf is one of 1."""
    logits, target = batch("multiclass", 9)
    far = np.where(logits < -1, -800.0, logits)
    loss, grad = function(far, target, return_grad=True, engine=engine)
    again, slope = function(np.where(far == -800, -np.inf, far), target, return_grad=True, engine=engine)
    assert again == pytest.approx(loss, rel=1e-14)
    assert slope == pytest.approx(grad, rel=1e-12)
    assert not slope[far == -800].any() and np.isfinite(slope).all()
    logits, target = batch("multilabel", 9)
    loss, grad = function(np.sign(logits) * 800, target, mode="multilabel", return_grad=True, engine=engine)
    again, slope = function(np.sign(logits) * np.inf, target, mode="multilabel", return_grad=True, engine=engine)
    assert again == loss and not grad.any() and not slope.any()


@every_mode
@pytest.mark.parametrize("function", [*SCORES, fl.lovasz_loss], ids=lambda function: function.__name__)
def test_in_place_and_alone(engine, function, mode):
    for dtype, per_sample, reduction in itertools.product(DTYPES, [False, True], ["mean", "sum", "none"]):
        logits, target = batch(mode, 10, dtype, (3, 4, 17, 9))
        options = {"mode": mode, "per_sample": per_sample, "reduction": reduction, "engine": engine}
        loss, grad = function(logits, target, return_grad=True, **options)
        assert np.array_equal(function(logits, target, **options), loss)
        buffer = logits.copy()
        again, same = function(buffer, target, out_grad=buffer, **options)
        assert same is buffer
        assert np.array_equal(again, loss) and np.array_equal(same, grad)


@every_score
@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        (np.float32, (5, 3, 32, 32)),
        (np.float64, (5, 3, 16, 32)),
        (np.float16, (5, 3, 32, 32)),
        (np.float32, (2, 21, 50, 50)),
    ],
)
def test_images_that_end_where_a_step_of_the_kernels_does(engine, function, dtype, shape):
    logits, target = batch("multiclass", 5, dtype, shape)
    loss, grad = function(logits, target, return_grad=True, engine=engine)
    expected_loss, expected = function(logits.astype(np.float64), target, return_grad=True, engine="reference")
    assert loss == pytest.approx(expected_loss, rel=2e-6)
    limit = 1e-3 if dtype == np.float16 else 2e-6
    assert np.abs(grad - expected).max() <= limit * np.abs(expected).max()


@every_mode
@every_score
def test_threads(engine, function, mode):
    logits, target = batch(mode, 11, np.float32, (2, 5, 300, 150) if mode != "binary" else (2, 1, 500, 300))
    for per_sample in (False, True):
        options = {"mode": mode, "per_sample": per_sample, "return_grad": True, "engine": engine}
        loss, grad = function(logits, target, num_threads=1, **options)
        again, slope = function(logits, target, num_threads=2, **options)
        assert again == loss and np.array_equal(slope, grad)


@every_score
def test_upstream_gradients(engine, function):
    logits, target = batch("multiclass", 12)
    for per_sample, shape in ((False, (4,)), (True, (2, 4))):
        options = {"per_sample": per_sample, "reduction": "none", "return_grad": True, "engine": engine}
        upstream = np.random.default_rng(0).normal(0, 1, shape)
        total = 0.0
        for at in np.ndindex(shape):
            one = np.zeros(shape)
            one[at] = upstream[at]
            total = total + function(logits, target, grad_output=one, **options)[1]
        grad = function(logits, target, grad_output=upstream, **options)[1]
        assert grad == pytest.approx(total, rel=1e-10, abs=1e-15)
    grad = function(logits, target, return_grad=True, engine=engine)[1]
    assert function(logits, target, grad_output=-2.5, return_grad=True, engine=engine)[1] == pytest.approx(-2.5 * grad)


@every_score
def test_a_score_below_eps_has_no_slope(engine, function):
    logits, target = batch("multiclass", 17, shape=(2, 4, 3, 1))
    losses = function(logits, target, log_loss=True, reduction="none", engine=engine)
    options = {"log_loss": True, "eps": float(np.exp(-np.median(losses))), "engine": engine}
    bounded = function(logits, target, reduction="none", **options)
    assert np.array_equal(bounded, np.minimum(losses, np.median(losses)))
    loss, grad = function(logits, target, return_grad=True, **options)
    slope = derivative(lambda z: function(z, target, **options), logits)
    assert np.abs(slope).max() > 1e-3
    assert np.abs(grad - slope).max() <= 1e-8


@pytest.mark.parametrize("function", [*SCORES, fl.lovasz_loss], ids=lambda function: function.__name__)
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint64, ">i4"])
def test_integer_targets(engine, function, dtype):
    logits, target = batch("multiclass", 13)
    loss, grad = function(logits, target, return_grad=True, engine=engine)
    again, slope = function(logits, target.astype(dtype), return_grad=True, engine=engine)
    assert again == loss and np.array_equal(slope, grad)


@pytest.mark.parametrize("function", [*SCORES, fl.lovasz_loss], ids=lambda function: function.__name__)
def test_nothing(engine, function):
    for mode in MODES:
        logits, target = batch(mode, 14, shape=(2, 4, 0, 3))
        loss, grad = function(logits, target, mode=mode, return_grad=True, engine=engine)
        assert loss == 0 and grad.shape == logits.shape
    logits, target = batch("multiclass", 14, shape=(0, 4, 5, 3))
    options = {"per_sample": True, "return_grad": True, "engine": engine}
    assert function(logits, target, reduction="none", **options)[0].shape[0] == 0
    assert function(logits, target, reduction="sum", **options)[0] == 0


def test_lovasz_of_right_and_wrong_predictions(engine):
    target = np.array([[0, 1, 1, 2]])
    right = np.where(np.arange(3)[None, :, None] == target[:, None], 1.0, 0.0)
    wrong = np.roll(right, 1, axis=1)
    assert fl.lovasz_loss(right, target, from_logits=False, engine=engine) == 0
    assert fl.lovasz_loss(wrong, target, from_logits=False, engine=engine) == pytest.approx(1.0)
    # Where predictions are sure, the extension is the Jaccard loss itself.
    some = right.copy()
    some[0, :, 1] = [1, 0, 0]
    expected = fl.jaccard_loss(some, target, from_logits=False, engine=engine)
    assert fl.lovasz_loss(some, target, from_logits=False, engine=engine) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_lovasz_dtypes(engine, dtype):
    for mode, per_sample in itertools.product(MODES, [False, True]):
        logits, target = batch(mode, 15, dtype, (2, 3, 6, 7))
        options = {"mode": mode, "per_sample": per_sample, "return_grad": True}
        loss, grad = fl.lovasz_loss(logits.astype(np.float64), target, engine="reference", **options)
        again, slope = fl.lovasz_loss(logits, target, engine=engine, **options)
        assert slope.dtype == dtype
        assert_loss(again, loss, dtype, options)
        if dtype.itemsize > 2:  # equal errors of half types may take another order
            assert_grad(slope, grad, options)


def test_warnings_of_no_kind(engine):
    """Overflow and division by nothing are expected, and told by the result."""
    logits, target = batch("multiclass", 16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for function, given in itertools.product([*SCORES, fl.lovasz_loss], [logits * 1e300, logits * np.inf]):
            function(given, target, return_grad=True, engine=engine)
        fl.dice_loss(logits, np.full_like(target, 9), ignore_index=9, log_loss=True, eps=0.0, engine=engine)
