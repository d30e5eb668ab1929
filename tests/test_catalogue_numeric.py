"""Every loss of the catalogue, over its options: derivatives, dtypes, layouts, in place, alone, threads."""

import itertools

import numpy as np
import pytest
from checks import BFLOAT16, DTYPES, assert_grad, assert_loss, compute_dtype, misaligned, same_bits
from test_numeric_gradients import derivative

import fastloss as fl
from fastloss.catalogue import LOSSES

# (loss, what its arguments hold, options). "classes", "rows" and "elements" stand for arrays of weights.
CASES = [
    (fl.binary_cross_entropy, "probs", {}),
    (fl.binary_cross_entropy, "probs", {"weight": "elements"}),
    (fl.sigmoid_focal_loss, "logits", {}),
    (fl.sigmoid_focal_loss, "logits", {"alpha": None, "gamma": 0.5}),
    (fl.sigmoid_focal_loss, "logits", {"alpha": 0.9, "gamma": 3.7}),
    (fl.multilabel_soft_margin_loss, "logits", {}),
    (fl.multilabel_soft_margin_loss, "logits", {"weight": "elements"}),
    (fl.soft_margin_loss, "signs", {}),
    (fl.hinge_loss, "signs", {}),
    (fl.hinge_loss, "signs", {"margin": 0.25}),
    (fl.kl_div, "logs", {}),
    (fl.kl_div, "logs of logs", {"log_target": True}),
    (fl.nll_loss, "classes", {}),
    (fl.nll_loss, "classes", {"weight": "classes", "sample_weight": "rows", "ignore_index": 1}),
    (fl.nll_loss, "classes", {"normalizer": 7.0, "sample_weight": "rows"}),
    (fl.focal_cross_entropy, "classes", {}),
    (fl.focal_cross_entropy, "classes", {"gamma": 0.5, "weight": "classes", "ignore_index": 1}),
    (fl.focal_cross_entropy, "classes", {"gamma": 1.0, "label_smoothing": 0.2, "sample_weight": "rows"}),
    (fl.focal_cross_entropy, "classes", {"gamma": 3.7, "softcap": 2.0, "normalizer": 7.0}),
    (fl.focal_cross_entropy, "distributions", {"weight": "classes", "sample_weight": "rows"}),
    (fl.focal_cross_entropy, "distributions", {"gamma": 0.5, "label_smoothing": 0.1, "softcap": 3.0}),
    (fl.multi_margin_loss, "scores", {}),
    (fl.multi_margin_loss, "scores", {"p": 2, "margin": 0.5, "weight": "classes"}),
    (fl.multilabel_margin_loss, "lists", {}),
    (fl.dice_loss, "classes", {}),
    (fl.dice_loss, "masks", {"mode": "multilabel", "smooth": 1.0, "squared": True, "per_sample": True}),
    (fl.jaccard_loss, "classes", {"weight": "classes", "ignore_index": 1, "log_loss": True}),
    (fl.jaccard_loss, "masks", {"mode": "binary", "absent": "count"}),
    (fl.jaccard_loss, "classes", {"eps": 100.0}),  # more than any denominator
    (fl.tversky_loss, "classes", {"alpha": 0.3, "beta": 0.9, "gamma": 1.5, "per_sample": True}),
    (fl.tversky_loss, "masks", {"mode": "multilabel", "gamma": 0.75, "weight": "classes", "log_loss": True}),
    (fl.lovasz_loss, "classes", {"ignore_index": 1}),
    (fl.lovasz_loss, "masks", {"mode": "multilabel", "per_sample": True}),
]
BY_CLASS = ("classes", "distributions", "masks")  # the class axis may be any
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0].__name__}-{case[1]}-{sorted(case[2])}")
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def batch(case, dtype=np.float64, shape=(3, 4, 2), seed=0, axis=1):
    """Input, target and options of a case; the class axis is `axis`, as in shape."""
    _, kind, options = case
    rng = np.random.default_rng(seed)
    if kind in ("scores", "lists"):
        shape, axis = (shape[0], int(np.prod(shape[1:]))), 1
    rows = shape[:axis] + shape[axis + 1 :]
    given = rng.normal(0, 2, shape)
    if kind == "probs":
        given = rng.uniform(0.05, 0.95, shape)
    elif kind.startswith("logs"):
        given = np.log(rng.uniform(0.05, 1, shape))
    if kind in ("classes", "scores"):
        target = rng.integers(0, shape[axis], rows)
    elif kind == "lists":
        target = rng.integers(-1, shape[1], shape)
    elif kind == "distributions":
        target = np.moveaxis(rng.dirichlet(np.ones(shape[axis]), rows), -1, axis)
    elif kind == "signs":
        target = rng.choice([-1, 1], shape)
    elif kind == "masks":
        target = rng.integers(0, 2, shape)
    else:
        target = np.log(rng.uniform(0.05, 1, shape)) if kind == "logs of logs" else rng.random(shape)
    shapes = {"classes": shape[axis : axis + 1], "rows": rows, "elements": shape[-1:]}
    options = {
        name: as_float32(rng.uniform(0.2, 2, shapes[value])) if name.endswith("weight") else value
        for name, value in options.items()
    }
    if kind in BY_CLASS:
        options["axis"] = axis
    return given.astype(dtype), as_float32(target), options


def as_float32(values):
    """Numbers that float32 holds exactly, so that what is compared differs in the input's dtype only."""
    return values.astype(np.float32) if values.dtype.kind == "f" else values


def loss_shape(case, given, target, options):
    """The shape of the loss for reduction "none"."""
    function, *_ = case
    return np.shape(function(given, target, reduction="none", engine="reference", **options))


def test_every_loss_has_a_case():
    assert {function.__name__ for function, *_ in CASES} | {
        "cross_entropy",
        "binary_cross_entropy_with_logits",
    } == set(LOSSES)


@every_case
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gradients_are_derivatives(engine, case, reduction):
    function = case[0]
    for seed in range(2):
        given, target, options = batch(case, seed=seed)
        if "ignore_index" in options:
            assert (target == options["ignore_index"]).any()
        options |= {"reduction": reduction, "engine": engine}
        upstream = -1.7
        if reduction == "none":
            upstream = np.random.default_rng(1).normal(0, 1, np.shape(function(given, target, **options)))
        _, grad = function(given, target, return_grad=True, grad_output=upstream, **options)
        slope = derivative(lambda x, u=upstream, o=options, t=target: np.sum(u * function(x, t, **o)), given)
        assert np.abs(slope).max() > 1e-3
        assert np.abs(grad - slope).max() <= 2e-8 * max(1, np.abs(slope).max())


def test_batchmean_is_the_sum_over_the_first_axis(engine):
    given, target, _ = batch((fl.kl_div, "logs", {}))
    total, slope = fl.kl_div(given, target, reduction="sum", return_grad=True, engine=engine)
    loss, grad = fl.kl_div(given, target, reduction="batchmean", return_grad=True, grad_output=-2.0, engine=engine)
    assert loss == pytest.approx(total / 3, rel=1e-14)
    assert grad == pytest.approx(slope * -2 / 3, rel=1e-14)


def layouts(array):
    """The same numbers, lying in memory in other ways."""
    for step in (2, -1):
        memory = np.empty([n * abs(step) for n in array.shape], array.dtype)
        view = memory[(slice(None, None, step),) * array.ndim]
        view[...] = array
        yield view
    yield np.asfortranarray(array)
    yield misaligned(array)
    yield array.astype(array.dtype.newbyteorder()) if array.dtype != BFLOAT16 else array.copy()


@every_case
@every_dtype
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_dtypes_and_layouts(engine, case, dtype, reduction):
    function, kind, _ = case
    if function is fl.lovasz_loss and dtype.itemsize == 2:
        pytest.skip("the order of equal errors: see test_overlap.py")
    for shape, axis in [((3, 5, 7), 1), ((5, 3, 7), 0), ((4, 3, 33), -1)]:
        if axis != 1 and (kind not in BY_CLASS or "per_sample" in case[2]):
            continue
        given, target, options = batch(case, dtype, shape, 3, axis % 3)
        upstream = -0.3
        if reduction == "none":
            upstream = as_float32(np.random.default_rng(2).normal(0, 1, loss_shape(case, given, target, options)))
        options |= {"reduction": reduction, "return_grad": True, "grad_output": upstream}
        loss, grad = function(given.astype(np.float64), target, engine="reference", **options)
        assert np.abs(grad).max() > 0
        for view, labels in zip([given, *layouts(given)], [target, *layouts(target)], strict=True):
            note = f"{shape}, {view.strides}, {options}"
            again, slope = function(view, labels, engine=engine, **options)
            assert slope.dtype == dtype and slope.dtype.isnative
            if reduction == "none":
                assert again.dtype == compute_dtype(dtype)
            else:
                assert type(again) is float
            assert_loss(again, loss, dtype, note)
            assert_grad(slope, grad, note)
            out = np.full([2 * n for n in given.shape], 7, dtype)
            part = out[(slice(None, None, 2),) * out.ndim]
            assert function(view, labels, engine=engine, out_grad=part, **options)[1] is part
            assert_grad(part, grad, note)
            part[...] = 7
            assert (out == 7).all()


@every_case
def test_out_grad_of_another_dtype(engine, case):
    function = case[0]
    for dtype, out_dtype in itertools.permutations(DTYPES, 2):
        given, target, options = batch(case, dtype, (3, 5, 7), 4)
        out = np.full(given.shape, 7, out_dtype)
        loss, grad = function(given, target, out_grad=out, engine=engine, **options)
        assert grad is out
        same_loss, same = function(given, target, return_grad=True, engine=engine, **options)
        assert loss == same_loss
        wide = same.astype(np.float64)
        limit = 3e-6 * np.abs(wide).max()
        for kind in {dtype, out_dtype}:
            if kind.itemsize == 2:
                limit = limit + np.abs(wide) * (2**-7 if kind == BFLOAT16 else 2**-10) + 2.0**-24
        assert (np.abs(grad.astype(np.float64) - wide) <= limit).all(), (dtype, out_dtype)


@every_case
@every_dtype
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_in_place_and_alone(engine, case, dtype, reduction):
    """The gradient may replace its input; and the loss is the same where no gradient is computed, bit for bit."""
    function = case[0]
    for shape in [(3, 5, 7), (2, 3, 40), (70, 6, 1)]:
        given, target, options = batch(case, dtype, shape, 5)
        options |= {"reduction": reduction, "engine": engine}
        loss, grad = function(given, target, return_grad=True, **options)
        assert same_bits(function(given, target, **options), loss)
        for buffer in (given.copy(), next(layouts(given))):
            separate = function(buffer, target, return_grad=True, **options)[1]
            again, same = function(buffer, target, out_grad=buffer, **options)
            assert same is buffer
            assert np.array_equal(same, separate)
            assert_loss(again, loss, dtype)
        assert grad.any()


@every_case
def test_threads_do_not_change_a_bit(engine, case):
    function, kind, _ = case
    shape = (600, 7, 50) if kind != "lists" else (2100, 10, 10)
    if function is fl.lovasz_loss:
        shape = (2, 3, 35000)
    given, target, options = batch(case, np.float32, shape, 6)
    assert given.size > 200_000
    for reduction in ("mean", "none"):
        keywords = {"reduction": reduction, "return_grad": True, "engine": engine, **options}
        loss, grad = function(given, target, num_threads=1, **keywords)
        again, slope = function(given, target, num_threads=2, **keywords)
        assert same_bits(again, loss) and same_bits(slope, grad)


@every_dtype
@pytest.mark.parametrize("shape", [(3, 2), (9, 5), (11, 10), (9, 40), (5, 1500), (2, 6, 13), (2, 700, 3)], ids=str)
def test_no_focus_is_cross_entropy(engine, dtype, shape):
    """Bit for bit: the losses, and the gradients, with every option."""
    rng = np.random.default_rng(7)
    given, rows = rng.normal(0, 3, shape).astype(dtype), shape[:1] + shape[2:]
    indices = rng.integers(0, shape[1], rows)
    indices.flat[1] = -100
    probabilities = np.moveaxis(rng.dirichlet(np.ones(shape[1]), rows), -1, 1).astype(np.float32)
    weight, sample_weight = as_float32(rng.uniform(0.2, 2, shape[1])), as_float32(rng.uniform(0.2, 2, rows))
    for target, reduction, options in itertools.product(
        (indices, probabilities),
        ("mean", "none"),
        ({}, {"weight": weight, "sample_weight": sample_weight}, {"label_smoothing": 0.1, "softcap": 5.0}),
    ):
        keywords = {"reduction": reduction, "return_grad": True, "engine": engine, **options}
        loss, grad = fl.cross_entropy(given, target, **keywords)
        again, slope = fl.focal_cross_entropy(given, target, gamma=0.0, **keywords)
        assert same_bits(again, loss) and same_bits(slope, grad)
        assert not np.array_equal(fl.focal_cross_entropy(given, target, gamma=1.0, **keywords)[0], loss)


SIZES = [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 129, 257, 1000, 1025, 5003]


@pytest.mark.parametrize("dtype", [np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.float16)], ids=str)
@every_case
def test_sizes(engine, case, dtype):
    """Kernels differ by the number of classes or elements: every kind, against float64 of the reference."""
    function, kind, _ = case
    if function is fl.lovasz_loss and dtype != np.float64:
        pytest.skip("errors that differ in float64 only, and so their order")
    for size in SIZES:
        for shape in [(3, size, 1), *([(2, 3, size)] if kind in BY_CLASS else [])]:
            given, target, options = batch(case, dtype, shape, size)
            if options.get("ignore_index", -1) >= shape[1]:
                continue
            options |= {"reduction": "sum", "return_grad": True}
            loss, grad = function(given.astype(np.float64), target, engine="reference", **options)
            again, slope = function(given, target, engine=engine, **options)
            assert_loss(again, loss, dtype, shape)
            assert_grad(slope, grad, shape)
