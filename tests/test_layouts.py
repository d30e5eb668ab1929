"""Inputs and outputs of every layout and kind: the values are those of plain contiguous arrays."""

import array
import itertools
import warnings

import numpy as np
import pytest
from checks import BFLOAT16, DTYPES, INTEGERS, assert_grad, compute_dtype, misaligned, same_bits

import fastloss as fl

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
RNG_SEED = 17
FILLER = 9  # around the elements of a strided array


def batch(shape=(6, 10), dtype=np.float32, axis=1):
    rng = np.random.default_rng(RNG_SEED)
    logits = rng.normal(0, 2, shape).astype(dtype)
    return logits, rng.integers(0, shape[axis], shape[:axis] + shape[axis + 1 :])


def swapped(values):
    return values.astype(values.dtype.newbyteorder())


def readonly(values):
    values = values.copy()
    values.flags.writeable = False
    return values


def spread(values):
    """Every third element of a larger array along each axis."""
    memory = np.full([3 * n for n in values.shape], FILLER, values.dtype)
    view = memory[tuple(slice(1, None, 3) for _ in values.shape)]
    view[...] = values
    return view


def with_gaps(values):
    """Contiguous along the last axis, with others behind."""
    memory = np.full([*values.shape[:-1], values.shape[-1] + 3], FILLER, values.dtype)
    view = memory[..., : values.shape[-1]]
    view[...] = values
    return view


def backwards(values):
    return np.flip(np.flip(values).copy())


def fortran(values):
    return values.copy(order="F")


def broadcast(values):
    return np.broadcast_to(values[:1], values.shape)


LAYOUTS = [misaligned, readonly, spread, backwards, fortran]


def close(a, b):
    """The same up to the order of the sums over classes, which may follow the layout."""
    if isinstance(a, tuple):
        return all(close(x, y) for x, y in zip(a, b, strict=True))
    a, b = np.asarray(a), np.asarray(b)
    assert a.dtype == b.dtype and a.shape == b.shape
    limit = {8: 1e-14, 4: 1e-6, 2: 1e-2}[min(a.itemsize, b.itemsize) if a.ndim else 4]
    a, b = a.astype(np.float64), b.astype(np.float64)
    return np.abs(a - b).max(initial=0) <= limit * np.abs(b).max(initial=1)


@every_dtype
@pytest.mark.parametrize("change", LAYOUTS)
@pytest.mark.parametrize(("shape", "axis"), [((6, 10), 1), ((3, 2000), 1), ((2, 5, 9), 1), ((7, 3, 4), 0)], ids=str)
def test_logits(engine, dtype, change, shape, axis):
    logits, target = batch(shape, dtype, axis)
    keywords = {"axis": axis, "return_grad": True, "engine": engine}
    expected = fl.cross_entropy(logits, target, **keywords)
    result = fl.cross_entropy(change(logits), target, **keywords)
    assert close(result, expected)
    if change in (misaligned, readonly):
        assert result[0] == expected[0] and same_bits(result[1], expected[1])
    labels = (logits > 0).astype(np.int8)
    expected = fl.binary_cross_entropy_with_logits(logits, labels, return_grad=True, engine=engine)
    assert close(fl.binary_cross_entropy_with_logits(change(logits), labels, return_grad=True, engine=engine), expected)
    assert close(
        fl.binary_cross_entropy_with_logits(logits, change(labels), return_grad=True, engine=engine)
        if change is not misaligned
        else expected,
        expected,
    )
    for function in (fl.softmax, fl.log_softmax, fl.logsumexp, fl.entropy):
        assert close(function(change(logits), axis, engine=engine), function(logits, axis, engine=engine))
    for function in (fl.sigmoid, fl.log_sigmoid, fl.softplus):
        assert close(function(change(logits), engine=engine), function(logits, engine=engine))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_big_endian(engine, dtype):
    logits, target = batch(dtype=dtype)
    working = compute_dtype(dtype)
    weight, sample_weight = np.linspace(0.5, 2, 10).astype(working), np.linspace(1, 3, 6).astype(working)
    expected = fl.cross_entropy(
        logits, target, weight=weight, sample_weight=sample_weight, return_grad=True, engine=engine
    )
    result = fl.cross_entropy(
        swapped(logits),
        swapped(target),
        weight=swapped(weight),
        sample_weight=swapped(sample_weight),
        return_grad=True,
        engine=engine,
    )
    assert result[0] == expected[0] and same_bits(result[1], expected[1])
    out = swapped(np.zeros_like(logits))
    _, grad = fl.cross_entropy(
        swapped(logits), target, weight=weight, sample_weight=sample_weight, out_grad=out, engine=engine
    )
    assert grad is out and np.array_equal(out, expected[1])
    in_place = swapped(logits)
    fl.cross_entropy(in_place, target, weight=weight, sample_weight=sample_weight, out_grad=in_place, engine=engine)
    assert np.array_equal(in_place, expected[1])
    assert same_bits(fl.softmax(swapped(logits), engine=engine), fl.softmax(logits, engine=engine))
    labels = (logits > 0).astype(dtype)
    expected = fl.binary_cross_entropy_with_logits(logits, labels, return_grad=True, engine=engine)
    result = fl.binary_cross_entropy_with_logits(swapped(logits), swapped(labels), return_grad=True, engine=engine)
    assert result[0] == expected[0] and same_bits(result[1], expected[1])


@every_dtype
def test_every_class_axis(engine, dtype):
    for shape in [(3, 4), (5, 2, 3), (2, 3, 4, 5), (2, 1, 3, 2, 4)]:
        for axis in range(-len(shape), len(shape)):
            rng = np.random.default_rng(1)
            logits = rng.normal(0, 2, shape).astype(dtype)
            rows = np.delete(shape, axis)
            target = rng.integers(0, shape[axis], rows)
            loss, grad = fl.cross_entropy(logits, target, axis=axis, return_grad=True, engine=engine)
            moved = np.ascontiguousarray(np.moveaxis(logits, axis, -1))
            expected = fl.cross_entropy(moved, target, axis=-1, return_grad=True, engine=engine)
            assert close((loss, np.moveaxis(grad, -1 if axis == len(shape) - 1 else axis, -1)), expected)


@pytest.mark.parametrize("integer", INTEGERS, ids=str)
def test_every_integer_target(engine, integer):
    logits, target = batch((40, 100))
    expected = fl.cross_entropy(logits, target, return_grad=True, engine=engine)
    for change in (np.asarray, misaligned, readonly, spread, backwards, swapped):
        result = fl.cross_entropy(logits, change(target.astype(integer)), return_grad=True, engine=engine)
        assert result[0] == expected[0] and same_bits(result[1], expected[1])
    if integer.kind == "i":
        target[3:9] = -100
        loss = fl.cross_entropy(logits, target.astype(integer), engine=engine)
        assert loss == fl.cross_entropy(logits, target, engine=engine) != expected[0]


def test_lists_of_targets(engine):
    logits, target = batch()
    assert fl.cross_entropy(logits, target.tolist(), engine=engine) == fl.cross_entropy(logits, target, engine=engine)


@every_dtype
@pytest.mark.parametrize("change", [*LAYOUTS, broadcast])
def test_probabilities_weights_and_upstream(engine, dtype, change):
    logits, _ = batch(dtype=dtype)
    rng = np.random.default_rng(2)
    working = compute_dtype(dtype)
    probabilities = rng.dirichlet(np.ones(10), 6).astype(working)
    keywords = {
        "weight": rng.random(10).astype(working),
        "sample_weight": rng.random(6).astype(working),
        "grad_output": rng.random(6).astype(working),
    }
    if change is broadcast:
        probabilities = np.repeat(probabilities[:1], 6, 0)
        keywords = {name: np.repeat(value[:1], len(value)) for name, value in keywords.items()}
    fixed = {"reduction": "none", "return_grad": True, "engine": engine}
    expected = fl.cross_entropy(logits, probabilities, **keywords, **fixed)
    changed = {name: change(value) for name, value in keywords.items()}
    assert close(fl.cross_entropy(logits, change(probabilities), **changed, **fixed), expected)
    binary = {"weight": probabilities, "pos_weight": keywords["weight"], "grad_output": probabilities}
    expected = fl.binary_cross_entropy_with_logits(logits, probabilities, **binary, **fixed)
    changed = {name: change(value) for name, value in binary.items()}
    assert close(fl.binary_cross_entropy_with_logits(logits, change(probabilities), **changed, **fixed), expected)


@pytest.mark.parametrize("given", [*DTYPES, np.dtype(np.int32), np.dtype(bool)], ids=str)
@every_dtype
def test_weights_of_any_type_are_converted(engine, dtype, given):
    logits, target = batch(dtype=dtype)
    weight = np.array([1, 0, 1, 1, 0, 1, 1, 1, 0, 1])
    sample_weight = np.array([1, 1, 0, 1, 0, 1])
    keywords = {"return_grad": True, "engine": engine}
    expected = fl.cross_entropy(logits, target, weight=weight * 1.0, sample_weight=sample_weight * 1.0, **keywords)
    result = fl.cross_entropy(
        logits, target, weight=weight.astype(given), sample_weight=sample_weight.astype(given), **keywords
    )
    assert result[0] == expected[0] and same_bits(result[1], expected[1])


@pytest.mark.parametrize("out_dtype", DTYPES, ids=str)
@every_dtype
@pytest.mark.parametrize(("shape", "axis"), [((9, 10), 1), ((16, 10), 1), ((3, 2000), 1), ((2, 5, 9), 1)], ids=str)
def test_out_grad_of_every_dtype_and_layout(engine, dtype, out_dtype, shape, axis):
    logits, target = batch(shape, dtype, axis)
    loss, grad = fl.cross_entropy(logits.astype(np.float64), target, axis=axis, return_grad=True, engine=engine)
    labels = logits > 0
    _, binary = fl.binary_cross_entropy_with_logits(logits.astype(np.float64), labels, return_grad=True, engine=engine)
    for change in (np.copy, misaligned, spread, with_gaps, backwards, fortran):
        out = change(np.full(shape, 7, out_dtype))
        result = fl.cross_entropy(logits, target, axis=axis, out_grad=out, engine=engine)
        assert result[1] is out
        assert result[0] == pytest.approx(loss, rel=1e-6)
        check_rounded(out, grad, dtype)
        if change in (spread, with_gaps):
            memory = out.base
            out[...] = FILLER
            assert (memory == FILLER).all()
        out = change(np.full(shape, 7, out_dtype))
        assert fl.binary_cross_entropy_with_logits(logits, labels, out_grad=out, engine=engine)[1] is out
        check_rounded(out, binary, dtype)


def check_rounded(out, exact, dtype):
    """out has the precision of its own dtype or of float32, which logits other than float64 are computed in."""
    if out.dtype == np.float64 and dtype != np.float64:
        assert np.abs(out - exact).max() <= 3e-6 * np.abs(exact).max()
    else:
        assert_grad(out, exact)


@every_dtype
@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 100])
@pytest.mark.parametrize("classes", [1, 2, 10, 33, 300, 2000])
def test_in_place(engine, dtype, n, classes):
    logits, target = batch((n, classes), dtype)
    logits[0, 0] = 60.0  # far above the rest: an online maximum has to start again
    keywords = {"label_smoothing": 0.1, "z_loss": 0.01} if n == 7 else {}
    loss, grad = fl.cross_entropy(logits, target, return_grad=True, engine=engine, **keywords)
    for change in (np.copy, spread, backwards, fortran, misaligned):
        buffer = change(logits)
        result = fl.cross_entropy(buffer, target, out_grad=buffer, engine=engine, **keywords)
        assert result[1] is buffer
        assert close(result, (loss, grad))
    buffer = logits.copy()
    same = fl.cross_entropy(buffer, target, out_grad=buffer[:], engine=engine, **keywords)
    assert same[0] == pytest.approx(loss, rel=1e-6)
    labels = logits > 0
    loss, grad = fl.binary_cross_entropy_with_logits(logits, labels, return_grad=True, engine=engine)
    for change in (np.copy, spread, backwards, fortran, misaligned):
        buffer = change(logits)
        result = fl.binary_cross_entropy_with_logits(buffer, labels, out_grad=buffer, engine=engine)
        assert close(result, (loss, grad))


@every_dtype
def test_in_place_in_front_of_positions(engine, dtype):
    logits, target = batch((2, 21, 70), dtype)
    loss, grad = fl.cross_entropy(logits, target, return_grad=True, engine=engine)
    result = fl.cross_entropy(logits, target, out_grad=logits, engine=engine)
    assert close(result, (loss, grad))


class OnlyDLPack:
    def __init__(self, values):
        self.values = values

    def __dlpack__(self, **keywords):
        return self.values.__dlpack__(**keywords)

    def __dlpack_device__(self):
        return self.values.__dlpack_device__()


class OnlyArray:
    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return self.values


class Subclass(np.ndarray):
    def __array_finalize__(self, parent):
        pass


KINDS = [OnlyDLPack, OnlyArray, memoryview, np.ndarray.tolist, lambda values: values.view(Subclass)]


@pytest.mark.parametrize("kind", KINDS, ids=["dlpack", "__array__", "memoryview", "list", "subclass"])
def test_other_kinds_of_arrays(engine, kind):
    logits, target = batch(dtype=np.float64)
    weight, sample_weight = np.linspace(0.5, 2, 10), np.linspace(1, 3, 6)
    expected = fl.cross_entropy(
        logits, target, weight=weight, sample_weight=sample_weight, return_grad=True, engine=engine
    )
    result = fl.cross_entropy(
        kind(logits), kind(target), weight=kind(weight), sample_weight=kind(sample_weight), return_grad=True,
        engine=engine,
    )  # fmt: skip
    assert type(result[1]) is np.ndarray
    assert result[0] == expected[0] and same_bits(result[1], expected[1])
    assert same_bits(fl.softmax(kind(logits), engine=engine), fl.softmax(logits, engine=engine))
    expected = fl.binary_cross_entropy_with_logits(logits, logits > 0, pos_weight=weight, engine=engine)
    labels = kind((logits > 0).astype(np.uint8))
    assert fl.binary_cross_entropy_with_logits(kind(logits), labels, pos_weight=kind(weight), engine=engine) == expected


def test_arrays_of_the_standard_library(engine):
    logits = array.array("f", [1.0, 2.0, 3.0])
    expected = fl.cross_entropy(np.array([1, 2, 3], np.float32), 0, engine=engine)
    assert fl.cross_entropy(logits, 0, engine=engine) == expected


def test_torch_and_jax_arrays(engine, peer):
    logits, target = batch()
    expected = fl.cross_entropy(logits, target, engine=engine)
    torch = peer("torch")
    assert fl.cross_entropy(torch.from_numpy(logits), torch.from_numpy(target), engine=engine) == expected
    with pytest.raises(TypeError, match="logits can't be read as an array: .*requires grad"):
        fl.cross_entropy(torch.from_numpy(logits).requires_grad_(), target, engine=engine)
    assert fl.cross_entropy(logits, target, softcap=torch.tensor(1e6), engine=engine) == pytest.approx(expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        numpy = peer("jax").numpy
        values, bfloat16 = numpy.asarray(logits), numpy.asarray(logits.astype(BFLOAT16))
    assert fl.cross_entropy(values, target, engine=engine) == expected
    _, grad = fl.cross_entropy(bfloat16, target, return_grad=True, engine=engine)
    assert grad.dtype == BFLOAT16


def test_inputs_are_not_written(engine):
    logits, target = batch()
    weight = np.ones(10, np.float32)
    before = logits.copy(), target.copy(), weight.copy()
    for options in ({}, {"reduction": "none", "softcap": 2.0}, {"label_smoothing": 0.1}):
        fl.cross_entropy(logits, target, weight=weight, return_grad=True, engine=engine, **options)
    fl.binary_cross_entropy_with_logits(logits, logits, weight=weight, return_grad=True, engine=engine)
    for values, copy in zip((logits, target, weight), before, strict=True):
        assert same_bits(values, copy)


def test_out_grad_and_none_do_not_share_memory(engine):
    logits, target = batch()
    out = np.zeros_like(logits)
    loss, grad = fl.cross_entropy(logits, target, reduction="none", out_grad=out, engine=engine)
    _, other = fl.cross_entropy(logits, target, return_grad=True, engine=engine)
    _, third = fl.cross_entropy(logits, target, return_grad=True, engine=engine)
    for a, b in itertools.combinations([loss, grad, other, third, logits], 2):
        assert not np.shares_memory(a, b)


@pytest.mark.huge
def test_more_elements_than_32_bits_count():
    if "cython" not in fl.engines():
        pytest.skip("the compiled engine is missing, and the reference needs 16 bytes and more an element")
    n, classes = 2**31 // 1024 + 5, 1024
    logits = np.zeros((n, classes), np.float16)
    target = np.full(n, 3, np.uint16)
    logits[-1, 3] = 5.0
    losses = fl.cross_entropy(logits, target, reduction="none", engine="cython")
    assert (losses[:-1] == losses[0]).all()
    assert losses[0] == pytest.approx(np.log(1024), rel=1e-6)
    assert losses[-1] == pytest.approx(np.log(1023 + np.exp(5)) - 5, rel=1e-6)
    target[:-1] = 2
    logits[-1, 3] = 0.0
    _, grad = fl.cross_entropy(logits, target, reduction="sum", out_grad=logits, engine="cython")
    assert grad is logits
    assert float(grad[-1, 3]) == float(grad[0, 2]) == pytest.approx(1 / 1024 - 1, rel=1e-3)
    assert float(grad[-1, 2]) == pytest.approx(1 / 1024, rel=1e-3)
    flat = logits.reshape(-1)
    flat[...] = 0
    flat[-1] = 20.0
    loss = fl.binary_cross_entropy_with_logits(flat, np.zeros(flat.size, np.uint8), reduction="sum", engine="cython")
    assert loss == pytest.approx((flat.size - 1) * np.log(2) + 20, rel=1e-7)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(
    ("dtype", "classes"),
    [
        (np.float32, 10), (np.float32, 16), (np.float32, 37), (np.float32, 100), (np.float32, 300), (np.float32, 32771),
        (np.float64, 16), (np.float64, 5003), (np.float16, 301), (np.float16, 5003), (BFLOAT16, 4096), (BFLOAT16, 5003),
    ],
)  # fmt: skip
def test_large_gradients_of_rows(engine, dtype, classes, smoothing):
    """Above 24 MiB they are written past the caches, those of long rows one row behind: the same bits as in pieces."""
    if engine == "reference":
        pytest.skip("knows no caches")
    whole = (32 << 20) // (classes * np.dtype(dtype).itemsize) // 16 * 16  # of groups of rows
    rows = whole + 8
    rng = np.random.default_rng(RNG_SEED)
    logits = rng.normal(0, 3, (rows, classes)).astype(dtype)
    logits[: rows // 3 : 7, classes // 2] += 40  # the reference moves in the middle of the row
    logits[rows // 3 :: 1001, classes // 2] += 40
    target = rng.integers(0, classes, rows)
    target[5 : rows // 2 : 11] = -100
    keywords = {"reduction": "none", "label_smoothing": smoothing, "engine": engine}
    for offset, rows in (0, whole + 3), (1, whole + 8), (3, whole + 4):  # the last group: part of one, or a small one
        size = rows * classes
        memory = np.full(size + 8, np.nan, dtype)
        out = memory[offset : offset + size].reshape(rows, classes)
        losses, _ = fl.cross_entropy(logits[:rows], target[:rows], out_grad=out, **keywords)
        assert np.isnan(memory[:offset]).all() and np.isnan(memory[offset + size :]).all()
        for start in range(0, rows, rows // 5):
            part = slice(start, min(start + rows // 5, rows))
            expected_losses, expected = fl.cross_entropy(logits[part], target[part], return_grad=True, **keywords)
            assert same_bits(losses[part], expected_losses)
            assert same_bits(out[part], expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_large_gradients_of_elements(engine, dtype):
    """Above 24 MiB they are written past the caches, in lines that two blocks may share: the same bits as in pieces."""
    if engine == "reference":
        pytest.skip("knows no caches")
    size = (32 << 20) // np.dtype(dtype).itemsize + 5
    rng = np.random.default_rng(RNG_SEED)
    logits, target = rng.normal(0, 3, size).astype(dtype), rng.integers(0, 2, size).astype(bool)
    for offset in (0, 1, 3):
        memory = np.full(size + 8, np.nan, dtype)
        out = memory[offset : offset + size]
        keywords = {"reduction": "sum", "engine": engine}
        fl.binary_cross_entropy_with_logits(logits, target, out_grad=out, **keywords)
        assert np.isnan(memory[:offset]).all() and np.isnan(memory[offset + size :]).all()
        for start in range(0, size, size // 5):
            part = slice(start, start + size // 5)
            _, expected = fl.binary_cross_entropy_with_logits(logits[part], target[part], return_grad=True, **keywords)
            assert same_bits(out[part], expected)


@pytest.mark.parametrize("rest", [0, 5])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_large_gradients_in_front_of_positions(engine, dtype, rest):
    """Above 24 MiB they are written past the caches, where the classes' lines begin alike: in whole lines but for the
    ends of each class."""
    if engine == "reference":
        pytest.skip("knows no caches")
    classes = 21
    inner = (32 << 20) // (classes * np.dtype(dtype).itemsize) // 64 * 64 + rest
    rng = np.random.default_rng(RNG_SEED)
    logits = np.broadcast_to(rng.normal(0, 2, (1, classes, 1)), (1, classes, inner)).astype(dtype)
    logits += rng.normal(0, 1, inner).astype(dtype)
    logits[0, 3] *= -1
    target = rng.integers(0, classes, (1, inner))
    keywords = {"reduction": "sum", "engine": engine}
    for offset in (0, 1, 3):
        memory = np.full(logits.size + 8, np.nan, dtype)
        out = memory[offset : offset + logits.size].reshape(logits.shape)
        loss, _ = fl.cross_entropy(logits, target, out_grad=out, **keywords)
        assert loss == fl.cross_entropy(logits, target, **keywords)
        assert np.isnan(memory[:offset]).all() and np.isnan(memory[offset + logits.size :]).all()
        for start in range(0, inner, inner // 7):
            part = slice(start, start + inner // 7)
            _, expected = fl.cross_entropy(logits[..., part], target[..., part], return_grad=True, **keywords)
            assert_grad(out[..., part], expected.astype(np.float64))
