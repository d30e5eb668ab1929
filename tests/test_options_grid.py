"""All options combined, loss and gradient, against the oracle in 100 digits."""

import itertools
from functools import cache

import numpy as np
import oracle
import pytest
from checks import DTYPES, INTEGERS, assert_grad, assert_loss, compute_dtype

import fastloss as fl

LAYOUTS = [((5, 4), 1), ((4, 5), 0), ((2, 3, 4), -1), ((2, 4, 3), 1)]
OPTIONS = list(itertools.product([False, True], [False, True], [0.0, 0.1], [-100, 2], [0.0, 1e-2], [None, 3.0]))


@cache
def batch(dtype, shape, axis, is_probabilities):
    rng = np.random.default_rng(7)
    logits = rng.normal(0, 2, shape).astype(dtype)
    classes = shape[axis]
    rows = tuple(np.delete(shape, axis))
    working = compute_dtype(dtype)
    if is_probabilities:
        target = np.moveaxis(rng.dirichlet(np.ones(classes), rows), -1, axis).astype(working)
    else:
        target = rng.integers(0, classes, rows)
        target.flat[1] = 2  # ignored where ignore_index is 2
    weight = rng.uniform(0.2, 2, classes).astype(working)
    sample_weight = rng.uniform(0.2, 2, rows).astype(working)
    grad_output = rng.normal(0, 1, rows).astype(working)
    return logits, target, weight, sample_weight, grad_output


@cache
def expected(dtype, shape, axis, is_probabilities, reduction, options):
    logits, target, *_ = batch(dtype, shape, axis, is_probabilities)
    return oracle.cross_entropy(logits, target, **arguments(dtype, shape, axis, is_probabilities, reduction, options))


def arguments(dtype, shape, axis, is_probabilities, reduction, options):
    _, _, weight, sample_weight, grad_output = batch(dtype, shape, axis, is_probabilities)
    has_weight, has_sample_weight, smoothing, ignore_index, z_loss, softcap = options
    return {
        "weight": weight if has_weight else None,
        "sample_weight": sample_weight if has_sample_weight else None,
        "label_smoothing": smoothing,
        "ignore_index": ignore_index,
        "z_loss": z_loss,
        "softcap": softcap,
        "axis": axis,
        "reduction": reduction,
        "grad_output": grad_output if reduction == "none" else 1.7,
        "normalizer": 11.0 if reduction == "mean" and has_weight != has_sample_weight else None,
    }


@pytest.mark.parametrize("is_probabilities", [False, True], ids=["indices", "probabilities"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cross_entropy(engine, dtype, layout, reduction, is_probabilities):
    shape, axis = layout
    logits, target, *_ = batch(dtype, shape, axis, is_probabilities)
    for options in OPTIONS:
        if is_probabilities and options[3] >= 0:
            continue
        keywords = arguments(dtype, shape, axis, is_probabilities, reduction, options)
        loss, grad = fl.cross_entropy(logits, target, return_grad=True, engine=engine, **keywords)
        expected_loss, expected_grad = expected(dtype, shape, axis, is_probabilities, reduction, options)
        assert grad.dtype == dtype
        if reduction == "none":
            assert loss.dtype == compute_dtype(dtype)
        else:
            assert type(loss) is float
        assert_loss(loss, expected_loss, dtype, options)
        assert_grad(grad, expected_grad, options)


BINARY_OPTIONS = list(
    itertools.product([None, (), (3,), (5, 1), (5, 3)], [None, (), (3,), (5, 1), (5, 3)], [0.0, 0.1], [None, 0, 1])
)


@cache
def binary_expected(dtype, target_dtype, reduction, options):
    logits, target, keywords = binary_case(dtype, target_dtype, reduction, options)
    return oracle.binary_cross_entropy_with_logits(logits, target, **keywords)


def binary_case(dtype, target_dtype, reduction, options):
    rng = np.random.default_rng(3)
    working = compute_dtype(dtype)
    logits = rng.normal(0, 2, (5, 3)).astype(dtype)
    target = (rng.random((5, 3)) if target_dtype.kind in "fV" else rng.integers(0, 2, (5, 3))).astype(target_dtype)
    target[1, 1], target[2, 0] = 0, 1
    weight_shape, pos_weight_shape, smoothing, ignore_index = options
    keywords = {
        "weight": None if weight_shape is None else rng.uniform(0.2, 2, weight_shape).astype(working),
        "pos_weight": None if pos_weight_shape is None else rng.uniform(0.2, 3, pos_weight_shape).astype(working),
        "label_smoothing": smoothing,
        "ignore_index": ignore_index,
        "reduction": reduction,
        "grad_output": rng.normal(0, 1, (5, 3)).astype(working) if reduction == "none" else -0.3,
    }
    if weight_shape == ():
        keywords["weight"] = np.asarray(1.25, working)
    if pos_weight_shape == ():
        keywords["pos_weight"] = np.asarray(2.5, working)
    return logits, target, keywords


@pytest.mark.parametrize("target_dtype", [np.dtype(bool), np.dtype(np.int64), *DTYPES], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_binary(engine, dtype, reduction, target_dtype):
    for options in BINARY_OPTIONS:
        logits, target, keywords = binary_case(dtype, target_dtype, reduction, options)
        loss, grad = fl.binary_cross_entropy_with_logits(logits, target, return_grad=True, engine=engine, **keywords)
        expected_loss, expected_grad = binary_expected(dtype, target_dtype, reduction, options)
        assert grad.dtype == dtype
        if reduction == "none":
            assert loss.dtype == compute_dtype(dtype)
        else:
            assert type(loss) is float
        assert_loss(loss, expected_loss, dtype, options)
        assert_grad(grad, expected_grad, options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_number_of_classes(engine, dtype):
    """Kernels differ by the number of classes: each, with random options, against float64 of the reference."""
    rng = np.random.default_rng(11)
    for classes in [*range(1, 70), 100, 127, 255, 256, 257, 300, 383, 384, 385, 500, 513, 1000, 1025, 5003, 40000]:
        n = 19 if classes < 2000 else 3
        logits = rng.normal(0, 3, (n, classes)).astype(dtype)
        compare_with_reference(engine, rng, logits, 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_number_of_positions(engine, dtype):
    """The class axis in front of other axes, with every remainder of positions."""
    rng = np.random.default_rng(12)
    for classes, inner in itertools.product([1, 2, 5, 21, 150], [*range(2, 40), 64, 257]):
        compare_with_reference(engine, rng, rng.normal(0, 3, (2, classes, inner)).astype(dtype), 1)


def compare_with_reference(engine, rng, logits, axis):
    classes, rows, dtype = logits.shape[axis], logits.shape[:axis] + logits.shape[axis + 1 :], logits.dtype
    target = rng.integers(0, classes, rows).astype(INTEGERS[rng.integers(1, len(INTEGERS))])
    target.flat[rng.integers(target.size)] = 101
    keywords = {"axis": axis, "ignore_index": 101, "reduction": ["mean", "sum", "none"][rng.integers(3)]}
    if rng.random() < 0.3:
        # bfloat16 and float16 compute in float32, so their targets are rounded to that before the comparison.
        target = np.moveaxis(rng.dirichlet(np.ones(classes), rows), -1, axis).astype(compute_dtype(dtype))
        del keywords["ignore_index"]
    elif classes > 101:
        target[target == 101] = 0
        keywords["ignore_index"] = 0
    if rng.random() < 0.5:
        keywords["weight"] = rng.uniform(0.2, 2, classes).astype(compute_dtype(dtype))
    if rng.random() < 0.5:
        keywords["sample_weight"] = rng.uniform(0.2, 2, rows).astype(compute_dtype(dtype))
    if rng.random() < 0.5:
        keywords["label_smoothing"] = 0.2
    if rng.random() < 0.3:
        keywords["z_loss"] = 1e-3
    if rng.random() < 0.3:
        keywords["softcap"] = 5.0
    loss, grad = fl.cross_entropy(logits, target, return_grad=True, engine=engine, **keywords)
    expected_loss, expected_grad = fl.cross_entropy(
        logits.astype(np.float64), target, return_grad=True, engine="reference", **keywords
    )
    note = f"{logits.shape}, {target.dtype}, {sorted(keywords)}"
    assert_loss(loss, expected_loss, dtype, note)
    assert_grad(grad, expected_grad, note)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_primitives_of_rows(engine, dtype, axis):
    rng = np.random.default_rng(5)
    for shape in [(3, 4, 5), (1, 9, 33), (17, 10, 2), (2, 300, 3), (700, 2, 3), (2, 3, 1500)]:
        x = rng.normal(0, 4, shape).astype(dtype)
        exact = np.moveaxis(x, axis, -1).astype(np.longdouble)
        top = exact.max(-1, keepdims=True)
        lse = top + np.log(np.exp(exact - top).sum(-1, keepdims=True))
        logs = exact - lse
        p = np.exp(logs)
        assert_grad(fl.softmax(x, axis, engine=engine), np.moveaxis(p, -1, axis).astype(np.float64))
        assert_grad(fl.log_softmax(x, axis, engine=engine), np.moveaxis(logs, -1, axis).astype(np.float64))
        assert_loss(fl.logsumexp(x, axis, engine=engine), lse[..., 0].astype(np.float64), dtype)
        assert_loss(fl.entropy(x, axis, engine=engine), -(p * logs).sum(-1).astype(np.float64), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_primitives_of_elements(engine, dtype):
    x = np.linspace(-20, 20, 1003).astype(dtype)
    exact = x.astype(np.longdouble)
    sigmoid, softplus, log_sigmoid = 1 / (1 + np.exp(-exact)), np.log1p(np.exp(exact)), -np.log1p(np.exp(-exact))
    for function, value in ((fl.sigmoid, sigmoid), (fl.softplus, softplus), (fl.log_sigmoid, log_sigmoid)):
        result, value = function(x, engine=engine), value.astype(np.float64)
        assert result.dtype == dtype
        assert_grad(result, value)
        if dtype.itemsize > 2:  # small results keep their digits
            limit = 8 * np.finfo(dtype).eps
            assert np.abs(result.astype(np.float64) / value - 1).max() <= limit
