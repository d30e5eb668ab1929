"""Where the number of threads comes from, and which engine is taken."""

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import fastloss as fl
from fastloss import threads
from fastloss.engines import get as get_engine


@pytest.fixture(autouse=True)
def restore():
    yield
    fl.set_num_threads(None)
    fl.set_engine(None)


def run(code, **environment):
    variables = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    variables.pop("FASTLOSS_ENGINE", None)
    return subprocess.run(
        [sys.executable, "-c", code], env={**variables, **environment}, capture_output=True, text=True, timeout=60
    )


def test_set_num_threads():
    before = fl.get_num_threads()
    assert before >= 1
    fl.set_num_threads(3)
    assert fl.get_num_threads() == 3
    fl.set_num_threads(np.int64(2))
    assert fl.get_num_threads() == 2
    fl.set_num_threads(None)
    assert fl.get_num_threads() == before
    for value, error in ((0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError), ("2", TypeError)):
        with pytest.raises(error, match="num_threads must be"):
            fl.set_num_threads(value)
    assert fl.get_num_threads() == before


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"FASTLOSS_NUM_THREADS": "3"}, 3),
        ({"FASTLOSS_NUM_THREADS": " 4 ", "OMP_NUM_THREADS": "2"}, 4),
        ({"FASTLOSS_NUM_THREADS": "", "OMP_NUM_THREADS": "2"}, 2),
        ({"OMP_NUM_THREADS": "4,2"}, 4),
        ({"OMP_NUM_THREADS": " 6 , 2"}, 6),
        ({"OMP_NUM_THREADS": "many"}, None),
        ({"OMP_NUM_THREADS": "0"}, None),
        ({"OMP_NUM_THREADS": "-3"}, None),
    ],
    ids=str,
)
def test_environment(environ, expected):
    assert threads.from_environment(environ) == expected


@pytest.mark.parametrize("value", ["zero", "0", "-2", "2.5", "2,4"])
def test_malformed_variable_of_our_own(value):
    with pytest.raises(ValueError, match=f"FASTLOSS_NUM_THREADS is '{value}': expected an integer of at least 1"):
        threads.from_environment({"FASTLOSS_NUM_THREADS": value})


def test_variables_are_read_at_the_first_use():
    code = "import fastloss as fl; print(fl.get_num_threads())"
    assert run(code, FASTLOSS_NUM_THREADS="7", OMP_NUM_THREADS="5").stdout == "7\n"
    assert run(code, OMP_NUM_THREADS="5,2").stdout == "5\n"
    done = run("import fastloss as fl; fl.set_num_threads(2); print(fl.get_num_threads())", FASTLOSS_NUM_THREADS="7")
    assert done.stdout == "2\n"
    assert run("import fastloss", FASTLOSS_NUM_THREADS="x").returncode == 0
    done = run(code, FASTLOSS_NUM_THREADS="x")
    assert "ValueError: FASTLOSS_NUM_THREADS is 'x': expected an integer of at least 1" in done.stderr


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no CPU affinity")
def test_affinity(tmp_path):
    cpu = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, [{cpu}]); import fastloss as fl; print(fl.get_num_threads())"
    assert run(code).stdout == "1\n"


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_no_cgroup(tmp_path):
    assert threads.cgroup_quota(tmp_path, tmp_path / "missing") is None
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert threads.available_cpus(tmp_path, tmp_path / "missing") == cpus


@pytest.mark.parametrize(
    ("text", "expected"),
    [("max 100000\n", None), ("150000 100000\n", 1.5), ("20000 100000\n", 0.2), ("", None), ("a b\n", None)],
)
def test_cgroup_version_2(tmp_path, text, expected):
    write(tmp_path / "own", "0::/\n")
    write(tmp_path / "fs/cpu.max", text)
    assert threads.cgroup_quota(tmp_path / "fs", tmp_path / "own") == expected


def test_cgroup_version_2_takes_the_least_of_the_parents(tmp_path):
    write(tmp_path / "own", "0::/user.slice/job.scope\n")
    write(tmp_path / "fs/user.slice/cpu.max", "300000 100000\n")
    write(tmp_path / "fs/user.slice/job.scope/cpu.max", "max 100000\n")
    assert threads.cgroup_quota(tmp_path / "fs", tmp_path / "own") == 3
    write(tmp_path / "fs/user.slice/job.scope/cpu.max", "50000 100000\n")
    assert threads.cgroup_quota(tmp_path / "fs", tmp_path / "own") == 0.5
    assert threads.available_cpus(tmp_path / "fs", tmp_path / "own") == 1


def test_cgroup_version_2_of_a_container(tmp_path):
    """The path in /proc is the host's, but the files at the root are the container's own."""
    write(tmp_path / "own", "0::/docker/0123abcd\n")
    write(tmp_path / "fs/cpu.max", "100000 100000\n")
    assert threads.cgroup_quota(tmp_path / "fs", tmp_path / "own") == 1


@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct"])
@pytest.mark.parametrize("group", ["", "docker/0123abcd"])
def test_cgroup_version_1(tmp_path, mount, group):
    write(tmp_path / "own", "12:pids:/x\n4:cpu,cpuacct:/docker/0123abcd\n1:name=systemd:/y\n")
    write(tmp_path / "fs" / mount / group / "cpu.cfs_quota_us", "250000\n")
    write(tmp_path / "fs" / mount / group / "cpu.cfs_period_us", "100000\n")
    assert threads.cgroup_quota(tmp_path / "fs", tmp_path / "own") == 2.5
    write(tmp_path / "fs" / mount / group / "cpu.cfs_quota_us", "-1\n")
    assert threads.cgroup_quota(tmp_path / "fs", tmp_path / "own") is None


def test_the_quota_is_rounded_up(tmp_path):
    write(tmp_path / "own", "0::/\n")
    write(tmp_path / "cpu.max", "100001 100000\n")
    cpus = threads.available_cpus(tmp_path / "missing", tmp_path / "missing")
    assert threads.available_cpus(tmp_path, tmp_path / "own") == min(2, cpus)


def test_engines_by_name_and_by_variable():
    fl.set_engine("reference")
    loss = fl.cross_entropy([1.0, 2.0], 0)
    assert loss == fl.cross_entropy([1.0, 2.0], 0, engine="reference")
    fl.set_engine(None)
    code = "import fastloss as fl; from fastloss.engines import get; fl.softplus([0.0]); print(get().__name__)"
    assert run(code, FASTLOSS_ENGINE="reference").stdout == "fastloss.engines.reference\n"
    best = run(code).stdout
    assert fl.engines()[0] in best
    assert run("import fastloss", FASTLOSS_ENGINE="fast").returncode == 0
    done = run(code, FASTLOSS_ENGINE="fast")
    choices = ", ".join(fl.engines())
    assert f"ValueError: FASTLOSS_ENGINE is 'fast', which is not available: choose from {choices}" in done.stderr


def test_show_config(capsys):
    fl.show_config()
    printed = capsys.readouterr().out
    for text in (fl.__version__, np.__version__, "reference", f"threads       {fl.get_num_threads()}"):
        assert text in printed


# ---- The compiled engine's threads, each in a process of its own -----------------------------------------------------

needs_cython = pytest.mark.skipif("cython" not in fl.engines(), reason="about the compiled engine's threads")
counts_threads = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="this system does not list threads")

PARALLEL = """
import os
import numpy as np
{first}
import fastloss as fl
rng = np.random.default_rng(0)
logits, target = rng.normal(0, 1, (4000, 100)).astype("f4"), rng.integers(0, 100, 4000)

def running():
    return len(os.listdir("/proc/self/task"))

def call(**options):
    return fl.cross_entropy(logits, target, return_grad=True, engine="cython", **options)

"""


def parallel(code, first="", **environment):
    done = run(PARALLEL.format(first=first) + textwrap.dedent(code), **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_cython
@counts_threads
@pytest.mark.parametrize(
    ("setup", "options", "environment", "expected"),
    [
        ("", "", {"OMP_NUM_THREADS": "4"}, 4),
        ("", "", {"FASTLOSS_NUM_THREADS": "3"}, 3),
        ("", "", {"FASTLOSS_NUM_THREADS": "3", "OMP_NUM_THREADS": "2"}, 3),
        ("fl.set_num_threads(5)", "", {"OMP_NUM_THREADS": "2"}, 5),
        ("fl.set_num_threads(5)", "num_threads=2", {"OMP_NUM_THREADS": "4"}, 2),
        ("fl.set_num_threads(1)", "", {"OMP_NUM_THREADS": "4"}, 1),
        ("logits, target = logits[:600], target[:600]", "", {"OMP_NUM_THREADS": "4"}, 1),  # too small to share out
    ],
    ids=str,
)
def test_as_many_threads_run_as_were_asked_for(setup, options, environment, expected):
    code = f"""
        {setup}
        before = running()
        call({options})
        print(running() - before + 1)
    """
    assert parallel(code, **environment) == f"{expected}\n"


@needs_cython
@counts_threads
@pytest.mark.parametrize(("limit", "expected"), [(1, 1), (2, 2), (3, 3), (8, 4)])
@pytest.mark.parametrize("own", [{}, {"FASTLOSS_NUM_THREADS": "4"}], ids=["OMP_NUM_THREADS", "FASTLOSS_NUM_THREADS"])
def test_threadpoolctl_limits(limit, expected, own, peer):
    peer("threadpoolctl")
    code = f"""
        import threadpoolctl
        fl.cross_entropy(logits[:2], target[:2], engine="cython")  # loads OpenMP, and starts no thread
        with threadpoolctl.threadpool_limits({limit}):
            before = running()
            call()
            print(running() - before + 1)
    """
    assert parallel(code, OMP_NUM_THREADS="4", **own) == f"{expected}\n"
    code = f"""
        import threadpoolctl
        fl.cross_entropy(logits[:2], target[:2], engine="cython")
        with threadpoolctl.threadpool_limits({limit}, user_api="openmp"):
            pass
        with threadpoolctl.threadpool_limits({limit}, user_api="blas"):
            before = running()
            call()
            print(running() - before + 1)
    """
    assert parallel(code, OMP_NUM_THREADS="4", **own) == "4\n", "a limit that is over, or not for OpenMP"


@needs_cython
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("start", ["fork", "spawn", "forkserver"])
def test_multiprocessing_after_parallel_calls(start, tmp_path):
    script = tmp_path / "main.py"
    script.write_text(
        PARALLEL.format(first="import multiprocessing, sys, warnings; warnings.simplefilter('ignore')")
        + textwrap.dedent(
            f"""
            def work(_):
                return call(num_threads=2)[0]

            if __name__ == "__main__":
                expected = call(num_threads=2)[0]
                with multiprocessing.get_context({start!r}).Pool(2) as pool:
                    values = pool.map_async(work, range(4)).get(timeout=40)
                if values != [expected] * 4 or call(num_threads=2)[0] != expected:
                    sys.exit("other values")
            """
        )
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


TORCH_CALL = """
def torch_call():
    z = torch.from_numpy(logits).requires_grad_()
    loss = torch.nn.functional.cross_entropy(z, torch.from_numpy(target))
    loss.backward()
    return loss.item()
"""


@needs_cython
@pytest.mark.parametrize("order", ["torch first", "torch second", "torch after a call"])
def test_torch_in_the_same_process(order, peer):
    """Two OpenMP runtimes, perhaps, and each with its threads: the numbers stay right, and nothing hangs."""
    peer("torch")
    late = {"torch second": "import torch", "torch after a call": "call(num_threads=2); import torch"}.get(order, "")
    code = f"""
        {late}
        {textwrap.indent(TORCH_CALL, " " * 8).strip()}
        expected = fl.cross_entropy(logits, target, engine="reference")
        for _ in range(5):
            assert abs(call(num_threads=2)[0] - expected) < 1e-6
            assert abs(torch_call() - expected) < 1e-5
        torch.set_num_threads(1)
        assert call(num_threads=2)[0] == call(num_threads=1)[0]
        child = os.fork()
        if child == 0:
            import signal
            signal.alarm(30)
            os._exit(0 if abs(call()[0] - expected) < 1e-6 else 1)
        assert os.waitpid(child, 0)[1] == 0
        print("done")
    """
    first = "import warnings; warnings.simplefilter('ignore')" + ("\nimport torch" if order == "torch first" else "")
    assert parallel(code, first) == "done\n"


@needs_cython
@pytest.mark.parametrize("isa", ["", "x86-64"])
def test_concurrent_first_calls(isa):
    """The engine is imported and the instruction set chosen by the first call: eight come at once."""
    if isa and isa not in get_engine("cython").isa_list():
        pytest.skip(f"no {isa} here")
    code = """
        import threading
        barrier, results = threading.Barrier(8), []

        def work(number):
            barrier.wait()
            if number % 2:
                results.append(fl.cross_entropy(logits, target))
            else:
                results.append(call(num_threads=2)[0])

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(results) == 8 and len(set(results)) == 1, results
        print("done")
    """
    for _ in range(5):
        assert parallel(code, FASTLOSS_ISA=isa) == "done\n"
