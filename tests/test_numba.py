"""What only the Numba engine and fastloss.numba have: threads, forks, caches, first calls, and use from compiled code.

That the engine gives the right numbers is tested where all engines are."""

import os
import platform
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
from checks import assert_grad, assert_loss, same_bits

import fastloss as fl

numba = pytest.importorskip("numba") if "numba" in fl.engines() else pytest.skip("no Numba", allow_module_level=True)

import fastloss.numba as fn  # noqa: E402


def batch(rows, classes, dtype=np.float32, seed=3):
    rng = np.random.default_rng(seed)
    return rng.normal(0, 3, (rows, classes)).astype(dtype), rng.integers(0, classes, rows)


@pytest.mark.parametrize("shape", [(30000, 10), (3000, 100), (400, 1000), (8, 70000), (4, 21, 128, 128), (60000,)])
def test_same_bits_for_any_number_of_threads(shape):
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, shape).astype(np.float32)
    if len(shape) == 1:
        target = rng.random(shape).astype(np.float32)
        call = fl.binary_cross_entropy_with_logits
    else:
        target = rng.integers(0, shape[1], shape[:1] + shape[2:])
        call = fl.cross_entropy
    loss, grad = call(logits, target, return_grad=True, engine="numba", num_threads=1)
    for threads in (2, 3, 7):
        again, other = call(logits, target, return_grad=True, engine="numba", num_threads=threads)
        assert again == loss
        assert same_bits(other, grad)
    assert call(logits, target, engine="numba", num_threads=2) == loss


@pytest.mark.parametrize("target", [3, 700])
def test_a_late_maximum_far_above_the_rest(target):
    logits = np.zeros((1, 2000), np.float32)
    logits[0, 700] = 100
    expected = fl.cross_entropy(logits, [target], return_grad=True, engine="reference")
    loss, grad = fl.cross_entropy(logits, [target], return_grad=True, engine="numba")
    assert loss == pytest.approx(expected[0], rel=1e-5)
    assert_grad(grad, expected[1].astype(np.float64))


def test_many_callers_at_once():
    logits, target = batch(20000, 10)
    expected = fl.cross_entropy(logits, target, return_grad=True, engine="numba")
    wrong = []

    def work():
        for _ in range(20):
            loss, grad = fl.cross_entropy(logits, target, return_grad=True, engine="numba", num_threads=2)
            if loss != expected[0] or not same_bits(grad, expected[1]):
                wrong.append(loss)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert not wrong


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("layer", ["omp", "workqueue"])
def test_a_forked_child_works_and_never_hangs(layer):
    done = run(
        """
import os, sys, warnings
import numpy as np, fastloss as fl
warnings.simplefilter("ignore")
z, y = np.ones((20000, 10), np.float32), np.zeros(20000, np.int64)
before = fl.cross_entropy(z, y, engine="numba", num_threads=2)
child = os.fork()
if child == 0:
    ok = all(fl.cross_entropy(z, y, engine="numba", num_threads=2) == before for _ in range(3))
    os._exit(0 if ok else 1)
status = os.waitpid(child, 0)[1]
print(os.waitstatus_to_exitcode(status), fl.cross_entropy(z, y, engine="numba", num_threads=2) == before)
""",
        NUMBA_THREADING_LAYER=layer,
    )
    if "No threading layer could be loaded" in done.stderr:
        pytest.skip(f"this Numba has no threading layer {layer}")
    assert done.stdout == "0 True\n", done.stderr


def test_the_first_call_says_that_it_compiles_and_the_next_process_has_it(tmp_path):
    code = """
import time, numpy as np, numba, fastloss as fl
z, y = np.ones((4, 10), np.float32), np.zeros(4, np.int64)
from fastloss.engines import get
get("numba")
start = time.perf_counter()
fl.cross_entropy(z, y, engine="numba")
print(time.perf_counter() - start)
"""
    cold = run(code, NUMBA_CACHE_DIR=str(tmp_path))
    assert "fastloss: compiling cross_entropy with Numba; the result is kept on disk\n" in cold.stderr
    warm = run(code, NUMBA_CACHE_DIR=str(tmp_path))
    assert warm.stderr == ""
    assert float(warm.stdout) < float(cold.stdout) / 3


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the names are those of x86-64 processors")
@pytest.mark.parametrize("cpu", ["generic", "haswell"])
def test_vectors_of_narrower_registers(cpu, tmp_path):
    llvmlite = pytest.importorskip("llvmlite.binding")
    if cpu == "haswell" and not llvmlite.get_host_cpu_features().get("avx2"):
        pytest.skip("this processor has no AVX2")
    code = """
import numpy as np, fastloss as fl
rng = np.random.default_rng(0)
for shape in [(50, 2), (50, 7), (50, 8), (50, 9), (40, 15), (40, 16), (40, 17), (9, 40), (4, 300), (3, 1031)]:
    z, y = (3 * rng.normal(0, 1, shape)).astype(np.float32), rng.integers(0, shape[1], shape[0])
    for smoothing in (0.0, 0.1):
        options = {"label_smoothing": smoothing, "return_grad": True, "num_threads": 1}
        loss, grad = fl.cross_entropy(z, y, engine="numba", **options)
        expected, gradient = fl.cross_entropy(z.astype(np.float64), y, engine="reference", **options)
        assert abs(loss - expected) < 3e-6 * expected, (shape, smoothing, loss, expected)
        assert np.abs(grad - gradient).max() < 3e-6 * np.abs(gradient).max(), (shape, smoothing)
print("all")
"""
    features = {"generic": "+sse2", "haswell": "+avx,+avx2,+fma,+bmi,+bmi2,+f16c,+lzcnt,+popcnt,+sse4.1,+sse4.2"}[cpu]
    done = run(code, NUMBA_CPU_NAME=cpu, NUMBA_CPU_FEATURES=features, NUMBA_CACHE_DIR=str(tmp_path))
    assert done.stdout == "all\n", done.stderr


def test_what_lies_on_disk_and_what_was_just_compiled_give_the_same_bits(tmp_path):
    code = """
import os, numpy as np, fastloss as fl
rng = np.random.default_rng(0)
z, y = rng.normal(0, 2, (700, 300)), rng.integers(0, 2, (700, 300))
for threads in (1, 2)[: int(os.environ["COUNT"])]:
    losses = fl.dice_loss(z, y, mode="multilabel", reduction="none", engine="numba", num_threads=threads)
    print(losses.tobytes().hex())
"""
    # The first process leaves the code of one thread, to which the second one compiles that of two.
    runs = [run(code, COUNT=count, NUMBA_CACHE_DIR=str(tmp_path)).stdout.split() for count in "122"]
    assert len(set(sum(runs, []))) == 1 and [len(values) for values in runs] == [1, 2, 2]


def test_code_on_disk_is_made_again_after_a_change_of_any_file(tmp_path):
    package = tmp_path / "fastloss"
    shutil.copytree(os.path.dirname(fl.__file__), package, ignore=shutil.ignore_patterns("*.nb[ic]"))
    code = "import numpy as np, fastloss as fl; print(fl.__file__, fl.sigmoid(np.zeros(2), engine='numba')[0])"
    path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    assert run(code, PYTHONPATH=path).stdout.split() == [str(package / "__init__.py"), "0.5"]
    source = package / "engines" / "numba_math.py"
    old = "return exp_scaled(x) * SCALE_DOWN(x)"
    assert old in source.read_text()
    source.write_text(source.read_text().replace(old, "return exp_scaled(x) * SCALE_DOWN(x) * 3.0"))
    assert run(code, PYTHONPATH=path).stdout.split()[1] == "0.25"


def test_nothing_is_imported_before_it_is_asked_for():
    done = run("import sys, fastloss as fl; fl.engines(); print('numba' in sys.modules, 'sympy' in sys.modules)")
    assert done.stdout == "False False\n", done.stderr


def test_without_numba_the_engine_says_how_to_get_it():
    done = run(
        """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "numba" else find(name, *rest)
sys.modules["numba"] = None
import fastloss as fl
attempts = [
    lambda: fl.cross_entropy([[1.0, 2.0]], [0], engine="numba"),
    lambda: fl.elementwise(lambda z, y: z)(1.0, 1.0),
]
for attempt in attempts:
    try:
        attempt()
    except (ValueError, ImportError) as error:
        print(error)
"""
    )
    first, second = done.stdout.splitlines()
    assert first.startswith(
        "engine is 'numba', which is not available (Numba is not installed: pip install 'fastloss[numba]')"
    )
    assert second == "a custom loss needs Numba: Numba is not installed: pip install 'fastloss[numba]'"


# ---- From compiled code ---------------------------------------------------------------------------------------------

REAL = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@REAL
@pytest.mark.parametrize("classes", [1, 2, 10, 33, 300, 2000])
def test_rows_and_batches(dtype, classes):
    logits, target = batch(9, classes, dtype)
    logits[0, 0] = 60  # far above the rest
    expected, grads = fl.cross_entropy(logits, target, return_grad=True, reduction="none", engine="reference")

    @numba.njit(parallel=True)
    def rows(logits, target, grad, losses):
        for i in numba.prange(len(target)):
            losses[i] = fn.cross_entropy_row_grad(logits[i], target[i], grad[i], 1.0)

    grad, losses = np.empty_like(logits), np.empty(9, dtype)
    rows(logits, target, grad, losses)
    assert_loss(losses, expected, logits.dtype)
    assert_grad(grad, grads.astype(np.float64))
    for i in range(9):
        assert fn.cross_entropy_row(logits[i], target[i]) == pytest.approx(losses[i], rel=1e-6)
    target[3] = -100
    expected, grads = fl.cross_entropy(logits, target, return_grad=True, engine="reference")
    loss = fn.cross_entropy_grad(logits, target, grad)
    assert_loss(loss, expected, logits.dtype)
    assert_grad(grad, grads.astype(np.float64))
    assert fn.cross_entropy(logits, target) == loss
    in_place = logits.copy()
    assert fn.cross_entropy_grad(in_place, target, in_place) == loss
    assert same_bits(in_place, grad)


@REAL
def test_binary_batches_and_elements(dtype):
    rng = np.random.default_rng(5)
    logits = np.concatenate([rng.normal(0, 4, 3000), [0, 100, -100, np.inf, -np.inf]]).astype(dtype)
    target = (logits > 0).astype(dtype)
    expected, grads = fl.binary_cross_entropy_with_logits(logits, target, return_grad=True, engine="reference")
    grad = np.empty_like(logits)
    loss = fn.binary_cross_entropy_with_logits_grad(logits, target, grad)
    assert_loss(loss, expected, logits.dtype)
    assert_grad(grad, grads.astype(np.float64))
    assert fn.binary_cross_entropy_with_logits(logits, target) == loss
    assert fn.binary_cross_entropy_with_logits_grad(logits, target, logits) == loss
    assert same_bits(logits, grad)
    assert fn.binary_cross_entropy_with_logits_element(dtype(-2), dtype(1)) == pytest.approx(
        (2.126928, -0.880797), rel=1e-6
    )


@REAL
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_rows_of_softmax(dtype, name):
    rows = np.array([[1, 2, 3], [1000, 1000, -np.inf], [0, 0, 0], [np.nan, 1, 2], [np.inf, 1, 2]], dtype)
    rows = np.vstack([rows, np.full((1, 3), -np.inf, dtype)])
    expected = getattr(fl, name)(rows, axis=1, engine="reference")
    for row, want in zip(rows, expected, strict=True):
        if name == "logsumexp":
            got = fn.logsumexp(row)
        else:
            got = row.copy()
            getattr(fn, name)(got, got)
        np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("name", ["sigmoid", "log_sigmoid", "softplus"])
def test_numbers(name):
    for x in (-1000.0, -3.0, 0.0, 0.5, 40.0, np.inf, -np.inf, np.nan):
        for real in (np.float32, np.float64):
            want = getattr(fl, name)(np.array([x], real), engine="reference")[0]
            np.testing.assert_allclose(getattr(fn, name)(real(x)), want, rtol=2e-7 if real == np.float32 else 1e-15)


def test_targets_out_of_range_in_compiled_code():
    logits, grad = np.zeros((2, 3)), np.zeros((2, 3))
    for bad in (-1, 3, 2**40):
        assert np.isnan(fn.cross_entropy_row(logits[0], bad))
        assert np.isnan(fn.cross_entropy_row_grad(logits[0], bad, grad[0], 1.0)) and np.isnan(grad[0]).all()
        with pytest.raises(IndexError, match="neither a class nor -100"):
            fn.cross_entropy(logits, np.array([0, bad]))
    assert np.isnan(fn.cross_entropy(logits, np.array([-100, -100])))


@pytest.mark.parametrize("classes", [3, 10, 21, 40, 300, 1100])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_arrays_of_any_stride(classes, dtype):
    @numba.njit
    def rows(logits, target, grad):
        loss = 0.0
        for i in range(target.size):
            loss += fn.cross_entropy_row_grad(logits[i], target[i], grad[i], 1.0 / target.size)
        return loss / target.size

    @numba.njit
    def batch_of(logits, target, grad):
        return fn.cross_entropy_grad(logits, target, grad)

    z, y = batch(7, classes, dtype)
    wide = np.full((7, 3 * classes), 9, dtype)
    wide[:, 1::3] = z
    expected = fl.cross_entropy(z, y, return_grad=True, engine="reference")
    for function in (rows, batch_of):
        grads = np.full((7, 2 * classes), 9, dtype)
        loss = function(wide[:, 1::3], y, grads[:, ::2])
        assert_loss(loss, expected[0], np.dtype(dtype))
        assert_grad(grads[:, ::2], expected[1])
        assert (grads[:, 1::2] == 9).all() and (wide[:, ::3] == 9).all()


def test_use_in_a_cached_function(tmp_path):
    (tmp_path / "mine.py").write_text(
        """
import numba, numpy as np, fastloss.numba as fn
@numba.njit(cache=True)
def mine(z, y, g):
    return fn.cross_entropy_grad(z, y, g) + fn.softplus(0.0)
print(mine(np.zeros((2, 4)), np.array([0, 1]), np.empty((2, 4))), sum(mine.stats.cache_hits.values()))
"""
    )
    lines = [
        subprocess.run(
            [sys.executable, "mine.py"],
            cwd=tmp_path,
            env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")},
            capture_output=True,
            text=True,
            timeout=300,
        ).stdout.split()
        for _ in range(2)
    ]
    assert float(lines[0][0]) == float(lines[1][0]) == pytest.approx(np.log(4) + np.log(2))
    assert [line[1] for line in lines] == ["0", "1"]
