"""What diagnose says of a batch: each finding is triggered, and ordinary batches are not suspected."""

import inspect
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from checks import BFLOAT16, DTYPES

import fastloss as fl
from fastloss import catalogue, diagnosis
from fastloss.diagnosis import Diagnosis, DiagnosisWarning, Finding, check_first, diagnose

RNG = np.random.default_rng(0)
NAN, INF = float("nan"), float("inf")
Z = RNG.normal(size=(64, 5))
Y = RNG.integers(0, 5, 64)
P = np.exp(Z) / np.exp(Z).sum(axis=1, keepdims=True)
LOG_P = np.log(P)
HOT = np.eye(5)[Y]
B = RNG.integers(0, 2, (64, 5))
SIGMOID = 1 / (1 + np.exp(-Z))
BCE = "binary_cross_entropy_with_logits"


def put(array, index, value):
    array = array.copy()
    array[index] = value
    return array


ROW_4 = np.where(np.arange(64)[:, None] == 3, -INF, Z)
LABEL_MASKED = put(Z, (7, Y[7]), -INF)
TLM = RNG.normal(size=(4, 16, 50))  # batch, time, vocabulary
TOKENS = RNG.integers(0, 50, (4, 16))
MAPS = RNG.normal(size=(2, 5, 8, 8))
MASKS = RNG.integers(0, 5, (2, 8, 8))
RARE = np.repeat([0, 1, 2], [150, 45, 5])

# logits, target, options, severity, code, a part of the text
FINDINGS = [
    # what is given in the place of logits
    (P, Y, {}, "warning", "softmax_applied", "softmax seems to be applied already"),
    (P.astype(np.float16), Y, {}, "warning", "softmax_applied", "sums to 1"),
    (P.astype(BFLOAT16), Y, {}, "warning", "softmax_applied", "sums to 1"),
    (P, Y, dict(loss="multi_margin_loss"), "warning", "softmax_applied", "takes any scores"),
    (P, Y, dict(loss="nll_loss"), "error", "softmax_applied", "log_softmax in place of softmax"),
    (P[0], Y[0], {}, "warning", "softmax_applied", "softmax"),
    (np.moveaxis(np.broadcast_to(P, (3, 64, 5)), 2, 0), np.zeros((3, 64), int), dict(axis=0), "warning",
     "softmax_applied", "softmax"),
    (LOG_P, Y, {}, "note", "log_softmax_applied", "nll_loss"),
    (LOG_P.astype(BFLOAT16), Y, {}, "note", "log_softmax_applied", "nll_loss"),
    (SIGMOID, Y, {}, "warning", "sigmoid_applied", "binary_cross_entropy_with_logits"),
    (SIGMOID, B, dict(loss=BCE), "warning", "sigmoid_applied", f"{BCE} applies sigmoid"),
    (SIGMOID, 2 * B - 1, dict(loss="hinge_loss"), "warning", "sigmoid_applied", "sigmoid seems"),
    (Z, B, dict(loss="binary_cross_entropy"), "error", "logits_for_probabilities", "these seem to be logits"),
    (-abs(Z), B, dict(loss="binary_cross_entropy"), "error", "logits_for_probabilities", "logs of probabilities"),
    (Z, Y, dict(loss="dice_loss", from_logits=False), "error", "logits_for_probabilities", "from_logits=True"),
    (Z, B, dict(loss="dice_loss", from_logits=False, mode="multilabel"), "error", "logits_for_probabilities", "logits"),
    (SIGMOID, Y, dict(loss="dice_loss", from_logits=False), "warning", "not_normalized", "sum to 1"),
    (Z, Y, dict(loss="nll_loss"), "error", "logits_for_log_probabilities", "these seem to be logits"),
    (Z, P, dict(loss="kl_div"), "error", "logits_for_log_probabilities", "these seem to be logits"),
    (LOG_P - 1, Y, dict(loss="nll_loss"), "warning", "not_normalized", "exp of a row should sum to 1"),
    (np.zeros((64, 5)), Y, {}, "note", "constant_logits", "all logits are 0"),
    (np.ones((64, 5)), Y, {}, "warning", "constant_logits", "are equal"),
    (np.ones((64, 5)), B, dict(loss=BCE), "warning", "constant_logits", "equal"),
    (Z * 1e4, Y, {}, "warning", "saturated_logits", "98% of the rows"),
    (Z * 1e3, B, dict(loss=BCE), "warning", "saturated_logits", "of the elements"),
    (Z[:, :1], Y * 0, {}, "warning", "one_class", "its softmax is always 1"),
    # numbers that are none
    (put(Z, (3, 1), NAN), Y, {}, "error", "nan", "1 of 320 values looked at is NaN, at logits[3, 1]"),
    (put(Z, (slice(9, 12), 2), NAN), Y, {}, "error", "nan", "first at logits[9, 2], logits[10, 2], logits[11, 2]"),
    (put(TLM, (2, 5, 7), NAN), TOKENS, dict(axis=-1), "error", "nan", "at logits[2, 5, 7]"),
    (put(MAPS, (1, 3, 0, 6), NAN), MASKS, {}, "error", "nan", "at logits[1, 3, 0, 6]"),
    (put(Z, (3, 1), NAN)[3], 0, {}, "error", "nan", "at logits[1]"),
    (put(Z, (3, 1), NAN), B, dict(loss=BCE), "error", "nan", "at logits[3, 1]"),
    (np.array(NAN), np.array(1), dict(loss=BCE), "error", "nan", "at logits"),
    (put(Z, (3, 1), INF), Y, {}, "error", "inf", "is +inf, at logits[3, 1]"),
    (put(Z, (3, 1), INF), B, dict(loss=BCE), "error", "inf", "is +inf, at logits[3, 1]"),
    (ROW_4, Y, {}, "error", "all_minus_inf", "1 row"),
    (LABEL_MASKED, Y, {}, "error", "impossible_target", f"first at logits[7, {Y[7]}]"),
    (put(Z, (7, 0), -INF), P, {}, "error", "impossible_target", "has a probability above 0"),
    (LABEL_MASKED, HOT, {}, "error", "impossible_target", "has a probability above 0"),
    # labels
    (Z, HOT.astype(int), {}, "error", "one_hot_labels", "target.argmax(axis=1)"),
    (Z, HOT.astype(bool), {}, "error", "one_hot_labels", "target.argmax(axis=1)"),
    (Z, B, {}, "error", "one_hot_labels", "Rows hold several ones"),
    (LOG_P, HOT, dict(loss="nll_loss"), "error", "one_hot_labels", "nll_loss takes class indices"),
    (Z, HOT, {}, "note", "one_hot_probabilities", "target.argmax(axis=1)"),
    (Z, Y.astype(float), {}, "error", "float_labels", "target.astype(np.int64)"),
    (Z, RNG.random(64), {}, "error", "float_labels", "not whole numbers"),
    (Z, Y > 2, {}, "error", "boolean_labels", "boolean"),
    (Z, Y, dict(loss=BCE), "error", "indices_for_binary", "np.eye(5)[target]"),
    (LOG_P, Y, dict(loss="kl_div"), "error", "indices_for_probabilities", "np.eye(5)[target]"),
    (Z, Y + 1, {}, "error", "labels_off_by_one", "all labels lie in 1 to 5, but 5 classes are numbered 0 to 4"),
    (Z, put(Y + 1, 3, -100), {}, "error", "labels_off_by_one", "target - 1"),
    (Z, put(Y, 7, 9), {}, "error", "label_out_of_range", "target[7] is 9"),
    (Z, put(put(Y, 7, 9), 5, -3), {}, "error", "label_out_of_range", "target[5] is -3"),
    (Z, put(Y, 7, 5), {}, "error", "label_out_of_range", "target[7] is 5"),
    (Z, Y.astype(np.uint8) + np.uint8(250), {}, "error", "label_out_of_range", "64 of 64 labels"),
    (Z, put(Y, 7, -1), {}, "error", "unnamed_ignore_index", "ignore_index=-1"),
    (Z, put(Y, slice(7, 9), -1), {}, "error", "unnamed_ignore_index", "and ignore_index is -100"),
    (Z, put(Y.astype(np.uint8), 7, 255), {}, "error", "unnamed_ignore_index", "ignore_index=255"),
    (Z, put(Y, 7, -100), dict(ignore_index=-1), "error", "unnamed_ignore_index", "ignore_index=-100"),
    (Z, put(Y, 7, -100), dict(loss="multi_margin_loss"), "error", "unnamed_ignore_index", "-100"),
    (Z, np.full(64, -100), {}, "error", "all_ignored", "all of 64 targets are -100"),
    (Z, np.full((64, 5), 2), dict(loss=BCE, ignore_index=2), "error", "all_ignored", "are 2"),
    (TLM.repeat(20, 1), put(np.full((4, 320), -100), (0, 0), 1), dict(axis=-1), "warning", "nearly_all_ignored",
     "1,279 of 1,280"),
    (TLM.repeat(2, 1), put(np.full((4, 32), -100), (0, slice(5)), 1), dict(axis=-1), "note", "nearly_all_ignored",
     "123 of 128"),
    (Z, Y * 0 + 3, {}, "warning", "single_class", "every label that counts is 3 (64 targets)"),
    (MAPS, MASKS * 0, {}, "note", "single_class", "every label"),
    (Z[:, 0], Y * 0, dict(loss=BCE), "warning", "single_class", "every target is 0"),
    (RNG.normal(size=(200, 3)), RARE, {}, "note", "class_imbalance", "weight=[0.444, 1.48, 13.3] balances them"),
    (RNG.normal(size=(200, 4)), RARE, {}, "note", "class_imbalance", "class 3 does not occur"),
    (RNG.normal(size=(200, 4)), RARE, {}, "note", "class_imbalance", "weight=[0.333, 1.11, 10, 1] balances them: n"),
    (RNG.normal(size=200), np.arange(200) < 10, dict(loss=BCE), "note", "class_imbalance", "pos_weight=19 balances"),
    (Z, B * 0, dict(loss="multilabel_margin_loss"), "warning", "one_hot_labels", "only 0 and 1"),
    (Z, B + 4, dict(loss="multilabel_margin_loss"), "error", "label_out_of_range", "4 to 5"),
    (Z, HOT, dict(loss="multilabel_margin_loss"), "error", "label_list_dtype", "end in -1"),
    # probabilities as targets
    (Z, P * 2, {}, "error", "target_outside_0_1", "but probabilities lie in [0, 1]"),
    (Z, LOG_P, {}, "error", "target_outside_0_1", "These are logs"),
    (LOG_P, LOG_P, dict(loss="kl_div"), "error", "target_outside_0_1", "log_target=True"),
    (Z, P * 0.5, {}, "warning", "target_sums", "in 64 of 64 rows"),
    (Z, B.astype(float), {}, "warning", "target_sums", "many labels at once"),
    (LOG_P, LOG_P - 1, dict(loss="kl_div", log_target=True), "warning", "target_sums", "sum to 1"),
    (TLM, np.exp(TLM) / np.exp(TLM).sum(axis=-1, keepdims=True), {}, "warning", "class_axis", "axis=2"),
    (Z, put(P, (2, 2), NAN), {}, "error", "nan_target", "1 of 320"),
    # binary targets
    (Z, 2 * B - 1, dict(loss=BCE), "error", "signs_for_binary", "(target + 1) / 2"),
    (Z, 255 * B, dict(loss=BCE), "error", "target_outside_0_1", "target / 255"),
    (Z, put(B, (0, 0), -7), dict(loss=BCE), "error", "unnamed_ignore_index", "ignore_index=-7"),
    (Z, B + 1, dict(loss="sigmoid_focal_loss"), "error", "target_outside_0_1", "Class indices?"),
    (Z, Z, dict(loss=BCE), "error", "target_outside_0_1", "Scale"),
    (Z, put(B.astype(float), (0, 0), NAN), dict(loss=BCE), "error", "nan_target", "1 of 320"),
    (Z, B, dict(loss="hinge_loss"), "error", "zeros_for_signs", "2 * target - 1"),
    (Z, B, dict(loss="soft_margin_loss"), "error", "zeros_for_signs", "2 * target - 1"),
    (Z, 3 * B, dict(loss="hinge_loss"), "warning", "target_not_signs", "takes -1 and 1"),
    # shapes and dtypes
    (TLM, TOKENS, {}, "error", "class_axis", "axis=-1"),
    (Z.T, Y, {}, "error", "class_axis", "axis=0"),
    (Z, Y[:, None], {}, "error", "extra_axis", "target.reshape((64,))"),
    (Z[:, :1], B[:, 0], dict(loss=BCE), "error", "extra_axis", "target.reshape((64, 1))"),
    (Z, Y[:9], {}, "error", "target_shape", "target has shape (9,)"),
    (Z, B[:9], dict(loss=BCE), "error", "target_shape", "(9, 5)"),
    (LOG_P, P[:9], dict(loss="kl_div"), "error", "target_shape", "(9, 5)"),
    (MAPS[:, :1], B[:2], dict(loss="dice_loss", mode="binary"), "error", "target_shape", "(2, 5)"),
    (Z, Y, dict(axis=2), "error", "logits_shape", "no axis 2"),
    (np.array(1.0), np.array(1), {}, "error", "logits_shape", "no axis"),
    (np.zeros((4, 0)), np.zeros(4, int), {}, "error", "logits_shape", "no classes"),
    (np.zeros((0, 4)), np.zeros(0), {}, "error", "empty", "no rows"),
    (np.zeros((0, 4)), np.zeros((0, 4)), dict(loss=BCE), "error", "empty", "empty"),
    (Y, P, {}, "error", "swapped", "logits, target"),
    (Y, Y, {}, "error", "logits_dtype", "int64"),
    (Z + 0j, Y, {}, "error", "logits_dtype", "complex128"),
    (Z, Y + 0j, {}, "error", "target_dtype", "complex128"),
    # weights
    (Z, Y, dict(weight=np.ones(4)), "error", "weight_shape", "(5,)"),
    (Z, B, dict(weight=np.ones(4), loss=BCE), "error", "weight_shape", "broadcast"),
    (Z, Y, dict(weight=[1, 1, 1, 1, INF]), "error", "weight_values", "NaN or inf"),
    (Z, Y, dict(weight=[1, 1, 1, 1, -1]), "warning", "weight_values", "negative"),
    (Z, B, dict(weight=-1.0, loss=BCE), "warning", "weight_values", "negative"),
    (Z, Y * 0 + 3, dict(weight=[1, 1, 1, 0, 1]), "error", "zero_weight", "weight 0"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("logits", "target", "options", "severity", "code", "text"),
    FINDINGS,
    ids=[f"{i}-{each[4]}-{each[2].get('loss', '')}" for i, each in enumerate(FINDINGS)],
)
def test_findings(logits, target, options, severity, code, text):
    result = diagnose(logits, target, **options)
    found = [each for each in result.findings if each.code == code]
    assert len(found) == 1, result
    assert found[0].severity == severity
    assert text in str(found[0])
    assert bool(result) == any(each.severity != "note" for each in result.findings)


@pytest.mark.parametrize(
    ("logits", "target", "options", "codes"),
    [
        (P, Y, {}, ["softmax_applied"]),
        (LOG_P, Y, {}, ["log_softmax_applied"]),
        (SIGMOID, B, dict(loss=BCE), ["sigmoid_applied"]),
        (Z, Y, dict(loss="nll_loss"), ["logits_for_log_probabilities"]),
        (Z, B, dict(loss="binary_cross_entropy"), ["logits_for_probabilities"]),
        (put(Z, (3, 1), NAN), Y, {}, ["nan"]),
        (ROW_4, Y, {}, ["all_minus_inf"]),
        (LABEL_MASKED, Y, {}, ["impossible_target"]),
        (Z, HOT.astype(int), {}, ["one_hot_labels"]),
        (Z, HOT, {}, ["one_hot_probabilities"]),
        (Z, Y + 1, {}, ["labels_off_by_one"]),
        (Z, put(Y, 7, -1), {}, ["unnamed_ignore_index"]),
        (Z, np.full(64, -100), {}, ["all_ignored"]),
        (Z, P * 2, {}, ["target_outside_0_1"]),
        (TLM, TOKENS, {}, ["class_axis"]),
        (Z, 2 * B - 1, dict(loss=BCE), ["signs_for_binary"]),
        (P, Y + 1, {}, ["labels_off_by_one", "softmax_applied"]),
        (Z, Y.astype(float) + 1, {}, ["float_labels", "labels_off_by_one"]),
    ],
)
def test_one_mistake_is_one_finding(logits, target, options, codes):
    assert [each.code for each in diagnose(logits, target, **options).findings] == codes


def test_every_finding_is_tested():
    source = Path(diagnosis.__file__).read_text()
    calls = re.findall(r'self\.(?:error|warning|note)\(\s*"(\w+)"', source)
    calls += re.findall(r'self\.add\(\s*"[^\n]*,\s*"(\w+)"', source) + re.findall(r'code, suggestion = "(\w+)"', source)
    assert len(set(calls)) > 30
    assert set(calls) <= {each[4] for each in FINDINGS}


# Batches with nothing wrong


def batches():
    rng = np.random.default_rng(1)
    for dtype in DTYPES:
        for shape, axis in [
            ((64, 10), 1),
            ((1, 10), 1),
            ((1, 1000), 1),
            ((10,), 1),
            ((2, 2), 1),
            ((256, 2), 1),
            ((2, 21, 16, 16), 1),
            ((4, 32, 1000), -1),
            ((3, 8, 5), 0),
        ]:
            rows = list(shape)
            del rows[axis if len(shape) > 1 else 0]
            for scale in (0.02, 1.0, 5.0):
                logits = (scale * rng.normal(size=shape)).astype(dtype)
                classes = shape[axis if len(shape) > 1 else 0]
                yield logits, rng.integers(0, classes, rows), dict(axis=axis)


def test_ordinary_batches_are_not_suspected():
    for logits, target, options in batches():
        for loss in ("cross_entropy", "focal_cross_entropy", "multi_margin_loss", "dice_loss", "lovasz_loss"):
            result = diagnose(logits, target, loss=loss, **options)
            assert not result, (loss, logits.shape, logits.dtype, result)
        log_p = fl.log_softmax(logits, axis=options["axis"])
        result = diagnose(log_p, target, loss="nll_loss", **options)
        assert not result, (logits.shape, logits.dtype, result)
        result = diagnose(log_p, fl.softmax(logits, axis=options["axis"]), loss="kl_div")
        assert not result, (logits.shape, logits.dtype, result)
        result = diagnose(logits, fl.softmax(logits, axis=options["axis"]), **options)
        assert not result, (logits.shape, logits.dtype, result)


def test_ordinary_binary_batches_are_not_suspected():
    rng = np.random.default_rng(2)
    for logits, _, _ in batches():
        target = rng.integers(0, 2, logits.shape)
        for loss in (BCE, "sigmoid_focal_loss", "multilabel_soft_margin_loss", "soft_margin_loss", "hinge_loss"):
            labels = 2 * target - 1 if loss in ("soft_margin_loss", "hinge_loss") else target
            assert not diagnose(logits, labels, loss=loss), (loss, logits.shape, logits.dtype)
            assert not diagnose(logits, target.astype(bool), loss=loss), (loss, logits.shape, logits.dtype)
        result = diagnose(fl.sigmoid(logits), target, loss="binary_cross_entropy")
        assert not result, (logits.shape, logits.dtype, result)
        for mode in ("multilabel", "binary"):
            assert not diagnose(logits, target, loss="dice_loss", mode=mode)
    assert not diagnose(rng.normal(size=(2, 1, 8, 8)), rng.integers(0, 2, (2, 8, 8)), loss="dice_loss", mode="binary")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_confident_trained_logits_are_not_suspected(dtype):
    rng = np.random.default_rng(3)
    target = rng.integers(0, 10, 512)
    for margin in (8, 20, 60):
        logits = (rng.normal(size=(512, 10)) + margin * np.eye(10)[target]).astype(dtype)
        assert not diagnose(logits, target)
        assert not diagnose(logits, np.eye(10)[target], loss=BCE)
        assert not diagnose(fl.log_softmax(logits, axis=1), target, loss="nll_loss")


@pytest.mark.parametrize("masked", [-INF, -1e9, -65504.0, -1e4])
def test_masked_classes_are_not_suspected(masked):
    only_two = put(Z, (slice(None), slice(2, None)), masked)
    assert not diagnose(only_two, Y % 2)
    only_one = put(Z, (slice(None), slice(1, None)), masked)
    assert [each.code for each in diagnose(only_one, Y * 0).findings] == ["single_class"]


def test_what_ignored_rows_hold_does_not_matter():
    logits, target = Z.copy(), Y.copy()
    logits[5], logits[6], logits[7] = NAN, INF, -INF
    target[5:8] = -100
    assert not diagnose(logits, target)
    assert diagnose(logits, Y)
    elements = put(Z, (2, 3), NAN)
    assert not diagnose(elements, put(B, (2, 3), 9), loss=BCE, ignore_index=9)


def test_padding_at_the_end_of_sequences_is_not_suspected():
    target = np.where(np.arange(16) < 6, TOKENS, -100)
    assert not diagnose(TLM, target, axis=-1)
    assert not diagnose(TLM, np.where(np.arange(16) < 6, TOKENS, 0), axis=-1, ignore_index=0)


def codes(logits, target, **options):
    return [each.code for each in diagnose(logits, target, **options).findings]


def test_what_only_resembles_a_mistake_is_not_suspected():
    assert "softmax_applied" not in codes(put(P, slice(1, None), P[1:] / 2), Y)
    assert codes(Z - 20, Y) == []  # negative, but no log-probabilities
    assert codes(put(Z, (slice(None), 2), -1e9), B, loss=BCE) == []
    assert codes(SIGMOID[:4], Y[:4]) == [] and codes(SIGMOID[:3], B[:3], loss=BCE) == []
    assert codes(0.3 + 0.01 * Z, B, loss=BCE) == []  # the first step, with a bias
    assert codes([[1.0, 1.0]], [0]) == []
    assert codes(RNG.normal(size=(300, 3)), np.arange(300) % 3) == []


def test_a_bad_row_does_not_hide_the_others():
    assert codes(put(P, 3, -INF), Y) == ["all_minus_inf", "softmax_applied"]
    assert codes(put(P, (3, 1), NAN), Y) == ["nan", "softmax_applied"]


def test_few_or_rare_classes_are_not_suspected():
    assert not diagnose(Z[:8], np.zeros(8, int))
    assert not diagnose(RNG.normal(size=(200, 3)), RARE)
    assert diagnose(RNG.normal(size=(200, 3)), RARE, weight=[1, 2, 3]).findings == ()


@pytest.mark.parametrize("dtype", [np.dtype(code) for code in "bhilqBHILQ"] + [np.dtype(">i4")], ids=str)
def test_integer_types(dtype):
    assert diagnose(Z, Y.astype(dtype)).findings == ()
    assert [each.code for each in diagnose(Z, (Y + 1).astype(dtype)).findings] == ["labels_off_by_one"]


def test_layouts():
    for logits in (Z[::-1], np.asfortranarray(Z), Z.astype(">f4"), np.broadcast_to(Z[:1], (64, 5))):
        assert not diagnose(logits, Y)
    assert [each.code for each in diagnose(P[::2], Y[::2]).findings] == ["softmax_applied"]
    assert not diagnose([[1.0, 2.0], [3.0, 4.0]], [0, 1])
    Z.flags.writeable = False
    try:
        assert not diagnose(Z, Y)
    finally:
        Z.flags.writeable = True


def test_a_large_batch_is_sampled():
    logits = np.broadcast_to(P.astype(np.float32).reshape(1, 64, 5), (2**14, 64, 5))
    target = np.zeros(logits.shape[:2], np.int8)
    target[-1, -1] = 7
    result = diagnose(logits, target, axis=-1)
    assert {"softmax_applied", "label_out_of_range"} <= {each.code for each in result.findings}
    assert "target[16383, 63] is 7" in str(result)
    assert result.looked_at == "209,715 of 1,048,576 rows of 5 classes, 1,048,576 labels"
    binary = diagnose(logits, np.broadcast_to(B, logits.shape), loss=BCE)
    assert binary.looked_at == "1,048,576 of 5,242,880 logits and their targets"


def test_the_end_of_a_large_batch_is_looked_at():
    logits = np.zeros((2**19, 4), np.float32)
    logits[-(2**17) :] = NAN
    assert "nan" in codes(logits, np.arange(2**19) % 4)


def test_one_very_long_row():
    result = diagnose(np.broadcast_to(np.float32(0), (4, 2**21)), [0, 1, 2, 3])
    assert result.looked_at == "1 of 4 rows of 2,097,152 classes, 4 labels"


def test_the_batch_is_left_alone():
    logits, target = Z.copy(), Y.copy()
    diagnose(logits, target)
    assert (logits == Z).all() and (target == Y).all()


# The result


def test_report():
    result = diagnose(P, put(Y + 1, 0, 5), ignore_index=-1)
    assert [each.severity for each in result.findings] == ["error", "warning"]
    paragraphs = str(result).split("\n\n")
    assert len(paragraphs) == 3 and paragraphs[0].startswith("error: ") and paragraphs[1].startswith("warning: ")
    assert repr(result) == "<Diagnosis: error labels_off_by_one, warning softmax_applied>"
    fine = diagnose(Z, Y)
    assert str(fine) == "nothing suspicious found\nlooked at: 64 of 64 rows of 5 classes, 64 labels"
    assert repr(fine) == "<Diagnosis: nothing suspicious found>" and not fine
    with pytest.raises(AttributeError):
        fine.findings = ()
    note = Finding("note", "code", "message", "suggestion")
    assert not Diagnosis((note,), "") and Diagnosis((note, Finding("warning", "code", "", "")), "")
    with pytest.raises(AttributeError):
        note.code = "other"


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (dict(logits=None), TypeError, "logits must be an array of numbers, not None"),
        (dict(logits="abc"), TypeError, "logits must be an array of numbers, not 'abc'"),
        (dict(logits=object()), TypeError, "logits must be an array of numbers, not "),
        (dict(logits=[[1.0, 2.0], [3.0]]), TypeError, "logits can't be read as an array"),
        (dict(target=["a", "b"]), TypeError, "target must be an array of numbers, not "),
        (dict(target={1: 2}), TypeError, "target must be an array of numbers, not "),
        (dict(weight=["a"]), TypeError, "weight must be an array of numbers, not "),
        (dict(loss="mse"), ValueError, "loss must be one of 'cross_entropy', "),
        (dict(loss=3), TypeError, "loss must be one of "),
        (dict(mode="multi"), ValueError, "mode must be one of "),
        (dict(axis=1.0), TypeError, "axis must be an integer"),
        (dict(ignore_index="a"), TypeError, "ignore_index must be an integer"),
    ],
)
def test_errors(arguments, error, text):
    with pytest.raises(error) as caught:
        diagnose(**{"logits": Z, "target": Y, **arguments})
    assert text in str(caught.value)


LOSSES = list(catalogue.DOMAINS)


def test_odd_batches_are_findings_not_exceptions():
    """Whatever shapes and dtypes meet, for each loss."""
    rng = np.random.default_rng(4)
    shapes = [(), (0,), (1,), (3,), (3, 0), (0, 3), (1, 1), (3, 3), (3, 4), (4, 3, 1), (2, 3, 4), (2, 1, 3, 4)]
    dtypes = [np.float32, np.float64, np.float16, BFLOAT16, np.longdouble, np.int64, np.uint8, np.bool_, np.complex64,
              ml_dtypes.float8_e4m3fn]  # fmt: skip
    specials = np.array([NAN, INF, -INF, 0.0, 1.0, -1.0, 2.0, 300.0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(6000):
            arrays = []
            for _ in range(2):
                shape = shapes[rng.integers(len(shapes))]
                values = rng.normal(size=shape) if rng.random() < 0.5 else specials[rng.integers(0, 8, shape)]
                with np.errstate(all="ignore"), warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    arrays.append(np.asarray(values).astype(dtypes[rng.integers(len(dtypes) - 1)]))
            options = dict(axis=int(rng.integers(-3, 4)), loss=LOSSES[rng.integers(len(LOSSES))])
            options.update(mode=["multiclass", "multilabel", "binary"][rng.integers(3)], from_logits=rng.random() < 0.5)
            options.update(log_target=rng.random() < 0.5)
            if rng.random() < 0.3:
                options["weight"] = specials[: rng.integers(0, 5)]
            if rng.random() < 0.3:
                options["ignore_index"] = int(rng.integers(-2, 3))
            assert isinstance(str(diagnose(*arrays, **options)), str)


def test_every_loss_is_known():
    assert set(catalogue.LOSSES) == set(LOSSES)


# FASTLOSS_DIAGNOSE=1


@pytest.fixture
def wrapped(monkeypatch):
    """A loss as it is with FASTLOSS_DIAGNOSE=1."""
    monkeypatch.setattr(catalogue, "LOSSES", {})
    monkeypatch.setattr(catalogue, "_DIAGNOSE", True)
    monkeypatch.setattr(diagnosis, "_checked", set())

    def cross_entropy(logits, target, *, axis=1, ignore_index=-100, engine=None):
        """The loss."""
        return "loss", logits, target, axis

    return catalogue.loss(cross_entropy)


def test_the_decorator_is_free_without_the_variable(monkeypatch):
    monkeypatch.setattr(catalogue, "LOSSES", {})
    monkeypatch.setattr(catalogue, "_DIAGNOSE", False)

    def some_loss(logits, target):
        pass

    assert catalogue.loss(some_loss) is some_loss
    assert catalogue.LOSSES["some_loss"] is some_loss


def test_the_wrapper_keeps_name_signature_and_result(wrapped):
    assert wrapped.__name__ == "cross_entropy" and wrapped.__doc__ == "The loss."
    assert list(inspect.signature(wrapped).parameters) == ["logits", "target", "axis", "ignore_index", "engine"]
    assert catalogue.LOSSES["cross_entropy"] is wrapped
    assert wrapped(Z, Y) == ("loss", Z, Y, 1)


def test_the_first_batch_of_each_line_is_diagnosed(wrapped):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            wrapped(P, Y)
        wrapped(P, target=Y)
        wrapped(logits=P, target=Y)
        wrapped(Z, Y)
    lines = [each.lineno for each in caught]
    assert len(lines) == 3 and lines[1] == lines[0] + 1 and lines[2] == lines[0] + 2
    assert all(each.category is DiagnosisWarning and each.filename == __file__ for each in caught)
    text = str(caught[0].message)
    assert text.startswith("fastloss.cross_entropy, first batch of this call") and "softmax_applied" in text


def test_only_the_first_batch_is_looked_at(wrapped):
    for logits in (Z, P):
        wrapped(logits, Y)  # a warning would be an error here


def test_notes_do_not_warn(wrapped):
    wrapped(LOG_P, Y)
    with pytest.warns(DiagnosisWarning, match="softmax_applied") as caught:
        wrapped(P, HOT)
    assert "one_hot" not in str(caught[0].message) and "one_hot" in str(diagnose(P, HOT))


def test_options_reach_the_diagnosis(wrapped):
    wrapped(TLM, TOKENS, axis=-1, engine="reference")
    wrapped(Z, put(Y, 3, -1), ignore_index=-1)
    with pytest.warns(DiagnosisWarning, match="class_axis"):
        wrapped(TLM, TOKENS)


def test_a_diagnosis_that_fails_does_not_fail_the_call(wrapped, monkeypatch):
    wrapped(None, "abc")
    monkeypatch.setattr(diagnosis, "diagnose", lambda *args, **options: 1 / 0)
    assert wrapped(P, Y)[0] == "loss"


def test_wrong_calls_are_the_function_s_to_refuse(wrapped):
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        wrapped(Z)
    with pytest.raises(TypeError, match="positional arguments but 3"):
        wrapped(Z, Y, 1)


def test_a_loss_that_diagnose_does_not_know(monkeypatch):
    monkeypatch.setattr(diagnosis, "_checked", set())
    check_first("my_loss", P, Y, {})


def test_the_environment_variable():
    code = (
        "import warnings, numpy as np\n"
        "from fastloss import catalogue\n"
        "assert catalogue._DIAGNOSE\n"
        "def cross_entropy(logits, target): return 1.0\n"
        "loss = catalogue.loss(cross_entropy)\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    loss(np.full((4, 2), 0.5), np.array([1, 2, 1, 2]))\n"
        "print([(w.filename, w.lineno, w.category.__name__) for w in caught])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "FASTLOSS_DIAGNOSE": "1"}, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[('<string>', 8, 'DiagnosisWarning')]", done.stderr
