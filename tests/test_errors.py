"""Each error's type and text; and none writes anything first."""

import re

import numpy as np
import pytest
from checks import BFLOAT16

import fastloss as fl

Z = np.linspace(-1, 1, 40).reshape(4, 10)
Y = np.array([1, 2, 3, 4])
P = np.full((4, 10), 0.1)
NAN = float("nan")

CROSS_ENTROPY = [
    # logits
    (dict(logits=Z.astype(int)), TypeError, "logits must be float32, float64, float16 or bfloat16, not int64"),
    (dict(logits=Z + 0j), TypeError, "logits must be float32, float64, float16 or bfloat16, not complex128"),
    (dict(logits=Z > 0), TypeError, "logits must be float32, float64, float16 or bfloat16, not bool"),
    (dict(logits=None), TypeError, "logits must be float32, float64, float16 or bfloat16, not object"),
    (dict(logits="abc"), TypeError, "logits must be float32"),
    (dict(logits=[[1.0, 2.0], [3.0]]), ValueError, "logits can't be read as an array: "),
    (dict(logits=1.5), ValueError, "logits have no dimensions: expected at least one, the class axis"),
    (dict(logits=np.zeros((4, 0))), ValueError, "logits of shape (4, 0) have no classes on axis 1: expected at least"),
    (
        dict(logits=np.broadcast_to(np.float16(0), (4, 2**31))),
        ValueError,
        "logits have 2147483648 classes on axis 1: expected at most 2147483647",
    ),
    # axis
    (dict(axis=2), ValueError, "axis is 2, but logits of shape (4, 10) have axes -2 to 1"),
    (dict(axis=-3), ValueError, "axis is -3, but logits of shape (4, 10) have axes -2 to 1"),
    (dict(axis=1.0), TypeError, "axis must be an integer, not 1.0"),
    (dict(axis=True), TypeError, "axis must be an integer, not True"),
    # target
    (
        dict(target=np.zeros((4, 3), int)),
        ValueError,
        "target has shape (4, 3) but logits (4, 10) with class axis 1 need targets of shape (4,), or probabilities of "
        "shape (4, 10)",
    ),
    (dict(target=np.zeros((4, 3))), ValueError, "target has shape (4, 3) but logits (4, 10) with class axis 1 need"),
    (dict(target=Y, axis=0), ValueError, "with class axis 0 need targets of shape (10,), or probabilities"),
    (dict(target=np.zeros(0, int)), ValueError, "target has shape (0,) but logits (4, 10)"),
    (
        dict(target=P.astype(int)),
        ValueError,
        "target has the logits' shape (4, 10) and integer dtype int64, but class indices have shape (4,): for one-hot "
        "labels give target.argmax(axis=1), or floating probabilities",
    ),
    (
        dict(target=Y.astype(np.float32)),
        TypeError,
        "target has the shape of class indices, (4,), but dtype float32: convert it to an integer dtype, as in "
        "target.astype('int64')",
    ),
    (dict(target=Y > 0), TypeError, "target is boolean: expected class indices of an integer dtype"),
    (dict(target=P > 0), TypeError, "target is boolean"),
    (dict(target=Y + 0j), TypeError, "target must be class indices (integer) or probabilities (floating), not complex"),
    (dict(target=None), TypeError, "target must be class indices (integer) or probabilities (floating), not object"),
    (dict(target=[2**70] * 4), TypeError, "target must be class indices"),
    (
        dict(target=[1, 2, 3, 21]),
        IndexError,
        "target[3] is 21, but logits have 10 classes on axis 1: expected 0 <= target < 10, or ignore_index=-100",
    ),
    (dict(target=[1, 10, -1, 3]), IndexError, "target[1] is 10, but logits have 10 classes"),
    (dict(target=[1, 2, -1, -100], ignore_index=5), IndexError, "target[2] is -1, but logits have 10 classes"),
    (dict(target=[0, 2, 3, -100], ignore_index=5), IndexError, "or ignore_index=5"),
    (dict(target=np.full(4, 2**64 - 1, np.uint64)), IndexError, "target[0] is 18446744073709551615, but"),
    (dict(target=np.full(4, 2**64 - 1, np.uint64), ignore_index=-1), IndexError, "is 18446744073709551615, but"),
    (dict(target=np.full(4, -(2**63))), IndexError, "target[0] is -9223372036854775808, but"),
    (dict(target=np.full(4, 2**63 - 1)), IndexError, "target[0] is 9223372036854775807, but"),
    (dict(target=np.full(4, 2**32)), IndexError, "target[0] is 4294967296, but"),
    (dict(target=np.full(4, 200, np.uint8)), IndexError, "target[0] is 200, but"),
    (dict(logits=np.zeros(3), target=3), IndexError, "target is 3, but logits have 3 classes on axis 0"),
    (
        dict(logits=np.zeros((2, 3, 4)), target=[[0, 1, 2, 0], [0, 1, 7, 9]]),
        IndexError,
        "target[1, 2] is 7, but logits have 3 classes on axis 1",
    ),
    (dict(logits=np.zeros((4, 1)), target=[0, 0, 1, 0]), IndexError, "logits have 1 class on axis 1"),
    # weights
    (
        dict(weight=np.ones(4)),
        ValueError,
        "weight has shape (4,), but 10 classes need one entry each: shape (10,)",
    ),
    (dict(weight=1.0), ValueError, "weight has shape (), but 10 classes"),
    (dict(weight=np.ones(10) + 0j), TypeError, "weight must be boolean, integer or floating, not complex128"),
    (
        dict(sample_weight=np.ones((4, 1))),
        ValueError,
        "sample_weight has shape (4, 1), but needs one entry a target: shape (4,)",
    ),
    (dict(sample_weight=2.0), ValueError, "sample_weight has shape (), but needs one entry a target: shape (4,)"),
    (dict(sample_weight=["a"] * 4), TypeError, "sample_weight must be boolean, integer or floating, not str"),
    # options
    (dict(ignore_index=1.0), TypeError, "ignore_index must be an integer, not 1.0"),
    (dict(ignore_index=None), TypeError, "ignore_index must be an integer, not None"),
    (dict(ignore_index=False), TypeError, "ignore_index must be an integer, not False"),
    (dict(ignore_index=2**63), ValueError, "ignore_index must fit in a signed 64-bit integer"),
    (dict(target=P, ignore_index=0), ValueError, "ignore_index is 0, but the target holds probabilities"),
    (dict(label_smoothing=-0.1), ValueError, "label_smoothing must be in [0, 1], not -0.1"),
    (dict(label_smoothing=1.5), ValueError, "label_smoothing must be in [0, 1], not 1.5"),
    (dict(label_smoothing=NAN), ValueError, "label_smoothing must be in [0, 1], not nan"),
    (dict(label_smoothing="a"), TypeError, "label_smoothing must be a number, not 'a'"),
    (dict(label_smoothing=True), TypeError, "label_smoothing must be a number, not True"),
    (dict(label_smoothing=np.ones(2)), TypeError, "label_smoothing must be a number, not an array of shape (2,)"),
    (dict(label_smoothing=1j), TypeError, "label_smoothing must be a number, not 1j"),
    (dict(z_loss=-1), ValueError, "z_loss must be finite and at least 0, not -1"),
    (dict(z_loss=float("inf")), ValueError, "z_loss must be finite and at least 0, not inf"),
    (dict(z_loss=NAN), ValueError, "z_loss must be finite and at least 0, not nan"),
    (dict(z_loss=10**400), ValueError, "z_loss is too large"),
    (dict(softcap=0), ValueError, "softcap must be None, or finite and above 0, not 0"),
    (dict(softcap=float("inf")), ValueError, "softcap must be None, or finite and above 0, not inf"),
    (dict(softcap=NAN), ValueError, "softcap must be None, or finite and above 0, not nan"),
    (dict(normalizer=0), ValueError, "normalizer must be None, or finite and above 0, not 0"),
    (dict(normalizer=-2.0), ValueError, "normalizer must be None, or finite and above 0, not -2"),
    (dict(normalizer=NAN), ValueError, "normalizer must be None, or finite and above 0, not nan"),
    (dict(reduction="avg"), ValueError, "reduction must be one of 'mean', 'sum', 'none', not 'avg'"),
    (dict(reduction=None), TypeError, "reduction must be one of 'mean', 'sum', 'none', not None"),
    (dict(empty="error"), ValueError, "empty must be one of 'nan', 'zero', 'raise', not 'error'"),
    (
        dict(grad_output=np.ones(4)),
        ValueError,
        "grad_output has shape (4,), but the loss with reduction='mean' is a number: expected a number",
    ),
    (
        dict(grad_output=np.ones((4, 1)), reduction="none"),
        ValueError,
        "grad_output has shape (4, 1), but the loss has shape (4,)",
    ),
    (dict(grad_output="1"), TypeError, "grad_output must be boolean, integer or floating"),
    (dict(grad_output=True), TypeError, "grad_output must be a number, not True"),
    (dict(num_threads=0), ValueError, "num_threads must be None or at least 1, not 0"),
    (dict(num_threads=True), TypeError, "num_threads must be an integer, not True"),
    (dict(num_threads=1.5), TypeError, "num_threads must be an integer, not 1.5"),
]

BINARY = [
    (dict(logits=Z.astype(int)), TypeError, "logits must be float32, float64, float16 or bfloat16, not int64"),
    (
        dict(target=np.zeros((4, 1))),
        ValueError,
        "target has shape (4, 1), but needs one entry for each of the logits: shape (4, 10)",
    ),
    (dict(target=None), TypeError, "target must be boolean, integer or floating, not object"),
    (dict(target=P + 0j), TypeError, "target must be boolean, integer or floating, not complex128"),
    (
        dict(weight=np.ones(4)),
        ValueError,
        "weight has shape (4,), which does not broadcast to the logits' shape (4, 10)",
    ),
    (dict(pos_weight=np.ones((1, 4, 10))), ValueError, "pos_weight has shape (1, 4, 10), which does not broadcast"),
    (dict(pos_weight="x"), TypeError, "pos_weight must be boolean, integer or floating, not str"),
    (dict(label_smoothing=2), ValueError, "label_smoothing must be in [0, 1], not 2"),
    (dict(ignore_index=NAN), ValueError, "ignore_index must be None, or finite, not nan"),
    (dict(ignore_index="a"), TypeError, "ignore_index must be a number, not 'a'"),
    (dict(reduction="batchmean"), ValueError, "reduction must be one of 'mean', 'sum', 'none', not 'batchmean'"),
    (
        dict(grad_output=np.ones(10), reduction="none"),
        ValueError,
        "grad_output has shape (10,), but the loss has shape",
    ),
    (dict(num_threads=-1), ValueError, "num_threads must be None or at least 1, not -1"),
]


def check(function, keywords, error, text):
    logits = keywords["logits"]
    buffer = np.full(np.shape(logits) if isinstance(logits, np.ndarray) and logits.size < 1000 else (4, 10), 7.0)
    with pytest.raises(error, match=re.escape(text)) as caught:
        function(out_grad=buffer, **keywords)
    assert type(caught.value) is error
    assert (buffer == 7.0).all()


@pytest.mark.parametrize(("case", "error", "text"), CROSS_ENTROPY, ids=[text for *_, text in CROSS_ENTROPY])
def test_cross_entropy(engine, case, error, text):
    check(fl.cross_entropy, {"logits": Z, "target": Y, "engine": engine, **case}, error, text)


@pytest.mark.parametrize(("case", "error", "text"), BINARY, ids=[text for *_, text in BINARY])
def test_binary(engine, case, error, text):
    keywords = {"logits": Z, "target": P, "engine": engine, **case}
    check(fl.binary_cross_entropy_with_logits, keywords, error, text)


@pytest.mark.parametrize("size", [(300, 7), (5, 30000), (4, 6, 900)], ids=str)
@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.uint16])
def test_the_first_bad_index_is_named_and_nothing_written(engine, size, dtype):
    logits = np.zeros(size, np.float32)
    target = np.zeros(size[:1] + size[2:], dtype)
    target.flat[target.size // 2] = 6 if size[1] == 6 else 120
    target.flat[-1] = 121
    if size[1] > 121:
        target = target.astype(np.int64)
        target.flat[target.size // 2], target.flat[-1] = 31000, 32000
    first = ", ".join(map(str, np.unravel_index(target.size // 2, target.shape)))
    with pytest.raises(IndexError, match=re.escape(f"target[{first}] is {target.flat[target.size // 2]}, but")):
        fl.cross_entropy(logits, target, out_grad=logits, num_threads=2, engine=engine)
    assert not logits.any()


OUT_GRAD = [
    (np.zeros((10, 4)), ValueError, "out_grad has shape (10, 4), but the gradient has the logits' shape (4, 10)"),
    (np.zeros((4, 10), int), TypeError, "out_grad must be float32, float64, float16 or bfloat16, not int64"),
    ([[0.0] * 10] * 4, TypeError, "out_grad must be a numpy.ndarray, not list"),
    (np.broadcast_to(np.zeros(10), (4, 10)), ValueError, "out_grad is read-only: expected a writable array"),
    (
        np.lib.stride_tricks.as_strided(np.zeros(10), (4, 10), (0, 8)),
        ValueError,
        "out_grad has elements that share memory (shape (4, 10), strides (0, 8))",
    ),
    (
        np.lib.stride_tricks.as_strided(np.zeros(40), (4, 10), (16, 8)),
        ValueError,
        "out_grad has elements that share memory (shape (4, 10), strides (16, 8))",
    ),
]


@pytest.mark.parametrize(("out", "error", "text"), OUT_GRAD, ids=[text for *_, text in OUT_GRAD])
def test_out_grad(engine, out, error, text):
    for function, target in ((fl.cross_entropy, Y), (fl.binary_cross_entropy_with_logits, P)):
        with pytest.raises(error, match=re.escape(text)):
            function(Z, target, out_grad=out, engine=engine)
        assert not np.any(out)


def test_overlaps_are_refused(engine):
    memory = np.zeros(100)
    logits = memory[:40].reshape(4, 10)
    for out in (
        memory[1:41].reshape(4, 10),
        memory[40 - 1 : 79].reshape(4, 10),
        logits[::-1],
        logits[:, ::-1],
        memory[:40].reshape(10, 4).T,
        memory[:40].view(np.float32)[:40].reshape(4, 10),
        memory[:80].reshape(4, 20)[:, ::2],
    ):
        for function, target in ((fl.cross_entropy, Y), (fl.binary_cross_entropy_with_logits, P)):
            with pytest.raises(ValueError, match="out_grad partly overlaps logits: expected memory of its own, or"):
                function(logits, target, out_grad=out, engine=engine)
    assert not memory.any()
    halves = np.zeros((4, 10), np.float16)
    with pytest.raises(ValueError, match=r"out_grad partly overlaps logits: .*same address, strides and dtype"):
        fl.cross_entropy(halves, Y, out_grad=halves.view(BFLOAT16), engine=engine)


def test_interleaved_memory_is_no_overlap(engine):
    memory = np.zeros((4, 20))
    logits, out = memory[:, ::2], memory[:, 1::2]
    logits[...] = Z
    fl.cross_entropy(logits, Y, out_grad=out, engine=engine)
    assert np.array_equal(logits, Z)
    assert np.array_equal(out, fl.cross_entropy(Z, Y, return_grad=True, engine=engine)[1])


def test_overlaps_with_other_inputs_are_refused(engine):
    memory = np.ones(50)
    out = memory[:40].reshape(4, 10)
    cases = [
        (fl.cross_entropy, {"target": memory[10:50].reshape(4, 10)}, "target"),
        (fl.cross_entropy, {"target": memory[:4].view(np.int64)}, "target"),
        (fl.cross_entropy, {"target": Y, "weight": memory[39:49]}, "weight"),
        (fl.cross_entropy, {"target": Y, "sample_weight": memory[36:40]}, "sample_weight"),
        (fl.cross_entropy, {"target": Y, "grad_output": memory[:4], "reduction": "none"}, "grad_output"),
        (fl.binary_cross_entropy_with_logits, {"target": out}, "target"),
        (fl.binary_cross_entropy_with_logits, {"target": P, "weight": memory[0]}, None),
        (fl.binary_cross_entropy_with_logits, {"target": P, "weight": memory[:1]}, "weight"),
        (fl.binary_cross_entropy_with_logits, {"target": P, "pos_weight": memory[10:20]}, "pos_weight"),
    ]
    for function, keywords, name in cases:
        if name is None:
            function(Z, out_grad=np.zeros((4, 10)), engine=engine, **keywords)
            continue
        with pytest.raises(ValueError, match=f"out_grad overlaps {name} in memory: expected memory of its own"):
            function(Z, out_grad=out, engine=engine, **keywords)
    assert (memory == 1).all()


@pytest.mark.parametrize("function", [fl.softmax, fl.log_softmax, fl.logsumexp, fl.entropy])
def test_primitives_of_rows(engine, function):
    for arguments, error, text in (
        ((np.zeros((2, 3), int),), TypeError, "logits must be float32"),
        ((np.float64(1),), ValueError, "logits have no dimensions"),
        ((np.zeros((3, 0)),), ValueError, "logits of shape (3, 0) have no classes on axis 1"),
        ((Z, 2), ValueError, "axis is 2, but logits of shape (4, 10)"),
        ((Z, "1"), TypeError, "axis must be an integer, not '1'"),
    ):
        with pytest.raises(error, match=re.escape(text)):
            function(*arguments, engine=engine)
    with pytest.raises(ValueError, match="num_threads must be None or at least 1, not 0"):
        function(Z, num_threads=0, engine=engine)


@pytest.mark.parametrize("function", [fl.sigmoid, fl.log_sigmoid, fl.softplus])
def test_primitives_of_elements(engine, function):
    with pytest.raises(TypeError, match="x must be float32, float64, float16 or bfloat16, not int64"):
        function(Y, engine=engine)
    with pytest.raises(ValueError, match="num_threads must be None or at least 1, not 0"):
        function(Z, num_threads=0, engine=engine)


def test_numbers_of_any_kind_are_accepted(engine):
    expected = fl.cross_entropy(Z, Y, label_smoothing=0.25, z_loss=0.5, softcap=2.0, engine=engine)
    for kind in (np.float32, np.float64, np.float16, np.asarray):
        options = {"label_smoothing": kind(0.25), "z_loss": kind(0.5), "softcap": kind(2.0)}
        assert fl.cross_entropy(Z, Y, engine=engine, **options) == expected
    assert fl.cross_entropy(Z, Y, axis=np.int8(1), ignore_index=np.int16(-5), num_threads=np.uint8(1), engine=engine)
    _, grad = fl.cross_entropy(Z, Y, return_grad=True, grad_output=2, engine=engine)
    _, same = fl.cross_entropy(Z, Y, return_grad=True, grad_output=np.asarray(np.float32(2)), engine=engine)
    assert np.array_equal(grad, same)
    assert np.abs(grad).max() > 0


def test_engines():
    assert fl.engines()[-1] == "reference"
    for use in (lambda name: fl.cross_entropy(Z, Y, engine=name), fl.set_engine):
        with pytest.raises(
            ValueError, match=r"engine is 'torch', which is not available: choose from (.*, )?reference"
        ):
            use("torch")
        with pytest.raises(TypeError, match="engine must be a string or None, not 3"):
            use(3)
    if "numba" not in fl.engines():
        with pytest.raises(ValueError, match="engine is 'numba', which is not available.*: choose from "):
            fl.set_engine("numba")


@pytest.mark.parametrize("engine", fl.engines())
@pytest.mark.parametrize("name", ["int1", "float8_e5m2"])  # the first has float16's character
def test_other_small_dtypes(name, engine, peer):
    ml_dtypes = peer("ml_dtypes")
    logits = np.zeros((2, 3), getattr(ml_dtypes, name))
    with pytest.raises(TypeError, match=f"logits must be float32, float64, float16 or bfloat16, not {name}"):
        fl.cross_entropy(logits, [0, 1], engine=engine)
    with pytest.raises(TypeError, match=f"out_grad must be float32, float64, float16 or bfloat16, not {name}"):
        fl.cross_entropy(np.zeros((2, 3)), [0, 1], out_grad=logits, engine=engine)
