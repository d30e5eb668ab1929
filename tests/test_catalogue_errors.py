"""Each error of the catalogue's losses: its type and text; and none writes anything first."""

import re

import numpy as np
import pytest
from checks import BFLOAT16
from test_catalogue_numeric import batch, every_case

import fastloss as fl

Z = np.linspace(-1, 1, 40).reshape(4, 10)
P = (Z + 1) / 2
Y = np.array([1, 2, 3, 4])
SIGNS = np.where(Z > 0, 1, -1)
LISTS = np.full((4, 10), -1)
NAN = float("nan")


def with_entry(array, at, value):
    array = array.copy()
    array[at] = value
    return array


# What every loss of elements, over classes, and of overlap refuses, but for the words that differ.
ELEMENTS = [
    (dict(input=Z.astype(int)), TypeError, "{name} must be float32, float64, float16 or bfloat16, not int64"),
    (dict(input=None), TypeError, "{name} must be float32, float64, float16 or bfloat16, not object"),
    (dict(input=[[1.0], [2.0, 3.0]]), ValueError, "{name} can't be read as an array: "),
    (dict(target=Z[:, :1]), ValueError, "target has shape (4, 1), but needs one entry for each of the {name}: shape"),
    (dict(target=None), TypeError, "target must be boolean, integer or floating, not object"),
    (dict(target=P + 0j), TypeError, "target must be boolean, integer or floating, not complex128"),
    (dict(target="yes"), TypeError, "target must be boolean, integer or floating, not str"),
]
CLASSES = [
    (dict(input=Z.astype(int)), TypeError, "logits must be float32, float64, float16 or bfloat16, not int64"),
    (dict(input=1.5), ValueError, "logits have no dimensions: expected at least one, the class axis"),
    (dict(input=np.zeros((4, 0))), ValueError, "logits of shape (4, 0) have no classes on axis 1: expected at least"),
    (dict(target=Y[:3]), ValueError, "target has shape (3,) but logits (4, 10) with class axis 1 need targets of"),
    (dict(target=Y > 0), TypeError, "target is boolean: expected class indices of an integer dtype"),
    (dict(target=None), TypeError, "target must be class indices"),
    (dict(target=[1, 2, 10, 3]), IndexError, "target[2] is 10, but logits have 10 classes on axis 1: expected 0 <= "),
    (dict(target=[1, -1, 10, 3]), IndexError, "target[1] is -1, but logits have 10 classes on axis 1: expected 0 <= "),
    (dict(target=np.full(4, 2**64 - 1, np.uint64)), IndexError, "target[0] is 18446744073709551615, but"),
    (dict(weight=np.ones(4)), ValueError, "weight has shape (4,), but 10 classes need one entry each: shape (10,)"),
    (dict(weight="a"), TypeError, "weight must be boolean, integer or floating, not str"),
]
ROWS = [
    (dict(sample_weight=[1.0]), ValueError, "sample_weight has shape (1,), but needs one entry a target: shape (4,)"),
    (dict(ignore_index=1.5), TypeError, "ignore_index must be an integer, not 1.5"),
    (dict(normalizer=0), ValueError, "normalizer must be None, or finite and above 0, not 0"),
    (dict(empty="no"), ValueError, "empty must be one of 'nan', 'zero', 'raise', not 'no'"),
    (dict(target=[-100] * 4, empty="raise"), ValueError, "the mean is over nothing: every target is ignored or has"),
    (dict(axis=2), ValueError, "axis is 2, but logits of shape (4, 10) have axes -2 to 1"),
    (dict(axis=None), TypeError, "axis must be an integer, not None"),
    (dict(target=[1, 10, -100, 3]), IndexError, "target[1] is 10, but logits have 10 classes on axis 1: expected 0 <="),
]
GAMMA = [
    (dict(gamma=-0.5), ValueError, "gamma must be finite and at least 0, not -0.5"),
    (dict(gamma=NAN), ValueError, "gamma must be finite and at least 0, not nan"),
    (dict(gamma="2"), TypeError, "gamma must be a number, not '2'"),
    (dict(gamma=None), TypeError, "gamma must be a number, not None"),
]
WEIGHT = [
    (dict(weight=np.ones(4)), ValueError, "weight has shape (4,), which does not broadcast to the logits' shape"),
    (dict(weight=np.ones((1, 4, 10))), ValueError, "weight has shape (1, 4, 10), which does not broadcast to the"),
    (dict(weight="a"), TypeError, "weight must be boolean, integer or floating, not str"),
]
MARGIN = [
    (dict(margin=NAN), ValueError, "margin must be finite, not nan"),
    (dict(margin="a"), TypeError, "margin must be a number, not 'a'"),
]
OVERLAP = [
    *(case for case in CLASSES if "weight" not in case[0]),
    (dict(mode="multi"), ValueError, "mode must be one of 'multiclass', 'multilabel', 'binary', not 'multi'"),
    (dict(mode=None), TypeError, "mode must be one of 'multiclass', 'multilabel', 'binary', not None"),
    (dict(mode="multilabel"), ValueError, "target has shape (4,), but mode='multilabel' needs a mask of the logits'"),
    (dict(mode="binary"), ValueError, "target has shape (4,), but mode='binary' needs a mask of the logits' shape"),
    (dict(mode="binary", target=Z + 0j), TypeError, "target must be boolean, integer or floating, not complex128"),
    (dict(input=np.zeros(3), target=0, per_sample=True), ValueError, "per_sample needs the samples on axis 0 and the"),
    (dict(target=np.zeros(10, int), axis=0, per_sample=True), ValueError, "per_sample needs the samples on axis 0"),
    (dict(ignore_index=0.5), TypeError, "ignore_index must be an integer, not 0.5"),
    (dict(ignore_index=2**63), ValueError, "ignore_index must fit in a signed 64-bit integer"),
    (dict(axis=2), ValueError, "axis is 2, but logits of shape (4, 10) have axes -2 to 1"),
    (dict(target=Z), TypeError, "target must be class indices of an integer dtype and shape (4,), not float64: for "),
]
SCORES = [
    *OVERLAP,
    *(case for case in CLASSES if "weight" in case[0]),
    (dict(weight=np.zeros(10)), ValueError, "weight must hold numbers that are at least 0, and not only 0"),
    (dict(weight=-np.ones(10)), ValueError, "weight must hold numbers that are at least 0, and not only 0"),
    (dict(weight=[1], mode="binary", target=Z), ValueError, "weight is given, but mode='binary' has one class"),
    (dict(smooth=-1), ValueError, "smooth must be finite and at least 0, not -1"),
    (dict(smooth=NAN), ValueError, "smooth must be finite and at least 0, not nan"),
    (dict(eps=-1e-9), ValueError, "eps must be finite and at least 0, not -1e-09"),
    (dict(absent="no"), ValueError, "absent must be one of 'zero', 'count', not 'no'"),
    (dict(grad_output=np.ones(4), reduction="none"), ValueError, "grad_output has shape (4,), but the loss has shape"),
]
LOSSES = {
    fl.binary_cross_entropy: (
        "probs",
        P,
        P,
        [
            *ELEMENTS,
            *WEIGHT,
            (dict(input=with_entry(P, (3, 9), 1.5)), ValueError, "probs[3, 9] is 1.5, but probabilities lie in [0, 1]"),
            (dict(input=with_entry(P, (1, 2), -0.25)), ValueError, "probs[1, 2] is -0.25, but probabilities lie in [0"),
            (dict(input=with_entry(P, (0, 0), np.inf)), ValueError, "probs[0, 0] is inf, but probabilities lie in [0"),
            (dict(input=Z), ValueError, "for logits see binary_cross_entropy_with_logits"),
        ],
    ),
    fl.sigmoid_focal_loss: (
        "logits",
        Z,
        P,
        [
            *ELEMENTS,
            *GAMMA,
            (dict(alpha=1.5), ValueError, "alpha must be None, or in [0, 1], not 1.5"),
            (dict(alpha=-1), ValueError, "alpha must be None, or in [0, 1], not -1"),
            (dict(alpha="a"), TypeError, "alpha must be a number, not 'a'"),
        ],
    ),
    fl.soft_margin_loss: ("logits", Z, SIGNS, ELEMENTS),
    fl.hinge_loss: ("logits", Z, SIGNS, [*ELEMENTS, *MARGIN]),
    fl.multilabel_soft_margin_loss: (
        "logits",
        Z,
        P,
        [
            *ELEMENTS,
            *WEIGHT,
            (dict(input=1.5, target=1), ValueError, "logits have no dimensions: expected at least one, the labels"),
            (
                dict(grad_output=np.ones((4, 10)), reduction="none"),
                ValueError,
                "grad_output has shape (4, 10), but the loss has shape (4,)",
            ),
        ],
    ),
    fl.kl_div: (
        "log_input",
        Z,
        P,
        [
            *ELEMENTS,
            (dict(input=0.5, target=1, reduction="batchmean"), ValueError, "log_input has no dimensions: reduction="),
        ],
    ),
    fl.nll_loss: (
        "logits",
        Z,
        Y,
        [
            *CLASSES,
            *ROWS,
            (
                dict(target=P),
                TypeError,
                "target must be class indices of an integer dtype and shape (4,), not float64: for one-hot labels give "
                "target.argmax(axis=1)",
            ),
        ],
    ),
    fl.focal_cross_entropy: (
        "logits",
        Z,
        Y,
        [
            *CLASSES,
            *ROWS,
            *GAMMA,
            (dict(target=Y + 0.0), TypeError, "target has the shape of class indices, (4,), but dtype float64"),
            (dict(target=P, ignore_index=0), ValueError, "ignore_index is 0, but the target holds probabilities"),
            (dict(label_smoothing=1.5), ValueError, "label_smoothing must be in [0, 1], not 1.5"),
            (dict(softcap=0), ValueError, "softcap must be None, or finite and above 0, not 0"),
        ],
    ),
    fl.multi_margin_loss: (
        "logits",
        Z,
        Y,
        [
            *CLASSES,
            *MARGIN,
            (dict(p=3), ValueError, "p must be 1 or 2, not 3"),
            (dict(p=1.0), TypeError, "p must be an integer, not 1.0"),
            (dict(input=np.zeros((2, 3, 4))), ValueError, "logits have shape (2, 3, 4): expected (N, C) or (C,)"),
            (dict(target=[1, 2, -100, 3]), IndexError, "target[2] is -100, but logits have 10 classes"),
        ],
    ),
    fl.multilabel_margin_loss: (
        "logits",
        Z,
        LISTS,
        [
            CLASSES[0],
            CLASSES[1],
            CLASSES[2],
            (dict(target=Y), ValueError, "target has shape (4,), but needs the logits' shape (4, 10), padded with -1"),
            (
                dict(target=P),
                TypeError,
                "target must hold class indices, padded with -1, of an integer dtype, not float64",
            ),
            (dict(target=LISTS > 0), TypeError, "target must hold class indices, padded with -1, of an integer dtype"),
            (dict(target=with_entry(LISTS, (3, 9), 10)), IndexError, "target[3, 9] is 10, but logits have 10 classes"),
            (dict(target=with_entry(LISTS, (1, 0), -2)), IndexError, "target[1, 0] is -2, but logits have 10 classes"),
            (dict(input=np.zeros((2, 3, 4))), ValueError, "logits have shape (2, 3, 4): expected (N, C) or (C,)"),
        ],
    ),
    fl.dice_loss: ("logits", Z, Y, SCORES),
    fl.jaccard_loss: ("logits", Z, Y, SCORES),
    fl.tversky_loss: (
        "logits",
        Z,
        Y,
        [
            *SCORES,
            (dict(alpha=-1), ValueError, "alpha must be finite and at least 0, not -1"),
            (dict(beta=NAN), ValueError, "beta must be finite and at least 0, not nan"),
            (dict(gamma=0), ValueError, "gamma must be finite and above 0, not 0"),
            (dict(gamma="a"), TypeError, "gamma must be a number, not 'a'"),
        ],
    ),
    fl.lovasz_loss: (
        "logits",
        Z,
        Y,
        [
            *OVERLAP,
            (
                dict(from_logits=False, mode="multilabel", target=Z > 0),
                ValueError,
                "from_logits=False needs mode='multiclass', not 'multilabel': the hinge is one of logits",
            ),
            (dict(grad_output=np.ones(4), reduction="none"), ValueError, "grad_output has shape (4,), but the loss"),
            (
                dict(mode="binary", target=Z > 0, engine="abacus"),
                ValueError,
                "engine is 'abacus', which is not availab",
            ),
        ],
    ),
}
# What all refuse.
COMMON = [
    (dict(reduction="avg"), ValueError, "reduction must be one of 'mean', 'sum', 'none', not 'avg'"),
    (dict(reduction=None), TypeError, "reduction must be one of 'mean', 'sum', 'none', not None"),
    (dict(grad_output=np.ones(3)), ValueError, "grad_output has shape (3,), but the loss with reduction='mean' is a"),
    (dict(grad_output=np.ones((7, 7)), reduction="none"), ValueError, "grad_output has shape (7, 7), but the loss has"),
    (dict(grad_output="1"), TypeError, "grad_output must be boolean, integer or floating, not str"),
    (dict(grad_output=True), TypeError, "grad_output must be a number, not True"),
    (dict(num_threads=0), ValueError, "num_threads must be None or at least 1, not 0"),
    (dict(num_threads=1.5), TypeError, "num_threads must be an integer, not 1.5"),
    (dict(engine="abacus"), ValueError, "engine is 'abacus', which is not available"),
    (dict(engine=3), TypeError, "engine must be a string or None, not 3"),
    (dict(out_grad=np.zeros((10, 4))), ValueError, "out_grad has shape (10, 4), but the gradient has the logits' shap"),
    (dict(out_grad=np.zeros((4, 10), int)), TypeError, "out_grad must be float32, float64, float16 or bfloat16, not i"),
    (dict(out_grad=[[0.0] * 10] * 4), TypeError, "out_grad must be a numpy.ndarray, not list"),
    (dict(out_grad=np.broadcast_to(np.zeros(10), (4, 10))), ValueError, "out_grad is read-only: expected a writable"),
    (
        dict(out_grad=np.lib.stride_tricks.as_strided(np.zeros(10), (4, 10), (0, 8))),
        ValueError,
        "out_grad has elements that share memory (shape (4, 10), strides (0, 8))",
    ),
]
CASES = [
    pytest.param(function, case, error, text.format(name=name), id=f"{function.__name__}: {text[:60]}")
    for function, (name, _, _, own) in LOSSES.items()
    for case, error, text in [*own, *COMMON]
]


@pytest.mark.parametrize(("function", "case", "error", "text"), CASES)
def test_errors(engine, function, case, error, text):
    _, given, target, _ = LOSSES[function]
    case = {"input": given, "target": target, **case}
    given, target = case.pop("input"), case.pop("target")
    is_array = isinstance(given, np.ndarray) and given.size
    out = np.full(given.shape if is_array else (4, 10), 7.0)
    with pytest.raises(error, match=re.escape(text)) as caught:
        function(given, target, **{"out_grad": out, "engine": engine, **case})
    assert type(caught.value) is error
    assert (out == 7.0).all()
    case = {name: value for name, value in case.items() if name != "out_grad"}
    if "grad_output" not in case and is_array and "out_grad" not in text:  # and without a gradient
        with pytest.raises(error, match=re.escape(text)):
            function(given, target, **{"engine": engine, **case})


@every_case
def test_overlapping_memory_is_refused(engine, case):
    """With the input in part, and with every other argument."""
    function = case[0]
    given, target, options = batch(case, np.float64, (4, 5, 3))
    memory = np.empty(given.size + 1)
    for first, name in ((0, given[::-1]), (1, None)):
        view = memory[first : first + given.size].reshape(given.shape)
        view[...] = given
        other = view[::-1] if name is not None else memory[: given.size].reshape(given.shape)
        before = memory.copy()
        with pytest.raises(ValueError, match="out_grad partly overlaps logits: expected memory of its own, or exactly"):
            function(view, target, out_grad=other, engine=engine, **options)
        assert memory.tobytes() == before.tobytes()
    if target.shape == given.shape and target.dtype.kind == "f":
        wide = target.astype(np.float64)
        with pytest.raises(ValueError, match="out_grad overlaps target in memory: expected memory of its own"):
            function(given, wide, out_grad=wide, engine=engine, **options)
        assert np.array_equal(wide, target)
    for name in ("weight", "sample_weight"):
        if name in options:
            out = np.full(given.shape, 7.0)
            shape = np.shape(options[name])
            part = np.ndarray(shape, buffer=out)
            with pytest.raises(ValueError, match=f"out_grad overlaps {name} in memory: expected memory of its own"):
                function(given, target, out_grad=out, engine=engine, **{**options, name: part})
            assert (out == 7).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, BFLOAT16], ids=str)
@pytest.mark.parametrize("size", [1, 33, 5000, 300_000])
def test_the_first_bad_probability_is_named_and_nothing_written(engine, dtype, size):
    """In place too: the last of many, behind those that would be done first."""
    for bad, text in ((1.5, "1.5"), (-1.0, "-1"), (np.inf, "inf")):
        probs = np.full(size, 0.5, dtype)
        probs[-1] = bad
        before = probs.copy()
        for out in (probs, np.full(size, 7, dtype)):
            with pytest.raises(ValueError, match=re.escape(f"probs[{size - 1}] is {text}, but probabilities lie in")):
                fl.binary_cross_entropy(probs, np.ones(size), out_grad=out, num_threads=2, engine=engine)
            assert np.array_equal(out, before if out is probs else np.full(size, 7, dtype))
        if size > 40:
            probs[size // 2] = 2.0
            with pytest.raises(ValueError, match=re.escape(f"probs[{size // 2}] is 2, but probabilities lie in")):
                fl.binary_cross_entropy(probs, np.ones(size), num_threads=2, engine=engine)


@pytest.mark.parametrize("strided", [False, True])
def test_a_bad_probability_of_a_strided_array(engine, strided):
    probs = np.full((40, 60), 0.5)
    view = probs[::2, ::-1] if strided else probs.T
    view[7, 3] = 1.0 + 1e-15
    with pytest.raises(
        ValueError, match=re.escape("probs[7, 3] is 1.000000000000001, but probabilities lie in [0, 1]")
    ):
        fl.binary_cross_entropy(view, np.zeros(view.shape), return_grad=True, engine=engine)


@pytest.mark.parametrize(
    "function",
    [fl.nll_loss, fl.focal_cross_entropy, fl.multi_margin_loss, fl.dice_loss, fl.lovasz_loss],
    ids=lambda function: function.__name__,
)
@pytest.mark.parametrize("shape", [(300, 7), (5, 30000), (4, 6, 900)], ids=str)
def test_the_first_bad_index_is_named_and_nothing_written(engine, function, shape):
    if function is fl.multi_margin_loss and len(shape) > 2:
        shape = (3600, 6)
    logits = np.zeros(shape, np.float32)
    target = np.zeros(shape[:1] + shape[2:], np.int64)
    target.flat[target.size // 2], target.flat[-1] = shape[1], -1
    first = ", ".join(map(str, np.unravel_index(target.size // 2, target.shape)))
    with pytest.raises(IndexError, match=re.escape(f"target[{first}] is {shape[1]}, but logits have {shape[1]} class")):
        function(logits, target, out_grad=logits, num_threads=2, engine=engine)
    assert not logits.any()
