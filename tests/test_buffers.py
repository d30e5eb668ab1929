"""The memory of freed gradients: taken again, never while anything refers to it, and within a limit."""

import gc
import os
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest

import fastloss as fl
from fastloss.engines import get

pytestmark = pytest.mark.skipif("cython" not in fl.engines(), reason="only the compiled engine keeps memory")

DEFAULT = 2**30
SHAPE = (300, 1000)  # 1.2 MB, above what is left to NumPy


def pooled():
    return get("cython").pooled_memory()


@pytest.fixture(autouse=True)
def empty_pool():
    gc.collect()
    fl.set_buffer_limit(0)
    fl.set_buffer_limit(DEFAULT)
    assert pooled() == 0
    yield
    fl.set_buffer_limit(0)
    fl.set_buffer_limit(DEFAULT)


def gradient(shape=SHAPE, dtype=np.float32, value=0.0, **options):
    logits = np.full(shape, value, dtype)
    return fl.cross_entropy(logits, np.zeros(shape[0], int), return_grad=True, engine="cython", **options)[1]


def address(array):
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize(
    "call",
    [
        gradient,
        lambda: gradient(label_smoothing=0.1, softcap=3.0),
        lambda: gradient(dtype=np.float16, shape=(300, 2000)),
        lambda: fl.binary_cross_entropy_with_logits(
            np.zeros(SHAPE, np.float32), np.zeros(SHAPE, np.float32), return_grad=True, engine="cython"
        )[1],
        lambda: fl.binary_cross_entropy_with_logits(
            np.zeros(SHAPE, np.float32), np.zeros(SHAPE, bool), reduction="none", return_grad=True, engine="cython"
        )[1],
        lambda: fl.softmax(np.zeros(SHAPE, np.float32), engine="cython"),
        lambda: fl.sigmoid(np.zeros(SHAPE, np.float32), engine="cython"),
    ],
    ids=["cross_entropy", "any option", "float16", "binary", "binary none", "softmax", "sigmoid"],
)
def test_freed_memory_is_taken_again(call):
    first = call()
    assert pooled() == 0
    where, expected = address(first), first.copy()
    first[...] = np.nan  # what lies there must not show
    del first
    assert pooled() >= expected.nbytes
    second = call()
    assert address(second) == where
    assert pooled() == 0
    assert (second == expected).all()


def test_what_lives_is_never_taken():
    gradients = [gradient(value=i) for i in range(5)]
    assert len({address(g) for g in gradients}) == 5
    assert pooled() == 0


@pytest.mark.parametrize(
    "derive",
    [
        lambda grad: grad[7:9, 3],
        lambda grad: grad.T,
        lambda grad: grad.reshape(-1)[::-1],
        lambda grad: grad.view(np.int32),
        lambda grad: memoryview(grad),
        lambda grad: np.from_dlpack(grad),
        lambda grad: np.frombuffer(grad, np.uint8),
        lambda grad: grad.base,
    ],
    ids=["slice", "transpose", "reshape", "view", "memoryview", "dlpack", "frombuffer", "base"],
)
def test_whatever_refers_to_it_keeps_it(derive):
    first = gradient()
    where = address(first)
    kept = derive(first)
    before = None if type(kept).__name__ == "Buffer" else bytes(np.ascontiguousarray(kept))
    del first
    gc.collect()
    assert pooled() == 0
    second = gradient(value=3.0)
    second[...] = 5.0
    assert address(second) != where
    assert before is None or bytes(np.ascontiguousarray(kept)) == before
    del kept, second
    gc.collect()
    assert pooled() >= 2 * 4 * SHAPE[0] * SHAPE[1]


def test_a_cycle_is_freed_by_the_collector():
    first = gradient()
    cycle = [first]
    cycle.append(cycle)
    del first, cycle
    gc.collect()
    assert pooled() > 0


def test_small_gradients_are_left_to_numpy():
    grad = gradient((10, 10))
    assert grad.base is None and grad.flags.owndata
    del grad
    assert pooled() == 0


def test_a_larger_gradient_never_gets_a_smaller_block():
    for rows in (300, 301, 330, 420, 900, 3000):
        grad = gradient((rows, 1000))
        grad[...] = 1.0  # writes past a block that is too small would end this process under a sanitizer, or worse
        assert grad.nbytes == 4000 * rows
        del grad
    # And one much smaller leaves the large block alone.
    where = address(gradient((3000, 1000)))
    small = gradient((100, 1000))
    assert address(small) != where


def test_limit_of_nothing():
    kept = gradient()
    fl.set_buffer_limit(0)
    del kept
    assert pooled() == 0
    grad = gradient()
    assert np.isfinite(grad).all()
    del grad
    assert pooled() == 0


def test_a_lower_limit_gives_memory_back_at_once_oldest_first():
    gradients = [gradient((300 + 200 * i, 1000)) for i in range(4)]
    newest = address(gradients[-1])
    while gradients:
        del gradients[0]
    size = pooled()
    fl.set_buffer_limit(size - 1)
    assert 0 < pooled() < size
    fl.set_buffer_limit(5 * 10**6)
    assert 0 < pooled() <= 5 * 10**6
    assert address(gradient((900, 1000))) == newest


def test_a_gradient_above_the_limit_is_not_kept():
    fl.set_buffer_limit(2 * 10**6)
    del_me = gradient()
    del del_me
    kept = pooled()
    assert 0 < kept <= 2 * 10**6
    gradient((3000, 1000))
    assert pooled() == kept


def test_total_over_many_sizes_is_bounded():
    limit = 20 * 2**20
    fl.set_buffer_limit(limit)
    rng = np.random.default_rng(0)
    living = []
    for _ in range(300):
        living.append(gradient((int(rng.integers(70, 2000)), 1000)))
        if len(living) > 5:
            living.pop(int(rng.integers(len(living))))
        assert pooled() <= limit
    del living
    assert 0 < pooled() <= limit


def test_number_of_blocks_is_bounded():
    """By default too: many different sizes do not pile up."""
    gradients = [gradient((70 + 30 * i, 1000)) for i in range(100)]
    total = sum(g.nbytes for g in gradients)
    del gradients
    assert 0 < pooled() < total


@pytest.mark.parametrize(
    ("limit", "error", "text"),
    [
        (-1, ValueError, "limit must be at least 0 bytes, not -1"),
        (1.5, TypeError, "limit must be an integer number of bytes, not 1.5"),
        ("1", TypeError, "limit must be an integer number of bytes, not '1'"),
        (None, TypeError, "limit must be an integer number of bytes, not None"),
        (True, TypeError, "limit must be an integer number of bytes, not True"),
    ],
)
def test_errors(limit, error, text):
    kept = gradient()
    del kept
    before = pooled()
    with pytest.raises(error, match=text):
        fl.set_buffer_limit(limit)
    assert pooled() == before > 0


def test_any_integer_is_a_limit():
    fl.set_buffer_limit(np.int32(0))
    gradient()
    assert pooled() == 0
    fl.set_buffer_limit(10**30)
    gradient()
    assert pooled() > 0


def test_threads_share_the_memory():
    """Gradients that are alive at once never share memory, whichever thread made or freed them."""
    failures, barrier = [], threading.Barrier(4)

    def work(number):
        rng = np.random.default_rng(number)
        barrier.wait()
        living = []
        for i in range(60):
            value = float(1000 * number + i)
            grad = gradient((int(rng.integers(70, 400)), 1000), num_threads=1)
            grad[...] = value
            living.append((grad, value))
            if len(living) > 3:
                living.pop(int(rng.integers(len(living))))
            if not all((g == v).all() for g, v in living):
                failures.append(number)
                return

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures and not any(thread.is_alive() for thread in threads)
    assert 0 < pooled() <= DEFAULT


def test_freed_by_another_thread():
    holder = [gradient()]
    where = address(holder[0])
    thread = threading.Thread(target=holder.clear)
    thread.start()
    thread.join()
    assert address(gradient()) == where


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_fork():
    """Parent and child go on with pools of their own, also when the fork comes while other threads work."""
    script = """
        import os, signal, sys, threading, warnings
        import numpy as np
        import fastloss as fl

        warnings.simplefilter("ignore")  # Python warns of forks where threads run
        logits, target = np.zeros((300, 1000), np.float32), np.zeros(300, int)
        call = lambda: fl.cross_entropy(logits, target, return_grad=True)[1]
        expected = call().copy()
        stop = threading.Event()

        def work():
            while not stop.is_set():
                call()

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        kept = call()
        for _ in range(20):
            child = os.fork()
            if child == 0:
                signal.alarm(20)
                code = 1
                try:
                    for _ in range(5):
                        grad = call()
                        if not (grad == expected).all():
                            break
                        grad[...] = 7.0
                        del grad
                    else:
                        code = 0 if (kept == expected).all() else 2
                finally:
                    os._exit(code)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if code != 0:
                stop.set()
                sys.exit(f"the child ended with {code}")
            if not (call() == expected).all() or not (kept == expected).all():
                stop.set()
                sys.exit("the parent sees what the child wrote")
        stop.set()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
