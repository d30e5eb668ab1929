"""The Numba engine against the reference, for every loss: layouts, dtypes, options, and what kernels get wrong."""

import itertools

import numpy as np
import pytest
from checks import assert_grad, assert_loss, same_bits

import fastloss as fl

if "numba" not in fl.engines():
    pytest.skip("no Numba", allow_module_level=True)

DTYPES = [np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.float16)]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
every_real = pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
every_reduction = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
# The classes last; in the middle with few and with many positions behind them; short, middling and long rows.
SHAPES = [(6,), (70, 4), (9, 40), (5, 300), (3, 1100), (4, 3, 10), (2, 3, 70), (2, 7, 9, 90)]


def compare(loss, given, target, **options):
    """The loss and gradient of both engines are the same; returns Numba's."""
    note = f"{given.shape} {given.dtype} { ({k: v for k, v in options.items() if np.ndim(v) == 0}) }"
    expected, expected_grad = loss(given.astype(np.float64), target, return_grad=True, engine="reference", **options)
    value, grad = loss(given, target, return_grad=True, engine="numba", **options)
    assert grad.dtype == given.dtype
    assert_same(np.asarray(value), np.asarray(expected), lambda a, b: assert_loss(a, b, given.dtype, note), note)
    assert_same(grad, expected_grad, lambda a, b: assert_grad(a, b, note), note)
    assert np.array_equal(loss(given, target, engine="numba", **options), value, equal_nan=True), note
    return value, grad


def assert_same(actual, expected, check, note):
    """NaN and infinities in the same places, and the rest as close as `check` demands."""
    assert np.array_equal(np.isnan(actual), np.isnan(expected)), note
    infinite = np.isinf(expected) | np.isinf(actual)
    with np.errstate(over="ignore"):
        assert np.array_equal(actual[infinite], expected[infinite].astype(actual.dtype)), note
    rest = np.isfinite(expected) & np.isfinite(actual)
    check(actual[rest], expected[rest])


def upstream(reduction, shape, rng):
    return rng.normal(0, 1, shape) if reduction == "none" else -1.5


def rows_of(shape):
    return shape[:1] + shape[2:] if len(shape) > 1 else ()


def layouts(given):
    """(array, class axis): the same numbers in the order given, with classes last, and as a view of the latter."""
    if given.ndim < 2:
        return [(given, 0)]
    last = np.ascontiguousarray(np.moveaxis(given, 1, -1))
    return [(given, 1), (last, -1), (np.moveaxis(last, -1, 1), 1), (np.repeat(given, 2, axis=0)[::2], 1)]


# ---- Over classes ---------------------------------------------------------------------------------------------------


@every_dtype
@every_reduction
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_class_losses(dtype, reduction, shape):
    rng = np.random.default_rng(1)
    rows = rows_of(shape)
    classes = shape[1] if len(shape) > 1 else shape[0]
    given = rng.normal(0, 4, shape).astype(dtype)
    target = np.asarray(rng.integers(0, classes, rows))
    if rows:
        target = np.where(rng.random(rows) < 0.2, -100, target)
    weights = {"weight": rng.random(classes).astype(np.float32), "sample_weight": rng.random(rows).astype(np.float32)}
    weights["weight"][0] = 0
    for values, axis in layouts(given):
        for options in ({}, weights, {"normalizer": 3.0}):
            options = {**options, "axis": axis, "reduction": reduction, "grad_output": upstream(reduction, rows, rng)}
            compare(fl.nll_loss, values, target, **options)
            for gamma in (0.5, 2.0, 3.5):
                compare(fl.focal_cross_entropy, values, target, gamma=gamma, **options)


@every_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_focal_cross_entropy_with_every_class(dtype, shape):
    rng = np.random.default_rng(2)
    rows = rows_of(shape)
    classes = shape[1] if len(shape) > 1 else shape[0]
    given = rng.normal(0, 4, shape).astype(dtype)
    target = rng.integers(0, classes, rows)
    probabilities = rng.dirichlet(np.ones(classes), rows).astype(np.float32)
    weight = rng.random(classes).astype(np.float32)
    for values, axis in layouts(given):
        spread = np.moveaxis(probabilities, -1, axis)
        for gamma, weights in itertools.product((0.5, 1.0, 2.0), ({}, {"weight": weight})):
            options = {"gamma": gamma, "axis": axis, **weights}
            compare(fl.focal_cross_entropy, values, target, label_smoothing=0.1, **options)
            compare(fl.focal_cross_entropy, values, target, softcap=3.0, **options)
            compare(fl.focal_cross_entropy, values, spread, **options)
            compare(fl.focal_cross_entropy, values, spread, label_smoothing=0.1, softcap=3.0, **options)


@every_dtype
@pytest.mark.parametrize("shape", [(70, 4), (5, 300), (2, 3, 70)], ids=str)
def test_gamma_0_is_cross_entropy_bit_for_bit(dtype, shape):
    rng = np.random.default_rng(3)
    given = rng.normal(0, 4, shape).astype(dtype)
    target = rng.integers(0, shape[1], rows_of(shape))
    for options in ({}, {"label_smoothing": 0.1}, {"softcap": 3.0}):
        plain = fl.cross_entropy(given, target, return_grad=True, engine="numba", **options)
        focal = fl.focal_cross_entropy(given, target, gamma=0, return_grad=True, engine="numba", **options)
        assert focal[0] == plain[0]
        assert same_bits(focal[1], plain[1])


@pytest.mark.parametrize("classes", [2, 40, 300])
@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_confident_rows_keep_their_digits(classes, gamma):
    given = np.zeros((3, classes), np.float32)
    given[:, 1] = [5, 12, 18]
    target = np.ones(3, np.int64)
    expected = fl.focal_cross_entropy(
        given.astype(np.float64), target, gamma=gamma, reduction="none", return_grad=True, engine="reference"
    )
    for values, axis in ((given, 1), (np.ascontiguousarray(given.T), 0)):
        loss, grad = fl.focal_cross_entropy(
            values, target, gamma=gamma, axis=axis, reduction="none", return_grad=True, engine="numba"
        )
        np.testing.assert_allclose(loss, expected[0], rtol=1e-5)
        np.testing.assert_allclose(grad if axis else grad.T, expected[1], rtol=1e-5)


@every_dtype
@every_reduction
@pytest.mark.parametrize("shape", [(6,), (70, 4), (9, 40), (3, 1100), (5, 1)], ids=str)
def test_margin_losses(dtype, reduction, shape):
    rng = np.random.default_rng(4)
    rows = shape[:-1]
    given = rng.normal(0, 2, shape).astype(dtype)
    target = rng.integers(0, shape[-1], rows)
    labels = rng.integers(-1, shape[-1], shape)
    for values, _ in layouts(given)[:: 1 if rows else 3]:
        if values.shape != shape:
            continue
        options = {"reduction": reduction, "grad_output": upstream(reduction, rows, rng)}
        compare(fl.multilabel_margin_loss, values, labels, **options)
        for power, weight in itertools.product((1, 2), (None, rng.random(shape[-1]).astype(np.float32))):
            compare(fl.multi_margin_loss, values, target, p=power, weight=weight, margin=0.75, **options)


@every_real
def test_class_losses_of_extreme_logits(dtype):
    top = 1e4 if dtype == np.float32 else 1e300
    rows = [[-np.inf, 0, 1], [np.inf, 0, 1], [-np.inf] * 3, [np.nan, 0, 1], [top, 0, -top], [0, 0, top], [0, 0, 0]]
    for target in (np.zeros(7, np.int64), np.full(7, 2), np.full(7, -100)):
        wide = np.concatenate([rows, np.full((7, 400), -np.inf)], axis=1).astype(dtype)
        for given in (np.array(rows, dtype), wide):
            for gamma in (0.5, 2.0):
                compare(fl.focal_cross_entropy, given, target, gamma=gamma, reduction="none")
                across = np.tile(given.T, (1, 20))
                compare(fl.focal_cross_entropy, across, np.tile(target, 20), gamma=gamma, axis=0, reduction="none")
            compare(fl.nll_loss, given, target, reduction="none")
            compare(fl.nll_loss, given, target, weight=np.zeros(given.shape[1]), reduction="none")
    given, target = np.array(rows, dtype), np.array([0, 1, 2, 1, 1, 2, 0])
    compare(fl.multi_margin_loss, given, target, reduction="none")
    compare(fl.multi_margin_loss, given[:4], target[:4], p=2, reduction="none")
    compare(fl.multilabel_margin_loss, given, np.array([[1, -1, -1]] * 7), reduction="none")
    compare(fl.multilabel_margin_loss, given, np.array([[0, 2, -1]] * 7), reduction="none")


def test_margins_are_exact_at_the_kink():
    given = np.array([[0.7, 0.0], [0.7000001, 0.0], [0.6999999, 0.0]], np.float32)
    compare(fl.multi_margin_loss, given, np.zeros(3, np.int64), margin=0.7, reduction="none")


# ---- Element by element ---------------------------------------------------------------------------------------------

ELEMENTS = [
    *((fl.sigmoid_focal_loss, {"alpha": a, "gamma": g}) for a in (None, 0.25) for g in (0.0, 0.5, 1.0, 2.0, 3.5)),
    (fl.binary_cross_entropy, {}),
    (fl.soft_margin_loss, {}),
    (fl.hinge_loss, {"margin": 0.75}),
    (fl.kl_div, {}),
    (fl.kl_div, {"log_target": True}),
]


def element_batch(loss, options, shape, dtype, rng):
    given, label = rng.normal(0, 4, shape), np.asarray(rng.random(shape))
    if loss is fl.binary_cross_entropy:
        return np.clip(given, 0, 1).astype(dtype), np.where(label < 0.3, np.round(label), label)
    if loss is fl.sigmoid_focal_loss:
        return given.astype(dtype), np.where(label < 0.6, label < 0.3, label)
    if loss is fl.kl_div:
        return -np.abs(given).astype(dtype), np.log(label) if options else np.where(label < 0.3, 0, label)
    return given.astype(dtype), label < 0.3 if rng.random() < 0.5 else np.where(label < 0.3, -1, 1)


@every_dtype
@every_reduction
@pytest.mark.parametrize("loss, options", ELEMENTS)
def test_element_losses(dtype, reduction, loss, options):
    rng = np.random.default_rng(5)
    for shape in ((), (1,), (700,), (3, 5, 40)):
        given, target = element_batch(loss, options, shape, dtype, rng)
        more = {**options, "reduction": reduction, "grad_output": upstream(reduction, shape, rng)}
        if loss is fl.binary_cross_entropy:
            more["weight"] = rng.integers(0, 3, shape[-1:])
        compare(loss, given, target, **more)
        if given.ndim > 1:
            compare(loss, np.asfortranarray(given), target, **more)


@every_dtype
@every_reduction
def test_multilabel_soft_margin(dtype, reduction):
    rng = np.random.default_rng(6)
    given, target = rng.normal(0, 4, (30, 7)).astype(dtype), rng.random((30, 7)) < 0.5
    for weight in (None, rng.random(7).astype(np.float32)):
        more = {"weight": weight, "reduction": reduction, "grad_output": upstream(reduction, (30,), rng)}
        compare(fl.multilabel_soft_margin_loss, given, target, **more)


@every_real
@pytest.mark.parametrize("loss, options", ELEMENTS)
def test_element_losses_of_extreme_numbers(dtype, loss, options):
    numbers = [0, 1, -1, 1e-30, 80, -80, 120, -120, 1e4, -1e4, np.inf, -np.inf, np.nan]
    targets = [0, 1, 0.5]
    if loss is fl.binary_cross_entropy:
        numbers = [0, 1, 0.5, 1e-30, 1 - 2**-20, np.nan]
    elif loss in (fl.soft_margin_loss, fl.hinge_loss):
        targets = [-1, 1]
    elif loss is fl.kl_div:
        targets = [0, -1, -80, -np.inf] if options else [0, 1, 0.5, 1e-30]
    given, target = (np.array(each, dtype) for each in zip(*itertools.product(numbers, targets), strict=True))
    with np.errstate(all="ignore"):
        compare(loss, given, target, reduction="none", **options)


def test_the_first_number_that_is_no_probability():
    probs = np.full((3, 4), 0.5, np.float32)
    probs[1, 2] = 1.0000001
    grad = np.full((3, 4), 7, np.float32)
    with pytest.raises(ValueError, match=r"probs\[1, 2\] is 1.*, but probabilities lie in \[0, 1\]"):
        fl.binary_cross_entropy(probs, np.zeros((3, 4)), out_grad=grad, engine="numba")
    assert (grad == 7).all()


# ---- Overlap --------------------------------------------------------------------------------------------------------

OVERLAP_SHAPES = [(50, 4), (2, 3, 10), (2, 3, 90), (3, 5, 9, 40), (2, 1, 300), (300, 3), (4, 700), (2, 3, 2000)]
OVERLAP_OPTIONS = [
    {"squared": squared, "per_sample": per_sample, "ignore_index": ignore_index}
    for squared, per_sample, ignore_index in itertools.product((False, True), (False, True), (None, 255))
]


def overlap_batch(shape, dtype, ignore_index, seed=7):
    """Logits, class indices, and masks."""
    rng = np.random.default_rng(seed)
    rows = rows_of(shape)
    target, masks = rng.integers(0, shape[1], rows), (rng.random(shape) < 0.4).astype(np.uint8)
    if ignore_index is not None:
        target[rng.random(rows) < 0.2] = ignore_index
        masks[rng.random(shape) < 0.2] = ignore_index
    return rng.normal(0, 3, shape).astype(dtype), target, masks


@every_dtype
@pytest.mark.parametrize("options", OVERLAP_OPTIONS)
@pytest.mark.parametrize("shape", OVERLAP_SHAPES, ids=str)
def test_overlap_losses(dtype, options, shape):
    given, target, masks = overlap_batch(shape, dtype, options["ignore_index"])
    with np.errstate(over="ignore"):
        probabilities = 1 / (1 + np.exp(-given))
    for values, axis in layouts(given):
        compare(fl.dice_loss, values, target, axis=axis, grad_output=-1.5, **options)
        spread = np.moveaxis(masks, 1, axis)
        compare(fl.jaccard_loss, values, spread, axis=axis, mode="multilabel", reduction="none", **options)
    compare(fl.dice_loss, probabilities, target, from_logits=False, reduction="sum", **options)
    compare(fl.dice_loss, probabilities, masks, from_logits=False, mode="multilabel", **options)
    compare(fl.dice_loss, given, masks, mode="binary", **options)
    more = {name: value for name, value in options.items() if name != "squared"}
    weight = np.arange(1, shape[1] + 1)
    compare(
        fl.tversky_loss,
        given,
        target,
        alpha=0.3,
        beta=0.7,
        gamma=0.75,
        smooth=1.0,
        log_loss=True,
        weight=weight,
        **more,
    )


@every_dtype
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("options", OVERLAP_OPTIONS)
def test_overlap_with_cross_entropy(dtype, gamma, options):
    for shape in ((50, 4), (2, 3, 90), (4, 700)):
        given, target, _ = overlap_batch(shape, dtype, options["ignore_index"])
        entropy = {"ignore_index": options["ignore_index"] or -100, "weight": np.arange(shape[1]) / shape[1]}
        dice = (0.7, fl.dice_loss, options)
        focal = (0.3, fl.focal_cross_entropy, {**entropy, "gamma": gamma})
        for parts in ([(0.5, fl.cross_entropy, entropy), dice], [(0.5, fl.cross_entropy, entropy), focal, dice]):
            compare(fl.combine(parts), given, target, grad_output=-1.5)
            compare(fl.combine(parts), given, target, reduction="sum")


@every_real
def test_confident_overlaps_keep_their_digits(dtype):
    given = np.zeros((2, 3, 200), dtype)
    target = np.random.default_rng(8).integers(0, 3, (2, 200))
    np.put_along_axis(given, target[:, None], 14, axis=1)
    expected = fl.dice_loss(given.astype(np.float64), target, return_grad=True, engine="reference")[1]
    grad = fl.dice_loss(given, target, return_grad=True, engine="numba")[1]
    np.testing.assert_allclose(grad, expected, rtol=2e-5 if dtype == np.float32 else 1e-12)


@every_real
@pytest.mark.parametrize("shape", [(20, 3), (2, 3, 90)], ids=str)
def test_overlap_of_extreme_logits(dtype, shape):
    for value in (np.inf, -np.inf, np.nan, 1e4, -1e4):
        given, target, masks = overlap_batch(shape, dtype, None)
        given[1, 2, ...] = value
        for options in ({}, {"per_sample": True}, {"squared": True}):
            compare(fl.dice_loss, given, target, reduction="none", **options)
            compare(fl.dice_loss, given, masks, mode="multilabel", reduction="none", **options)
        target[1, ...] = 255  # never read
        masks[1, ...] = 255
        loss, grad = compare(fl.dice_loss, given, target, ignore_index=255)
        assert np.isfinite(loss) and np.isfinite(grad).all() and not grad[1].any()
        loss, grad = compare(fl.dice_loss, given, masks, ignore_index=255, mode="multilabel")
        assert np.isfinite(loss) and np.isfinite(grad).all() and not grad[1].any()


def test_overlap_of_nothing():
    for shape in ((0, 3), (0, 3, 5), (2, 3, 0)):
        for per_sample in (False, True):
            given, target, masks = overlap_batch(shape, np.float32, None)
            compare(fl.dice_loss, given, target, per_sample=per_sample)
            compare(fl.dice_loss, given, masks, per_sample=per_sample, mode="multilabel")


# ---- All of them ----------------------------------------------------------------------------------------------------


def every_loss(shape, dtype, seed=9):
    """(name, a function of the input and options, the input)."""
    rng = np.random.default_rng(seed)
    given, target, masks = overlap_batch(shape, dtype, None, seed)
    probabilities = np.abs(np.sin(given)).astype(dtype)
    entropies = [(0.5, fl.cross_entropy), (0.5, fl.focal_cross_entropy), (0.5, fl.dice_loss)]

    def case(loss, given, target, **options):
        return loss.__name__, lambda z, **more: loss(z, target, engine="numba", **options, **more), given

    yield case(fl.nll_loss, given, target)
    yield case(fl.focal_cross_entropy, given, target)
    yield case(fl.focal_cross_entropy, given, target, label_smoothing=0.1)
    yield case(fl.binary_cross_entropy, probabilities, masks)
    yield case(fl.sigmoid_focal_loss, given, masks)
    yield case(fl.soft_margin_loss, given, masks == 1)
    yield case(fl.hinge_loss, given, masks == 1)
    yield case(fl.kl_div, given, probabilities)
    yield case(fl.dice_loss, given, target)
    yield case(fl.dice_loss, given, masks, mode="multilabel")
    yield case(fl.dice_loss, probabilities, target, from_logits=False)
    yield case(fl.combine(entropies), given, target)
    if len(shape) == 2:
        yield case(fl.multi_margin_loss, given, target)
        yield case(fl.multi_margin_loss, given, target, p=2)
        yield case(fl.multilabel_margin_loss, given, rng.integers(-1, shape[1], shape))


@every_dtype
@pytest.mark.parametrize("shape", [(70, 4), (9, 40), (5, 300), (2, 3, 10), (2, 3, 90)], ids=str)
def test_in_place_and_other_outputs(dtype, shape):
    for name, loss, given in every_loss(shape, dtype):
        value, grad = loss(given, return_grad=True)
        z = given.copy()
        again, same = loss(z, out_grad=z)
        assert same is z and again == value and same_bits(z, grad), name
        view = np.moveaxis(np.moveaxis(given, 1, -1).copy(), -1, 1)
        value, grad = loss(view, return_grad=True)
        again, same = loss(view, out_grad=view)
        assert same is view and again == value and same_bits(view, grad), name
        wide = np.full(shape, 7.0)
        loss(given, out_grad=wide)
        with np.errstate(over="ignore"):
            assert same_bits(wide.astype(given.dtype), loss(given, return_grad=True)[1]), name


@every_real
@pytest.mark.parametrize("shape", [(30000, 4), (700, 300), (4, 5, 130, 70)], ids=str)
def test_same_bits_for_any_number_of_threads(dtype, shape):
    for name, loss, given in every_loss(shape, dtype):
        value, grad = loss(given, return_grad=True, num_threads=1)
        for threads in (2, 3):
            again, other = loss(given, return_grad=True, num_threads=threads)
            assert again == value and same_bits(other, grad), name
        assert loss(given, num_threads=2) == value, name


@every_real
def test_evaluate_is_the_same_for_any_number_of_threads(dtype):
    given, target, _ = overlap_batch((3, 20, 90, 70), dtype, 255)
    expected = fl.evaluate(given, target, ignore_index=255, return_lse=True, engine="numba", num_threads=1)
    for threads in (2, 3):
        result = fl.evaluate(given, target, ignore_index=255, return_lse=True, engine="numba", num_threads=threads)
        assert (result.loss, result.topk, result.entropy) == (expected.loss, expected.topk, expected.entropy)
        assert same_bits(result.lse, expected.lse)


@pytest.mark.parametrize("bad", [-1, 4, -(2**63), 2**63 - 1])
def test_nothing_is_written_before_an_error(bad):
    given, target = np.zeros((5, 4), np.float32), np.zeros(5, np.int64)
    target[3] = bad
    losses = [fl.nll_loss, fl.focal_cross_entropy, fl.multi_margin_loss, fl.dice_loss]
    losses.append(fl.combine([(1.0, fl.cross_entropy), (1.0, fl.dice_loss)]))
    for loss in losses:
        grad = np.full((5, 4), 7, np.float32)
        with pytest.raises(IndexError, match=rf"target\[3\] is {bad}, but"):
            loss(given, target, out_grad=grad, engine="numba")
        assert (grad == 7).all(), loss
