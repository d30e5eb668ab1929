"""Classes and probabilities from logits."""

import re

import numpy as np
import pytest
from checks import BFLOAT16, DTYPES

import fastloss as fl
from fastloss.prediction import predict

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "axis"), [((6, 4), 1), ((2, 3, 5), -1), ((2, 5, 3, 4), 1), ((5, 3), 0)])
def test_multiclass(dtype, shape, axis):
    logits = np.random.default_rng(0).normal(size=shape).astype(dtype)
    classes = predict(logits, axis=axis)
    assert classes.dtype == np.int64
    np.testing.assert_array_equal(classes, logits.astype(np.float64).argmax(axis=axis))
    probabilities = predict(logits, kind="probabilities", axis=axis)
    assert probabilities.dtype == dtype
    np.testing.assert_array_equal(probabilities, fl.softmax(logits, axis=axis))


def test_one_dimension_is_the_class_axis():
    classes = predict(np.array([0.0, 3.0, 1.0]))
    assert classes == 1 and classes.dtype == np.int64 and type(classes) is np.ndarray
    assert type(predict(np.float32(1), mode="binary")) is np.ndarray
    assert predict([0.0, 3.0], kind="probabilities").sum() == pytest.approx(1)


def test_no_rows():
    assert predict(np.zeros((0, 3))).shape == (0,)
    assert predict(np.zeros((0, 3)), mode="multilabel").shape == (0, 3)


def test_layouts():
    logits = np.random.default_rng(0).normal(size=(6, 8))
    np.testing.assert_array_equal(predict(logits[::2, ::-1]), logits[::2, ::-1].argmax(axis=1))
    np.testing.assert_array_equal(predict(logits.astype(">f8")), logits.argmax(axis=1))
    np.testing.assert_array_equal(predict(logits.astype(">f4"), mode="binary"), logits >= 0)


def test_ties_and_specials():
    assert predict([[1.0, 1.0], [NAN, 2.0], [2.0, NAN], [-INF, -INF], [-INF, -5.0]]).tolist() == [0, 0, 1, 0, 1]
    assert np.isnan(predict([[1.0, NAN]], kind="probabilities")).all()
    assert predict([NAN, INF, -INF], mode="binary").tolist() == [False, True, False]


@pytest.mark.parametrize("mode", ["multilabel", "binary"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_thresholds(mode, dtype):
    logits = np.random.default_rng(0).normal(scale=3, size=(40, 5)).astype(dtype)
    exact = 1 / (1 + np.exp(-logits.astype(np.float64)))
    for threshold in (None, 0.01, 0.5, 0.9, np.float32(0.75)):
        yes = predict(logits, mode=mode, threshold=threshold)
        assert yes.dtype == np.bool_ and type(yes) is np.ndarray
        np.testing.assert_array_equal(yes, exact >= (0.5 if threshold is None else threshold))
    np.testing.assert_array_equal(predict(logits, mode=mode, kind="probabilities"), fl.sigmoid(logits))


def test_threshold_at_its_ends():
    logits = np.array([-INF, -1000.0, 0.0, 1000.0, INF])
    assert predict(logits, mode="binary", threshold=0).all()
    assert predict(logits, mode="binary", threshold=1).tolist() == [False] * 4 + [True]
    assert predict(np.array([0.0, -1e-300]), mode="binary").tolist() == [True, False]


def test_the_threshold_is_not_rounded_to_the_logits_dtype():
    above = np.nextafter(0.5, 1)  # log(t / (1 - t)) is 4.4e-16: 0 in float16
    for dtype in (np.dtype(np.float16), BFLOAT16):
        assert not predict(np.zeros(3, dtype), mode="binary", threshold=above).any()


def test_engine(engine):
    logits = np.array([[2.0, 0.1], [1.0, 8.0]])
    assert predict(logits, engine=engine).tolist() == [0, 1]
    expected = fl.softmax(logits, engine=engine, num_threads=1)
    np.testing.assert_array_equal(predict(logits, kind="probabilities", engine=engine, num_threads=1), expected)


Z = np.zeros((2, 3))


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (dict(logits=Z.astype(int)), TypeError, "logits must be float32, float64, float16 or bfloat16, not int64"),
        (dict(logits=None, mode="binary"), TypeError, "logits must be float32, float64, float16 or bfloat16, not obj"),
        (dict(logits=1.0), ValueError, "logits have no dimensions"),
        (dict(logits=np.zeros((2, 0))), ValueError, "have no classes on axis 1"),
        (dict(axis=2), ValueError, "axis is 2, but logits of shape (2, 3) have axes -2 to 1"),
        (dict(kind="class"), ValueError, "kind must be one of 'classes', 'probabilities', not 'class'"),
        (dict(mode=1), TypeError, "mode must be one of 'multiclass', 'multilabel', 'binary', not 1"),
        (dict(threshold=0.5), ValueError, "threshold is given, but mode='multiclass' with kind='classes' has none"),
        (dict(threshold=0.5, mode="binary", kind="probabilities"), ValueError, "kind='probabilities' has none"),
        (dict(threshold=1.5, mode="binary"), ValueError, "threshold must be in [0, 1], not 1.5"),
        (dict(threshold=NAN, mode="binary"), ValueError, "threshold must be in [0, 1], not nan"),
        (dict(threshold="a", mode="binary"), TypeError, "threshold must be a number, not 'a'"),
        (dict(engine="fast"), ValueError, "engine"),
        (dict(num_threads=0), ValueError, "num_threads must be None or at least 1, not 0"),
    ],
)
def test_errors(arguments, error, text):
    with pytest.raises(error, match=re.escape(text)):
        predict(**{"logits": Z, **arguments})
