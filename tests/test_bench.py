"""`python -m fastloss bench`, and the measuring code that the other benchmarks share."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import fastloss as fl
from fastloss.bench import calls, cases, command, processes, report, revisions, timing
from fastloss.catalogue import DOMAINS, LOSSES

SMALL = ["--threads", "1", "--seconds", "0.5", "--shape", "64x10"]
BLOCKED = ("torch", "jax", "optax", "sklearn", "ml_dtypes", "matplotlib")


def run(*options: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fastloss", "bench", *options],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )


def small(loss: str) -> str:
    return "2 x 5 x 8 x 8" if DOMAINS[loss].regions else "48 x 10"


# ---- the command


def test_the_command_measures_writes_and_draws(tmp_path, peer):
    peer("matplotlib")
    options = ["--loss", "cross_entropy", "hinge_loss", "--peers", "NumPy", "--json", "b.json", "--plot", "b.png"]
    done = run(*SMALL, "64x20", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"fastloss {fl.__version__}, ")
    for loss in ("cross_entropy", "hinge_loss"):
        block = done.stdout[done.stdout.index(f"{loss}, float32, 1 thread\n") :].splitlines()[:4]
        assert block[1].split() == ["shape", "time", "+-", "ns/element", "of", "copy", "NumPy"]
        for line, classes in zip(block[2:], (10, 20), strict=True):
            found = re.fullmatch(rf"64 x {classes} +(\S+) us +\d+% +(\S+) +\d+% +(\S+)x( ~)?", line)
            microseconds, nanoseconds, over_numpy = map(float, found.groups()[:3])
            assert nanoseconds == pytest.approx(1000 * microseconds / (64 * classes), rel=0.1)
            assert over_numpy > 0
    assert "cross_entropy, 64 x 10, 1 thread" in done.stderr and "4/4" in done.stderr  # the progress bar
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")

    results = json.loads((tmp_path / "b.json").read_text())["results"]
    assert [result["shape"] for result in results] == ["64 x 10", "64 x 20"] * 2
    assert set(results[0]["seconds"]) == {"fastloss", "copy", "NumPy"} and results[0]["missing"] == {}

    done = run(*SMALL, "--peers", "--against", "b.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^64 x 10 .* ([^\s~]+?)x?(?: ~)?$", done.stdout, re.M)  # ~: too noisy to trust
    assert "over b" in done.stdout and float(rows[0]) > 0 and rows[1:] == ["-"]  # the second loss was not in it


def test_without_peers_it_says_what_was_not_compared(tmp_path):
    for name in BLOCKED:
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('no {name}')\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = run(*SMALL, "--loss", "cross_entropy", cwd=tmp_path, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    for name in ("torch", "jax", "sklearn"):
        assert re.search(rf"^Not compared: \S+: {name} is not installed$", done.stdout, re.M), done.stdout
    assert re.search(r"^64 x 10 .* \S+x", done.stdout, re.M)  # NumPy is there
    for options, complaint in (
        (["--plot", "b.png"], "--plot 'b.png' cannot be written: it needs matplotlib: pip install matplotlib"),
        (["--dtype", "bfloat16"], "--dtype bfloat16 needs ml_dtypes: pip install ml_dtypes"),
    ):
        done = run(*SMALL, *options, cwd=tmp_path, PYTHONPATH=path)
        assert (done.returncode, done.stdout, done.stderr) == (2, "", f"fastloss bench: {complaint}.\n")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--shape", "64"], "--shape '64' has one axis, and cross_entropy needs one of samples and one of classes"),
        (["--loss", "multi_margin_loss", "--shape", "2x3x4"], "--shape '2 x 3 x 4' has 3 axes, and multi_margin_loss"),
        (["--json", "nowhere/b.json"], "the folder of --json 'nowhere/b.json' does not exist"),
        (["--plot", "nowhere/b.png"], "the folder of --plot 'nowhere/b.png' does not exist"),
        (["--threads", "100000"], "--threads 100000 needs as many CPUs, and this process may use "),
        (["--against", "broken.json"], "--against 'broken.json' is not what bench --json writes"),
        (["--against", "no-such-revision"], "has no revision 'no-such-revision'"),
    ],
)
def test_errors_are_one_sentence_and_status_2(options, complaint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.json").write_text("{}")
    assert command.main([*SMALL[:4], *options]) == 2
    output, errors = capsys.readouterr()
    last = errors.splitlines()[-1]
    assert output == "" and last.startswith("fastloss bench: ") and complaint in last and last.endswith(".")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--shape", "64*10"], "'64*10' is not a shape such as 4096x1000"),
        (["--shape", "0x10"], "'0x10' is not a shape such as 4096x1000"),
        (["--threads", "0"], "'0' is not a whole number of at least 1"),
        (["--seconds", "nan"], "'nan' is not a positive number of seconds"),
        (["--loss", "l2"], "invalid choice: 'l2'"),
    ],
)
def test_bad_arguments_are_refused(options, complaint, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(options)
    assert stopped.value.code == 2
    assert complaint in capsys.readouterr().err


def test_a_plot_of_no_picture_format_is_refused_before_measuring(tmp_path, capsys, peer):
    peer("matplotlib")
    assert command.main([*SMALL, "--plot", str(tmp_path / "b.txt")]) == 2
    assert "a picture's name ends in one of" in capsys.readouterr().err


def test_a_process_that_fails_is_said(tmp_path, monkeypatch, capfd):
    fl.sigmoid(np.zeros(1))
    monkeypatch.setenv("FASTLOSS_ENGINE", "vax")  # read by the measuring process: the engine is loaded here
    assert command.main([*SMALL, "--peers"]) == 1
    assert "fastloss bench: the process for 1 thread failed: see above.\n" in capfd.readouterr().err


# ---- the report


def result(fastloss, copy, **other):
    base = {"loss": "cross_entropy", "shape": "64 x 10", "dtype": "float32", "engine": None, "ignored": 0.0}
    return {
        **base,
        "threads": 1,
        "others": 0.0,
        "missing": {},
        "seconds": {"fastloss": fastloss, "copy": copy},
        **other,
    }


def test_a_line_is_noisy_where_times_differ_or_others_have_the_cpus():
    steady = [1.0, 1.01, 1.0, 0.99]
    assert not report.is_noisy(result(steady, steady))
    assert not report.is_noisy(result(steady, steady, others=None))
    assert report.is_noisy(result([1.0, 1.5, 1.0, 1.5], steady))
    assert report.is_noisy(result(steady, [1.0, 1.5, 1.0, 1.5]))
    assert report.is_noisy(result(steady, steady, others=0.2))


def test_the_table_marks_noisy_lines_and_lists_reasons():
    steady, wild = [2e-3] * 4, [1e-3, 2e-3] * 2
    results = [
        result(steady, [1e-3] * 4, missing={"JAX": "jax is not installed"}),
        result(wild, steady, shape="64 x 20", missing={"JAX": "jax is not installed", "torch": "it is wrong"}),
    ]
    text = report.table({"results": results}, {})
    lines = text.splitlines()
    assert lines[2].split() == ["64", "x", "10", "2.00", "ms", "0%", "3.12e+03", "50%"]
    assert lines[3].endswith(" ~") and "~ 1 line too noisy" in text
    assert "Not compared: JAX: jax is not installed\n" in text
    assert text.endswith("Not compared: torch: it is wrong (cross_entropy, 64 x 20)")


def test_an_earlier_report_is_compared_in_copies():
    before, now = result([3.0] * 3, [1.0] * 3), result([4.0] * 3, [2.0] * 3)
    assert report.over_earlier(now, {report.key(before): before}) == 1.5  # 3 copies then, 2 now
    assert report.over_earlier({**now, "threads": 2}, {report.key(before): before}) is None


def test_what_others_take_of_the_cpus_is_seen():
    if timing.Others().share() is None:
        pytest.skip("this system does not tell how busy its CPUs are")
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in os.sched_getaffinity(0)]
    try:
        others = timing.Others()
        time.sleep(1.0)
        assert others.share() > 0.5
    finally:
        for process in busy:
            process.kill()
            process.wait()


# ---- measuring


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_every_loss_has_batches_and_passes_its_check(loss, dtype):
    batch = cases.make(cases.Case(loss, small(loss), dtype))
    assert batch.input.dtype.name == dtype and batch.input.shape == cases.parse_shape(small(loss))
    group = {make.__name__: make(batch, 1) for make in (calls.fused, calls.loss_only, calls.recycled, calls.copy)}
    times = timing.take_turns(group, rounds=2, sample=0)
    assert all(len(values) == 2 and min(values) > 0 for values in times.values())
    assert cases.shapes(loss)
    assert np.array_equal(batch.grad, batch.input)  # the copy came last


@pytest.mark.parametrize("loss", LOSSES)
def test_a_wrong_result_is_refused(loss):
    batch = cases.make(cases.Case(loss, small(loss)))
    gradient = LOSSES[loss](batch.input, batch.target, return_grad=True)[1]
    with pytest.raises(AssertionError, match="the loss is off by"):
        batch.verify(batch.expected[0] * 1.001 + 1e-3)
    for wrong in (gradient * 1.001, gradient[::-1]):
        with pytest.raises(AssertionError, match="a gradient is off by"):
            batch.verify(batch.expected[0], wrong)


def test_calls_of_a_wrong_loss_are_refused():
    batch = cases.make(cases.Case("cross_entropy", "64 x 10"))

    def wrong(*args, **options):
        return fl.cross_entropy(*args, **{**options, "label_smoothing": 0.01})

    with pytest.raises(AssertionError, match="the loss is off by"):
        calls.fused(batch, 1, wrong)


def test_large_batches_are_checked_by_their_first_and_last_block():
    batch = cases.make(cases.Case("cross_entropy", "6400 x 100"))
    assert batch.repeats == 16
    gradient = fl.cross_entropy(batch.input, batch.target, return_grad=True)[1]
    gradient[-1] *= 2
    with pytest.raises(AssertionError, match="in block 15"):
        batch.verify(batch.expected[0], gradient)


def test_ignored_targets_are_of_the_share_that_is_asked_for():
    target = cases.make(cases.Case("cross_entropy", "4096 x 10", ignored=0.9)).target
    assert 0.87 < (target == -100).mean() < 0.93


PEERS_OF = {  # beside NumPy
    "torch": ["cross_entropy", "nll_loss", "kl_div", "multi_margin_loss", "multilabel_margin_loss", "soft_margin_loss"]
    + ["binary_cross_entropy_with_logits", "binary_cross_entropy", "multilabel_soft_margin_loss"],
    "jax": ["cross_entropy", "binary_cross_entropy_with_logits", "sigmoid_focal_loss", "hinge_loss"],
    "sklearn": ["cross_entropy", "binary_cross_entropy_with_logits"],
}


@pytest.mark.parametrize(("name", "module"), [("torch", "torch"), ("JAX", "jax"), ("scikit-learn", "sklearn")])
def test_peers_are_found_and_agree(name, module, peer):
    peer(module)
    for loss in LOSSES:
        found, missing = calls.peers(cases.make(cases.Case(loss, small(loss))), 1, (name, "NumPy"))
        assert "NumPy" in found
        assert (name in found) == (loss in PEERS_OF[module]) == (name not in missing), missing


def test_a_peer_with_another_result_is_left_out(monkeypatch):
    monkeypatch.setitem(calls.PEERS, "NumPy", lambda batch, threads: calls._checked(batch, lambda: (0.0, batch.grad)))
    found, missing = calls.peers(cases.make(cases.Case(shape="8 x 10")), 1, ("NumPy",))
    assert found == {} and missing["NumPy"].startswith("its result is not fastloss's: the loss is off by")


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only in the calls that this makes."""
    now, order = [0.0], []
    monkeypatch.setattr(timing, "perf_counter", lambda: now[0])

    def make(name, seconds):
        def call():
            order.append(name)
            now[0] += seconds

        return call

    return make, order


def test_calls_take_turns_for_some_rounds(clock):
    make, order = clock
    times = timing.take_turns({"a": make("a", 0.002), "b": make("b", 0.2)}, rounds=4, sample=0.004)
    assert times == {"a": [pytest.approx(0.002)] * 4, "b": [pytest.approx(0.2)] * 4}
    # Estimates; then each round, calls for WARM seconds that are not timed and two that are, but for the long one only
    # the latter.
    warm = math.ceil(timing.WARM / 0.002) * "a"
    assert "".join(order) == "aaab" + warm + "aabb" + 3 * (warm + "aab")


def test_where_seconds_count_long_calls_take_part_in_three_rounds(clock):
    make, order = clock
    times = timing.take_turns({"a": make("a", 0.01), "b": make("b", 0.2)}, seconds=1.5)
    assert len(times["b"]) == timing.FEWEST and len(times["a"]) > 10
    assert 1.5 <= 0.01 * order.count("a") + 0.2 * order.count("b") < 1.6


def test_threads_that_begin_again_are_waited_for(monkeypatch):
    busy = [0] * 3 + [1] * 2 + [0] * 100  # thousandths of a second of work in each
    work = [0.0]
    monkeypatch.setattr(timing, "process_time", lambda: work[0])
    monkeypatch.setattr(timing, "sleep", lambda seconds: work.__setitem__(0, work[0] + seconds * busy.pop(0)))
    timing._settle()
    assert len(busy) == 100 - timing.QUIET


def test_spread_is_the_distance_of_the_quartiles():
    assert timing.spread([1, 1, 1, 1]) == 0 and timing.spread([1, 2, 3, 4, 5]) == pytest.approx(2 / 3)


# ---- other builds


@pytest.fixture
def other_build(tmp_path):
    """A copy of the installed package whose hinge_loss is another function."""
    shutil.copytree(Path(fl.__file__).parent, tmp_path / "fastloss", ignore=shutil.ignore_patterns("__pycache__"))
    with open(tmp_path / "fastloss" / "__init__.py", "a") as file:
        file.write("\n\ndef hinge_loss(*args, **options):\n    return 'other'\n")
    return tmp_path


def test_another_build_lives_beside_this_one(other_build):
    before = {name: module for name, module in sys.modules.items() if name.startswith("fastloss")}
    other = revisions.load(other_build, ["reference", fl.engines()[0]])
    assert {name: module for name, module in sys.modules.items() if name.startswith("fastloss")} == before
    assert other["hinge_loss"]() == "other" and fl.hinge_loss is not other["hinge_loss"]
    assert other["cross_entropy"] is not fl.cross_entropy
    assert str(other_build) in other["cross_entropy"].__code__.co_filename
    batch = cases.make(cases.Case("cross_entropy", "64 x 10"))
    assert calls.fused(batch, 1, other["cross_entropy"])()[0] == calls.fused(batch, 1)()[0]


def test_a_folder_without_a_build_is_refused(tmp_path):
    with pytest.raises(revisions.RevisionError, match="holds no build"):
        revisions.load(tmp_path, [])
    assert sys.modules["fastloss"] is fl


def test_a_base_takes_turns_with_the_rest(other_build):
    plan = processes.Plan(1, (cases.Case(shape="64 x 10", engine=fl.engines()[0]),), seconds=0.2, base=str(other_build))
    (measured,) = processes.measure(plan)
    assert set(measured["seconds"]) == {"fastloss", "copy", "base"}


def test_revisions_need_a_repository(tmp_path):
    with pytest.raises(revisions.RevisionError, match="has no revision 'HEAD'"):
        revisions.build("HEAD", tmp_path, tmp_path / "build")
    assert list(tmp_path.iterdir()) == []
