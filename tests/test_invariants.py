"""What holds for any input: symmetries, equal forms of one call, and the same bits however it is computed."""

import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from checks import BFLOAT16, DTYPES, assert_grad, same_bits

import fastloss as fl

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
SHAPES = [((1, 2), 1), ((300, 3), 1), ((257, 10), 1), ((500, 100), 1), ((20, 3000), 1), ((2, 40000), 1)]
SHAPES += [((2, 21, 1000), 1), ((3, 5, 7), 0)]
every_shape = pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=str)


def batch(shape, axis, dtype, seed=4):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, shape).astype(dtype)
    return logits, rng.integers(0, shape[axis], shape[:axis] + shape[axis + 1 :])


@every_shape
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_shift(engine, dtype, shape, axis):
    """Adding one number to a row changes nothing (powers of two, so that the sums are exact)."""
    logits, target = batch(shape, axis, dtype)
    logits = (logits * 64).round().astype(dtype) / 64
    expected = fl.cross_entropy(logits, target, axis=axis, return_grad=True, reduction="none", engine=engine)
    for shift in (1024, -512):
        result = fl.cross_entropy(logits + dtype(shift), target, axis=axis, return_grad=True, reduction="none",
                                  engine=engine)  # fmt: skip
        tolerance = 4e-6 if dtype == np.float32 else 1e-13
        assert np.abs(result[0] - expected[0]).max() <= tolerance * np.abs(expected[0]).max()
        assert np.abs(result[1] - expected[1]).max() <= tolerance
    p = fl.softmax(logits, axis, engine=engine)
    assert np.abs(fl.softmax(logits + dtype(1024), axis, engine=engine) - p).max() <= tolerance


@every_shape
@every_dtype
def test_permutation(engine, dtype, shape, axis):
    logits, target = batch(shape, axis, dtype)
    weight = np.random.default_rng(0).uniform(0.5, 2, shape[axis])
    keywords = {"axis": axis, "return_grad": True, "engine": engine}
    loss, grad = fl.cross_entropy(logits, target, weight=weight, **keywords)
    order = np.random.default_rng(1).permutation(shape[axis])
    place = np.argsort(order)
    moved_loss, moved_grad = fl.cross_entropy(
        np.take(logits, order, axis), place[target], weight=weight[order], **keywords
    )
    assert moved_loss == pytest.approx(loss, rel=2e-6)
    assert_grad(moved_grad, np.take(grad, order, axis).astype(np.float64))


@every_shape
@every_dtype
def test_gradient_rows_sum_to_zero(engine, dtype, shape, axis):
    logits, target = batch(shape, axis, dtype)
    out = np.zeros(shape, np.float64 if dtype == np.float64 else np.float32)
    for options in ({}, {"label_smoothing": 0.2}, {"weight": np.linspace(0.5, 2, shape[axis]), "label_smoothing": 0.2}):
        fl.cross_entropy(logits, target, axis=axis, reduction="sum", out_grad=out, engine=engine, **options)
        total = out.sum(axis, dtype=np.float64)
        assert np.abs(out).max() > 0.05
        assert np.abs(total).max() <= (1e-12 if dtype == np.float64 else 3e-6)


@every_shape
@every_dtype
def test_one_hot_equals_index(engine, dtype, shape, axis):
    logits, target = batch(shape, axis, dtype)
    one_hot = np.zeros(shape)
    np.put_along_axis(one_hot, np.expand_dims(target, axis), 1.0, axis)
    for options in ({}, {"label_smoothing": 0.1, "z_loss": 0.01}, {"sample_weight": np.full(target.shape, 0.25)}):
        keywords = {"axis": axis, "return_grad": True, "engine": engine, **options}
        loss, grad = fl.cross_entropy(logits, target, **keywords)
        dense_loss, dense_grad = fl.cross_entropy(logits, one_hot, **keywords)
        assert dense_loss == pytest.approx(loss, rel=1e-6)
        assert_grad(dense_grad, grad.astype(np.float64))


@every_shape
@every_dtype
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reduction": "sum"},
        {"reduction": "none"},
        {"label_smoothing": 0.1},
        {"z_loss": 0.01, "softcap": 5.0},
        {"probabilities": True},
    ],
    ids=str,
)
def test_the_loss_alone_has_the_bits_of_the_fused_call(engine, dtype, shape, axis, options):
    logits, target = batch(shape, axis, dtype)
    options = dict(options)
    if options.pop("probabilities", False):
        target = np.abs(logits.astype(np.float32))
    alone = fl.cross_entropy(logits, target, axis=axis, engine=engine, **options)
    fused, _ = fl.cross_entropy(logits, target, axis=axis, return_grad=True, engine=engine, **options)
    assert same_bits(alone, fused)
    reduction = options.get("reduction", "mean")
    labels = logits > 0
    alone = fl.binary_cross_entropy_with_logits(logits, labels, reduction=reduction, engine=engine)
    fused, _ = fl.binary_cross_entropy_with_logits(logits, labels, reduction=reduction, return_grad=True, engine=engine)
    assert same_bits(alone, fused)


@every_shape
@every_dtype
def test_the_same_bits_for_any_number_of_threads(engine, dtype, shape, axis):
    if engine == "reference":
        pytest.skip("runs on one thread")
    logits, target = batch(tuple(8 * n if i == 0 else n for i, n in enumerate(shape)), axis, dtype)
    target.flat[::5] = -100
    for options in ({}, {"label_smoothing": 0.1}, {"reduction": "none"}):
        keywords = {"axis": axis, "return_grad": True, "engine": engine, **options}
        loss, grad = fl.cross_entropy(logits, target, num_threads=1, **keywords)
        for threads in (2, 3, 4):
            for _ in range(2):
                again = fl.cross_entropy(logits, target, num_threads=threads, **keywords)
                assert same_bits(again[0], loss) and same_bits(again[1], grad)
    loss, grad = fl.binary_cross_entropy_with_logits(logits, logits > 0, num_threads=1, return_grad=True, engine=engine)
    values = fl.log_softmax(logits, axis, num_threads=1, engine=engine)
    for threads in (2, 3, 4):
        again = fl.binary_cross_entropy_with_logits(
            logits, logits > 0, num_threads=threads, return_grad=True, engine=engine
        )
        assert same_bits(again[0], loss) and same_bits(again[1], grad)
        assert same_bits(fl.log_softmax(logits, axis, num_threads=threads, engine=engine), values)


@pytest.mark.parametrize("count", [1, 4096, 4097])
@pytest.mark.parametrize("options", [{}, {"reduction": "sum", "grad_output": -2.5}], ids=["mean", "sum"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_few_elements_have_the_bits_of_the_general_way(dtype, options, count):
    """Calls of up to 4096 elements take one of their own, unless an argument is of an unusual type."""
    z = np.random.default_rng(4).normal(0, 3, count).astype(dtype)
    unusual, usual = np.float32(0), 0.0
    for function, logits, target in (
        (fl.binary_cross_entropy_with_logits, z, (z > 1).astype(dtype)),
        (fl.cross_entropy, z[: count // 2 * 2].reshape(-1, 2), np.arange(count // 2) % 3 % 2),
        (fl.cross_entropy, z.reshape(1, -1), np.array([count // 2])),
    ):
        if logits.size == 0:
            continue
        expected, expected_grad = function(logits, target, label_smoothing=unusual, return_grad=True, **options)
        loss, grad = function(logits, target, label_smoothing=usual, return_grad=True, **options)
        assert loss == expected
        assert same_bits(grad, expected_grad)


@pytest.mark.parametrize("empty", ["nan", "zero"])
def test_few_elements_that_do_not_count(empty):
    loss, grad = fl.cross_entropy(np.ones((3, 4)), np.full(3, -100), empty=empty, return_grad=True)
    assert loss == 0 if empty == "zero" else np.isnan(loss)
    assert not grad.any()


@every_dtype
@pytest.mark.parametrize("shape", [(40, 10), (9, 33), (5, 1000)], ids=str)
def test_the_same_bits_on_any_alignment(engine, dtype, shape):
    logits, target = batch(shape, 1, dtype)
    size = logits.size
    expected = fl.cross_entropy(logits, target, return_grad=True, engine=engine)
    binary = fl.binary_cross_entropy_with_logits(logits, logits > 0, return_grad=True, engine=engine)
    for offset in range(1, 18):
        memory, out_memory = np.zeros((2, size + 20), dtype)
        target_memory = np.zeros(size + 20, int)
        moved, out = (part[offset : offset + size].reshape(shape) for part in (memory, out_memory))
        moved[...] = logits
        moved_target = target_memory[offset : offset + len(target)]
        moved_target[...] = target
        loss, _ = fl.cross_entropy(moved, moved_target, out_grad=out, engine=engine)
        assert loss == expected[0] and same_bits(out, expected[1])
        loss, _ = fl.binary_cross_entropy_with_logits(moved, logits > 0, out_grad=out, engine=engine)
        assert loss == binary[0] and same_bits(out, binary[1])
        out[...] = 0
        assert not out_memory.any(), "written outside of out_grad"


@every_dtype
def test_a_row_has_the_same_value_wherever_it_stands(engine, dtype):
    for classes in (3, 10, 40, 1200):
        row, _ = batch((1, classes), 1, dtype)
        for n in (2, 7, 8, 9, 64):
            losses, grad = fl.cross_entropy(
                np.repeat(row, n, 0), np.zeros(n, int), reduction="none", return_grad=True, engine=engine
            )
            assert np.abs(losses / losses[0] - 1).max() <= (1e-13 if dtype == np.float64 else 1e-6)
            assert_grad(grad, np.repeat(grad[:1].astype(np.float64), n, 0))


def test_reductions_agree(engine):
    logits, target = batch((50, 10), 1, np.float64)
    target[3:7] = -100
    sample_weight = np.linspace(0.5, 2, 50)
    keywords = {"sample_weight": sample_weight, "return_grad": True, "engine": engine}
    losses, each = fl.cross_entropy(logits, target, reduction="none", **keywords)
    total, summed = fl.cross_entropy(logits, target, reduction="sum", **keywords)
    mean, averaged = fl.cross_entropy(logits, target, **keywords)
    denominator = sample_weight[target != -100].sum()
    assert total == pytest.approx(losses.sum(), rel=1e-13)
    assert mean == pytest.approx(total / denominator, rel=1e-13)
    assert np.abs(each - summed).max() <= 4e-15
    assert np.abs(averaged - summed / denominator).max() <= 4e-15
    assert fl.cross_entropy(logits, target, normalizer=10, sample_weight=sample_weight, engine=engine) == pytest.approx(
        total / 10, rel=1e-13
    )


def test_primitives_agree(engine):
    logits, target = batch((30, 12), 1, np.float64)
    rows = np.arange(30)
    losses, grad = fl.cross_entropy(logits, target, reduction="none", return_grad=True, engine=engine)
    logs, p = fl.log_softmax(logits, engine=engine), fl.softmax(logits, engine=engine)
    assert losses == pytest.approx(-logs[rows, target], rel=1e-13)
    assert losses == pytest.approx(fl.logsumexp(logits, engine=engine) - logits[rows, target], abs=1e-13)
    p_minus_target = p.copy()
    p_minus_target[rows, target] -= 1
    assert np.abs(grad - p_minus_target).max() <= 4e-15
    assert fl.entropy(logits, engine=engine) == pytest.approx(-(p * logs).sum(1), rel=1e-13)
    x = logits[0]
    assert fl.sigmoid(x, engine=engine) == pytest.approx(np.exp(fl.log_sigmoid(x, engine=engine)), rel=1e-13)
    assert fl.softplus(x, engine=engine) == pytest.approx(-fl.log_sigmoid(-x, engine=engine), rel=1e-13)
    binary = fl.binary_cross_entropy_with_logits(x, np.zeros(12), reduction="none", engine=engine)
    assert binary == pytest.approx(fl.softplus(x, engine=engine), rel=1e-13)
    # Two classes are the sigmoid of their difference.
    pair = np.stack([np.zeros(12), x], axis=1)
    assert fl.cross_entropy(pair, np.ones(12, int), reduction="none", engine=engine) == pytest.approx(
        fl.softplus(-x, engine=engine), rel=1e-13
    )


def test_concurrent_calls(engine):
    """Four threads, each on its own data and with two threads of its own."""
    batches = [batch((600, 50), 1, np.float32, seed) for seed in range(4)]
    expected = [fl.cross_entropy(*each, return_grad=True, engine=engine) for each in batches]

    def work(number):
        logits, target = batches[number]
        for _ in range(20):
            loss, grad = fl.cross_entropy(logits, target, return_grad=True, num_threads=2, engine=engine)
            if loss != expected[number][0] or not same_bits(grad, expected[number][1]):
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == [True] * 4


def run(script, *arguments):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *arguments], capture_output=True, text=True, timeout=120
    )


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="this system has no fork")
def test_a_forked_child_computes_and_does_not_hang(engine):
    done = run(
        """
        import os, signal, sys, threading, warnings
        import numpy as np
        import fastloss as fl

        warnings.simplefilter("ignore")  # Python warns of forks where threads run
        rng = np.random.default_rng(0)
        logits, target = rng.normal(0, 1, (2000, 100)).astype("f4"), rng.integers(0, 100, 2000)

        def call():
            return fl.cross_entropy(logits, target, return_grad=True, num_threads=2, engine=sys.argv[1])

        loss, grad = call()
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
        for _ in range(3):
            child = os.fork()
            if child == 0:
                signal.alarm(30)
                code = 1
                try:
                    again_loss, again_grad = call()
                    grandchild = os.fork()
                    if grandchild == 0:
                        signal.alarm(20)
                        os._exit(0 if call()[0] == loss else 1)
                    same = again_loss == loss and (again_grad == grad).all()
                    ended = os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1])
                    code = 0 if same and ended == 0 else 2
                finally:
                    os._exit(code)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if code != 0:
                sys.exit(f"the child ended with {code}")
            if call()[0] != loss:
                sys.exit("the parent computes something else after the fork")
        """,
        engine,
    )
    assert done.returncode == 0, done.stderr


def test_importing_leaves_frameworks_and_the_floating_point_environment_alone():
    done = run(
        """
        import sys
        import numpy as np

        tiny = np.float32(1e-40)
        before = set(sys.modules)
        import fastloss as fl

        new = {name.partition(".")[0] for name in set(sys.modules) - before}
        foreign = new & {"torch", "jax", "tensorflow", "numba", "scipy", "sklearn", "ml_dtypes", "matplotlib"}
        if foreign:
            sys.exit(f"imported {foreign}")
        fl.cross_entropy(np.zeros((100, 10), np.float32), np.zeros(100, int), return_grad=True)
        if not tiny * np.float32(0.5) > 0:
            sys.exit("subnormal numbers are flushed to zero")
        """
    )
    assert done.returncode == 0, done.stderr


def test_a_narrower_gradient_leaves_the_loss_its_bits(engine):
    """More classes than the stack has room for, and a gradient that is converted on the way."""
    rng = np.random.default_rng(7)
    logits, target = rng.normal(0, 4, (8, 32000)).astype(np.float32), np.arange(8) * 999
    loss, _ = fl.cross_entropy(logits, target, out_grad=np.empty(logits.shape, np.float16), engine=engine)
    assert loss == fl.cross_entropy(logits, target, engine=engine)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("classes", [100, 385, 448, 511, 577, 1024])
@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16])
def test_half_gradients_are_float32_ones_rounded(engine, dtype, classes, smoothing):
    """Each class is the target of a row: half types may be taken in another order than float32."""
    rng = np.random.default_rng(classes)
    logits, target = rng.normal(0, 3, (classes, classes)).astype(dtype), np.arange(classes)
    keywords = {"reduction": "none", "label_smoothing": smoothing, "engine": engine}
    expected_losses, expected = fl.cross_entropy(logits.astype(np.float32), target, return_grad=True, **keywords)
    losses, single = fl.cross_entropy(logits, target, out_grad=np.empty(logits.shape, np.float32), **keywords)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-6)
    np.testing.assert_allclose(single, expected, rtol=1e-5, atol=1e-9)
    for out_dtype in np.float16, BFLOAT16:
        other_losses, grad = fl.cross_entropy(logits, target, out_grad=np.empty(logits.shape, out_dtype), **keywords)
        assert same_bits(other_losses, losses)
        if engine == "reference":  # rounds what it has in float64, once
            np.testing.assert_allclose(grad.astype(np.float32), single, rtol=2**-8, atol=1e-7)
        else:
            assert same_bits(grad, single.astype(out_dtype))


@pytest.mark.parametrize("classes", [1, 2, 5, 8, 10, 16, 17, 32, 100, 130, 384, 500])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "options", [{}, {"label_smoothing": 0.2}, {"label_smoothing": 0.7}, {"z_loss": 0.1}, {"weight": True}]
)
def test_rows_do_not_depend_on_each_other(engine, dtype, classes, options):
    """Logits of any size, infinite ones and NaN, between others: each row has the bits that it has alone."""
    rng = np.random.default_rng(classes)
    rows = 160
    logits = rng.normal(0, 3, (rows, classes))
    target = rng.integers(0, classes, rows)
    sizes = rng.choice([0, 0, 0, -90, -66.5, -25, 21.5, 30, 1000], rows)
    sizes[64:] = np.where(np.arange(64, rows) < 140, 50, 0)  # none that needs no reference, then all
    logits += sizes[:, None]
    logits[3:64:7, 0], logits[4:64:19], logits[5:64:23] = -np.inf, np.inf, np.nan
    logits[np.arange(6, 64, 9), target[6:64:9]] -= 60
    logits = logits.astype(dtype)
    keywords, own = {"reduction": "none", "engine": engine, **options}, [{}] * rows
    if "weight" in options:  # each class and row its own, down to where gradients are subnormal numbers
        scales = {name: 10.0 ** rng.integers(-20, 1, rows) for name in ("sample_weight", "grad_output")}
        own = [{name: scale[i : i + 1] for name, scale in scales.items()} for i in range(rows)]
        keywords["weight"] = np.geomspace(1e-9, 1, classes)
    alone = [
        fl.cross_entropy(logits[i : i + 1], target[i : i + 1], return_grad=True, **keywords, **own[i])
        for i in range(rows)
    ]
    if "weight" in options:
        keywords |= scales
    losses, grad = fl.cross_entropy(logits, target, return_grad=True, **keywords)
    assert same_bits(losses, np.concatenate([loss for loss, _ in alone]))
    assert same_bits(grad, np.concatenate([part for _, part in alone]))
    memory = logits.copy()
    in_place, _ = fl.cross_entropy(memory, target, out_grad=memory, **keywords)
    assert same_bits(in_place, losses) and same_bits(memory, grad)
    spread = np.full((rows, 2 * classes + 3), 7, dtype)[:, 1 : classes + 1]  # rows that lie apart
    spread[...] = logits
    apart, _ = fl.cross_entropy(spread, target, out_grad=spread, **keywords)
    assert same_bits(apart, losses) and same_bits(spread.copy(), grad)
    if engine == "cython" and options.keys() <= {"label_smoothing"}:
        keywords = {"engine": engine, "return_lse": True, **options}
        lse = [fl.evaluate(logits[i : i + 1], target[i : i + 1], **keywords).lse[0] for i in range(rows)]
        assert same_bits(fl.evaluate(logits, target, **keywords).lse, np.array(lse))
