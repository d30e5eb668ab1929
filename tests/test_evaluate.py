"""evaluate against plain NumPy, with ties, NaN, ignored targets, and nothing at all."""

import math

import numpy as np
import pytest
from checks import DTYPES, INTEGERS, compute_dtype

import fastloss as fl

NAN = math.nan
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def plain(logits, target, ks, axis, ignore_index=-100):
    """Top-k accuracies, mean entropy, count, logsumexp."""
    rows = np.moveaxis(logits, axis, -1).astype(np.float64)
    counts = target != ignore_index
    z, y = rows[counts], target[counts]
    order = np.argsort(-z, axis=1, kind="stable")
    lse = np.log(np.exp(rows - rows.max(-1, keepdims=True)).sum(-1)) + rows.max(-1)
    log_p = z - lse[counts][:, None]
    entropy = -(np.exp(log_p) * log_p).sum(1)
    hits = {k: (order[:, :k] == y[:, None]).any(1).mean() for k in ks}
    return hits, entropy.mean(), int(counts.sum()), lse


def test_classes_far_behind_the_target_rank_in_front(engine):
    """Long rows are read in blocks; in most of them nothing is above the target."""
    logits = np.zeros((5, 1500), np.float32)
    logits[:, 5] = 2
    logits[0, [600, 1400]] = 3, 4
    logits[1, 1023] = 2  # equal, but behind
    logits[2, [0, 1499]] = 2, 3  # equal and in front; above
    logits[3:, 5] = 0
    logits[3, [700, 1400]] = 2  # equal and in front, in a block in which none is above
    logits[4, [1400, 1401]] = 2  # equal, but behind
    result = fl.evaluate(logits, np.array([5, 5, 5, 1400, 1400]), topk=(1, 2, 3), engine=engine)
    assert result.topk == {1: 2 / 5, 2: 3 / 5, 3: 1.0}


@every_dtype
@pytest.mark.parametrize("height", [15, 17, 60, 150])
def test_long_rows_that_climb(engine, dtype, height):
    """The reference that exponentials are taken from rises in the middle of a row, and what was summed up with it."""
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, (4, 2500))
    logits[:, 900:] += height
    logits[1, 2100:] += height
    logits[2, :20] += 2 * height
    logits = logits.astype(dtype)
    target = np.array([3, 2000, 5, 2400])
    hits, entropy, count, lse = plain(logits, target, (1, 5), 1)
    result = fl.evaluate(logits, target, return_lse=True, engine=engine)
    assert result.topk == hits and result.count == count
    assert result.entropy == pytest.approx(entropy, rel=1e-12 if dtype == np.float64 else 1e-5)
    assert result.lse == pytest.approx(lse, rel=1e-12 if dtype == np.float64 else 1e-6)


@every_dtype
@pytest.mark.parametrize(
    ("shape", "axis"),
    [((50, 7), 1), ((7, 30), 0), ((4, 9, 13), 1), ((3, 5, 40), -1), ((6, 1500), 1), ((9,), 0)],
    ids=str,
)
def test_multiclass(engine, dtype, shape, axis):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, shape).astype(dtype)
    rows = tuple(np.delete(shape, axis))
    target = np.asarray(rng.integers(0, shape[axis], rows))
    if rows:
        target.flat[::5] = -100
    weight, sample_weight = rng.uniform(0.2, 2, shape[axis]), np.asarray(rng.uniform(0.2, 2, rows))
    ks = (1, 3, 5)
    hits, entropy, count, lse = plain(logits, target, ks, axis)
    for options in ({}, {"weight": weight, "sample_weight": sample_weight, "label_smoothing": 0.1}):
        options = {"axis": axis, "engine": engine, **options}
        result = fl.evaluate(logits, target, topk=ks, return_lse=True, **options)
        loss = fl.cross_entropy(logits, target, **options)
        if engine == "cython":
            assert result.loss == loss
        else:  # the sums are made in another order
            assert result.loss == pytest.approx(loss, rel=1e-14 if dtype == np.float64 else 1e-7)
        assert result.accuracy == result.topk[1]
        assert result.topk == pytest.approx(hits, rel=1e-12)
        assert result.count == count
        assert result.entropy == pytest.approx(entropy, rel=1e-12 if dtype == np.float64 else 1e-5)
        assert result.lse.dtype == compute_dtype(dtype)
        assert result.lse == pytest.approx(np.where(target == -100, 0, lse), rel=1e-12 if dtype == np.float64 else 1e-6)
        assert fl.evaluate(logits, target, **options).lse is None
    assert list(fl.evaluate(logits, target, axis=axis, engine=engine).topk) == [1, 5]
    assert fl.evaluate(logits, target, topk=(), axis=axis, engine=engine).topk == {}


@every_dtype
def test_the_first_of_equal_logits_ranks_first(engine, dtype):
    rng = np.random.default_rng(1)
    logits = rng.integers(0, 3, (200, 6)).astype(dtype)
    target = rng.integers(0, 6, 200)
    ks = tuple(range(1, 7))
    hits, *_ = plain(logits, target, ks, 1)
    result = fl.evaluate(logits, target, topk=ks, engine=engine)
    assert result.topk == hits
    assert result.accuracy == np.mean(logits.argmax(1) == target)
    even = fl.evaluate(np.zeros((3, 4), dtype), [0, 1, 3], topk=(2, 4), engine=engine)
    assert (even.accuracy, even.topk) == (1 / 3, {2: 2 / 3, 4: 1.0})
    assert even.entropy == pytest.approx(math.log(4), rel=1e-6)


@every_dtype
@pytest.mark.parametrize("rows", [160, 163])
def test_every_number_of_few_classes(engine, dtype, rows):
    """Of each number there is another cut into vectors; of equal logits, and of zeros of both signs, the first ranks
    first."""
    rng = np.random.default_rng(3)
    for classes in range(1, 42):
        logits = rng.integers(-3, 3, (rows, classes)) * rng.choice([0.5, -0.0, 1.25], (rows, classes))
        logits = logits.astype(dtype)
        target = rng.integers(0, classes, rows)
        ks = tuple(k for k in (1, 2, 3, 5, 8, 13, 21) if k <= classes)
        hits, entropy, count, lse = plain(logits, target, ks, 1)
        for smoothing in (0, 0.1):
            result = fl.evaluate(
                logits, target, topk=ks, label_smoothing=smoothing, return_lse=True, engine=engine, num_threads=1
            )
            loss = fl.cross_entropy(logits, target, label_smoothing=smoothing, engine=engine, num_threads=1)
            tight = 1e-13 if dtype == np.float64 else 1e-6
            assert result.loss == (loss if engine == "cython" else pytest.approx(loss, rel=tight)), classes
            assert result.topk == hits and result.count == count, classes
            assert result.entropy == pytest.approx(entropy, rel=tight, abs=1e-15), classes
            assert result.lse == pytest.approx(lse, rel=tight, abs=tight), classes


@every_dtype
@pytest.mark.parametrize("position", [0, 2, 4])
def test_a_row_with_nan_is_a_miss(engine, dtype, position):
    logits = np.array([[5, 4, 3, 2, 1]] * 3, dtype)
    logits[1, position] = NAN
    for y in range(5):
        result = fl.evaluate(logits, [0, y, 0], topk=(1, 5, 9), return_lse=True, engine=engine)
        assert math.isnan(result.loss) and math.isnan(result.entropy)
        assert result.accuracy == 2 / 3 and result.topk == {1: 2 / 3, 5: 2 / 3, 9: 2 / 3}
        assert result.count == 3
        assert np.isnan(result.lse).tolist() == [False, True, False]


@every_dtype
def test_ignored_targets_are_never_read(engine, dtype):
    logits = np.random.default_rng(2).normal(0, 2, (8, 5)).astype(dtype)
    target = np.array([0, 1, 9, 3, 9, 0, 1, 2])
    clean = fl.evaluate(logits, target, ignore_index=9, topk=(1, 2), engine=engine)
    assert clean.count == 6 and 0 < clean.entropy < math.log(5)
    for garbage in (NAN, math.inf, -math.inf):
        logits[target == 9] = garbage
        assert fl.evaluate(logits, target, ignore_index=9, topk=(1, 2), engine=engine) == clean


def test_infinities(engine):
    logits = np.array([[0.0, -math.inf, 0.0], [1.0, 2.0, -math.inf]])
    result = fl.evaluate(logits, [2, 1], topk=(1, 2), return_lse=True, engine=engine)
    assert result.topk == {1: 0.5, 2: 1.0}
    second = math.log(math.exp(1) + math.exp(2))
    assert result.lse == pytest.approx([math.log(2), second], rel=1e-14)
    p = 1 / (1 + math.exp(1))
    entropy = -p * math.log(p) - (1 - p) * math.log(1 - p)
    assert result.entropy == pytest.approx((math.log(2) + entropy) / 2, rel=1e-13)


def test_nothing_that_counts(engine):
    for logits, target in ((np.ones((3, 4)), np.full(3, -100)), (np.ones((0, 4)), np.zeros(0, int))):
        result = fl.evaluate(logits, target, topk=(1, 2), return_lse=True, engine=engine)
        assert all(map(math.isnan, (result.loss, result.accuracy, result.entropy, *result.topk.values())))
        assert result.count == 0 and result.lse.shape == target.shape
        assert fl.evaluate(logits, target, empty="zero", engine=engine).loss == 0
        with pytest.raises(ValueError, match="the mean is over nothing"):
            fl.evaluate(logits, target, empty="raise", engine=engine)
    logits = np.full((2, 3), NAN)
    for mode in ("binary", "multilabel"):
        result = fl.evaluate(logits, np.full((2, 3), 9), mode=mode, ignore_index=9, engine=engine)
        assert all(map(math.isnan, (result.loss, result.accuracy, result.entropy))) and result.count == 0


@pytest.mark.parametrize("k", [7, 8, 10**6])
def test_more_of_the_top_than_classes(engine, k):
    rng = np.random.default_rng(3)
    result = fl.evaluate(rng.normal(0, 1, (20, 7)), rng.integers(0, 7, 20), topk=(k, 1), engine=engine)
    assert list(result.topk) == [k, 1] and result.topk[k] == 1 and result.topk[1] < 1


@pytest.mark.parametrize("target_dtype", INTEGERS, ids=str)
def test_targets_of_every_dtype(engine, target_dtype):
    rng = np.random.default_rng(4)
    logits, target = rng.normal(0, 1, (30, 7)), rng.integers(0, 7, 30)
    result = fl.evaluate(logits, target.astype(target_dtype), engine=engine)
    assert result == fl.evaluate(logits, target, engine=engine) and 0 < result.topk[5] < 1


@every_dtype
@pytest.mark.parametrize("mode", ["binary", "multilabel"])
def test_elements(engine, dtype, mode):
    rng = np.random.default_rng(5)
    logits, target = rng.normal(0, 2, (40, 6)).astype(dtype), rng.integers(0, 2, (40, 6))
    target.flat[::7] = -1
    counts = target != -1
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    entropy = -(p * np.log(p) + (1 - p) * np.log1p(-p))[counts].mean()
    for threshold in (0.5, 0.2, 0.9):
        for options in ({}, {"weight": rng.uniform(0.2, 2, 6), "label_smoothing": 0.1}):
            result = fl.evaluate(
                logits, target, mode=mode, threshold=threshold, ignore_index=-1, engine=engine, **options
            )
            assert result.loss == fl.binary_cross_entropy_with_logits(
                logits, target, ignore_index=-1, engine=engine, **options
            )
            assert result.accuracy == ((p >= threshold) == (target == 1))[counts].mean()
            assert result.entropy == pytest.approx(entropy, rel=1e-12 if dtype == np.float64 else 1e-5)
            assert (result.count, result.topk, result.lse) == (counts.sum(), {}, None)


@every_dtype
def test_elements_at_the_edges(engine, dtype):
    logits = np.array([0.0, math.inf, -math.inf, 0.0], dtype)
    result = fl.evaluate(logits, [1, 1, 0, 1], mode="binary", engine=engine)
    assert result.accuracy == 1  # a probability that reaches the threshold is a yes
    assert result.loss == pytest.approx(math.log(2) / 2, rel=1e-6)
    assert result.entropy == pytest.approx(math.log(2) / 2, rel=1e-6)
    result = fl.evaluate(np.array([NAN, 2.0], dtype), [True, True], mode="binary", engine=engine)
    assert result.accuracy == 0.5 and math.isnan(result.loss) and math.isnan(result.entropy)
    assert fl.evaluate(np.array([NAN, 2.0], dtype), [False, True], mode="binary", engine=engine).accuracy == 0.5


def test_an_evaluation_is_frozen(engine):
    result = fl.evaluate(np.eye(3), [0, 1, 2], engine=engine)
    assert isinstance(result, fl.Evaluation) and result.accuracy == 1
    with pytest.raises(AttributeError):
        result.loss = 0.0


Z = np.zeros((4, 10))
Y = np.array([1, 2, 3, 4])


@pytest.mark.parametrize(
    ("case", "error", "text"),
    [
        (dict(target=[1, 2, 10, 3]), IndexError, r"target\[2\] is 10, but logits have 10 classes on axis 1: expected"),
        (dict(target=Z), TypeError, "target must be class indices of an integer dtype, not probabilities"),
        (dict(target=Y[:3]), ValueError, r"target has shape \(3,\) but logits \(4, 10\) with class axis 1 need"),
        (dict(logits=Z.astype(int)), TypeError, "logits must be float32, float64, float16 or bfloat16, not int64"),
        (dict(mode="multi"), ValueError, "mode must be one of 'multiclass', 'multilabel', 'binary', not 'multi'"),
        (dict(mode=None), TypeError, "mode must be one of 'multiclass', 'multilabel', 'binary', not None"),
        (dict(topk=(0,)), ValueError, "topk must hold integers that are at least 1, not 0"),
        (dict(topk=(1.5,)), TypeError, r"topk must be a sequence of integers, not \(1.5,\)"),
        (dict(mode="binary"), ValueError, r"target has shape \(4,\), but needs one entry"),
        (dict(mode="binary", target=Z, threshold=1), ValueError, r"threshold must be in \(0, 1\), not 1"),
        (dict(mode="binary", target=Z, threshold=0), ValueError, r"threshold must be in \(0, 1\), not 0"),
        (dict(mode="binary", target=Z, threshold="a"), TypeError, "threshold must be a number, not 'a'"),
        (
            dict(mode="multilabel", target=Z, sample_weight=Y),
            ValueError,
            "sample_weight is for mode='multiclass', not 'multilabel': see weight",
        ),
        (dict(weight=[1]), ValueError, r"weight has shape \(1,\), but 10 classes need one entry each"),
        (dict(empty="no"), ValueError, "empty must be one of 'nan', 'zero', 'raise', not 'no'"),
        (dict(num_threads=0), ValueError, "num_threads must be None or at least 1, not 0"),
    ],
    ids=str,
)
def test_errors(engine, case, error, text):
    with pytest.raises(error, match=text) as caught:
        fl.evaluate(**{"logits": Z, "target": Y, "engine": engine, **case})
    assert type(caught.value) is error


def test_topk_is_a_sequence(engine):
    with pytest.raises(TypeError, match="topk must"):
        fl.evaluate(Z, Y, topk=5, engine=engine)


def test_bits_do_not_depend_on_where_an_image_lies():
    rng = np.random.default_rng(3)
    logits, target = 12 * rng.normal(size=(2, 5, 40, 40)), rng.integers(0, 5, (2, 40, 40))
    memory = np.empty(logits.size + 8)
    results = set()
    for offset in range(8):
        moved = memory[offset : offset + logits.size].reshape(logits.shape)
        moved[...] = logits
        result = fl.evaluate(moved, target)
        results.add((result.loss, result.entropy))
    assert len(results) == 1
