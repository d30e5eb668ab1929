"""`python -m fastloss demo`: the main job on a tiny corpus, and what it says when something is wrong."""

import importlib.util
import io
import math
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastloss as fl
from fastloss import demo

SMALL = ["--vocab", "60", "--batch", "32", "--steps", "20"]
HAS_TORCH = importlib.util.find_spec("torch") is not None
HAS_MATPLOTLIB = importlib.util.find_spec("matplotlib") is not None


def write_corpus(folder: Path, files: int = 12) -> Path:
    """Small files of a language that is easy to learn: always `name = number` or `name ( name )`."""
    folder.mkdir()
    rng = random.Random(0)
    names = [f"name{letter}" for letter in "abcdefgh"]
    for number in range(files):
        lines = [f"{rng.choice(names)} = {rng.randrange(20)}\n{rng.choice(names)}(value)\n" for _ in range(40)]
        (folder / f"file{number}.txt").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("demo") / "corpus")


@pytest.fixture
def no_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison starts a process for each loss, which is slow: one test does it."""
    monkeypatch.setattr(demo, "compare", lambda *args: "(no comparison)")


@pytest.fixture
def uninstall(monkeypatch: pytest.MonkeyPatch):
    """Make a module's import fail, as if it was not installed."""
    return lambda name: monkeypatch.setitem(sys.modules, name, None)


def perplexities(output: str) -> tuple[float, float]:
    before, after = re.search(r"Held-out perplexity: (\S+) before, (\S+) after", output).groups()
    return float(before), float(after)


def test_the_command_trains_compares_and_plots(corpus: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fastloss", "demo", "--corpus", str(corpus), "--threads", "1", *SMALL]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr

    before, after = perplexities(done.stdout)
    vocab = int(re.search(r"softmax over (\d+) words", done.stdout)[1])
    assert before == pytest.approx(vocab, rel=0.05)  # nearly equal logits at the start
    assert after < before / 3

    rows = dict(re.findall(r"^(fastloss|NumPy|torch) +(.*)$", done.stdout, re.MULTILINE))
    assert list(rows) == ["fastloss", "NumPy"] + ["torch"] * HAS_TORCH
    for name, row in rows.items():
        loss_ms, step_ms, difference = re.fullmatch(r"(\S+) ms +(\S+) ms +(?:-|\S+ MB) +(-|\S+)", row.strip()).groups()
        assert 0 < float(loss_ms.replace(",", "")) < float(step_ms.replace(",", ""))
        assert (difference == "-") == (name == "fastloss")
        assert name == "fastloss" or float(difference) < 1e-4
    assert "The same 10 steps" in done.stdout and "1 thread," in done.stdout

    assert "20" in done.stderr and "loss" in done.stderr and "tokens/s" in done.stderr  # the progress bar
    if HAS_MATPLOTLIB:
        assert (tmp_path / "fastloss-demo.png").read_bytes().startswith(b"\x89PNG")
        assert "Loss curve: fastloss-demo.png" in done.stdout


def test_torch_trains_a_gpt_with_both_losses(corpus: Path, tmp_path: Path, peer) -> None:
    peer("torch")
    command = [sys.executable, "-m", "fastloss", "demo", "--torch", "--corpus", str(corpus), "--threads", "1", *SMALL]
    done = subprocess.run([*command, "--steps", "4"], capture_output=True, text=True, cwd=tmp_path, timeout=240)
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^(torch|fastloss, installed) +(\S+) ms +(?:-|\S+ MB)$", done.stdout, re.MULTILINE)
    assert [name for name, _ in rows] == ["torch", "fastloss, installed"]
    assert all(float(step.replace(",", "")) > 0 for _, step in rows)
    assert "Calls of the loss: 4 by fastloss." in done.stdout
    apart, in_all = re.search(
        r"differ by at most (\S+) of their size in the first 4 steps, (\S+) in", done.stdout
    ).groups()
    assert float(apart) == float(in_all) < 1e-5
    assert "4/4" in done.stderr  # the progress bars
    if HAS_MATPLOTLIB:
        assert (tmp_path / "fastloss-demo.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("no_comparison")
def test_torch_that_is_missing_is_one_sentence(corpus, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    assert demo.main(["--torch", "--corpus", str(corpus), "--plot", str(tmp_path / "c.png"), *SMALL]) == 2
    assert capsys.readouterr().err == "fastloss demo: --torch needs torch, which is not installed.\n"


@pytest.mark.usefixtures("no_comparison")
def test_without_matplotlib_and_tqdm_it_draws_in_the_terminal(corpus, tmp_path, capsys, uninstall) -> None:
    uninstall("matplotlib.figure")
    uninstall("tqdm")
    plot = tmp_path / "curve.png"
    assert demo.main(["--corpus", str(corpus), "--plot", str(plot), *SMALL]) == 0
    output, errors = capsys.readouterr()
    assert not plot.exists()
    assert "matplotlib is not installed" in output
    curve = [line for line in output.splitlines() if re.match(r" *\d+\.\d\d \|", line)]
    assert len(curve) == 14
    marks = "".join(line.split("|")[1] for line in curve)
    assert marks.count("*") == 20 and marks.count("o") == 2
    assert "training 100%  step 20, loss" in errors


@pytest.mark.usefixtures("no_comparison")
@pytest.mark.skipif(not HAS_MATPLOTLIB, reason="needs matplotlib")
def test_a_plot_that_cannot_be_saved_is_drawn_in_the_terminal(corpus, tmp_path, capsys) -> None:
    assert demo.main(["--corpus", str(corpus), "--plot", str(tmp_path / "curve.nonsense"), *SMALL]) == 0
    output = capsys.readouterr().out
    assert "No picture of the loss curve: " in output and "nonsense" in output
    assert "o held out, before and after" in output


@pytest.mark.usefixtures("no_comparison")
def test_the_same_seed_and_steps_give_the_same_numbers(corpus, tmp_path, capsys) -> None:
    def result(seed: int) -> tuple[float, float]:
        options = ["--corpus", str(corpus), "--plot", str(tmp_path / "curve.png"), "--seed", str(seed), *SMALL]
        assert demo.main(options) == 0
        return perplexities(capsys.readouterr().out)

    assert result(1) == result(1) != result(2)


@pytest.mark.usefixtures("no_comparison")
def test_seconds_end_the_training_and_threads_are_given_back(corpus, tmp_path, capsys) -> None:
    threads = fl.get_num_threads()
    options = ["--corpus", str(corpus), "--plot", str(tmp_path / "c.png"), "--vocab", "60", "--batch", "4"]
    assert demo.main([*options, "--seconds", "0.4", "--threads", str(threads + 1)]) == 0
    trained = float(re.search(r"Training: (\S+) s", capsys.readouterr().out)[1])
    assert 0.2 <= trained < 3
    assert fl.get_num_threads() == threads


def missing(folder: Path) -> Path:
    return folder / "nowhere"


def not_a_folder(folder: Path) -> Path:
    (folder / "file").write_text("text " * 1000)
    return folder / "file"


def empty(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


def no_text(folder: Path) -> Path:
    (empty(folder) / "binary").write_bytes(b"word \0" * 1000)
    return folder / "empty"


def too_little(folder: Path) -> Path:
    (empty(folder) / "short.txt").write_text("word " * 99)
    return folder / "empty"


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (missing, "does not exist"),
        (not_a_folder, "is not a folder"),
        (empty, "holds 0 tokens of text, and at least 100 are needed"),
        (no_text, "holds 0 tokens of text, and at least 100 are needed"),
        (too_little, "holds 99 tokens of text, and at least 100 are needed"),
    ],
)
def test_a_bad_corpus_is_one_sentence_and_status_2(make, complaint: str, tmp_path: Path, capsys) -> None:
    folder = make(tmp_path)
    assert demo.main(["--corpus", str(folder), "--plot", str(tmp_path / "c.png"), *SMALL]) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors == f"fastloss demo: the corpus {str(folder)!r} {complaint}.\n"


def test_a_hundred_tokens_are_enough(tmp_path: Path) -> None:
    (empty(tmp_path) / "short.txt").write_text("word " * 100)
    read = demo.load_corpus(tmp_path / "empty", 10, 0)
    assert (len(read.train), len(read.held_out), read.vocabulary) == (90, 10, ["<unk>", "word"])


def test_a_bad_plot_folder_is_told_before_the_training(corpus, tmp_path, capsys) -> None:
    assert demo.main(["--corpus", str(corpus), "--plot", str(tmp_path / "nowhere" / "c.png"), *SMALL]) == 2
    output, errors = capsys.readouterr()
    assert output == "" and errors.count("\n") == 1 and "does not exist" in errors


@pytest.mark.parametrize(
    "options", [["--vocab", "1"], ["--vocab", "ten"], ["--batch", "0"], ["--seconds", "-1"], ["--seconds", "nan"]]
)
def test_bad_numbers_are_refused(options: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        demo.main(options)
    assert stopped.value.code == 2
    assert f"'{options[1]}' is not a" in capsys.readouterr().err


def test_interrupting_ends_with_a_sentence(corpus, tmp_path, capsys, monkeypatch) -> None:
    def interrupted(*args: object) -> None:
        signal.raise_signal(signal.SIGINT)  # as Ctrl-C does, in the middle of a step

    monkeypatch.setattr(demo, "fastloss_loss", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        assert demo.main(["--corpus", str(corpus), "--plot", str(tmp_path / "c.png"), *SMALL]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err.endswith("\nfastloss demo: interrupted, stopped without a result.\n")


def test_a_variant_that_fails_leaves_the_others(corpus: Path, monkeypatch) -> None:
    monkeypatch.setattr(demo, "VARIANTS", ("NumPy", "fastloss", "unheard-of"))
    table = demo.compare(demo.load_corpus(corpus, 60, 0), batch=8, seed=0, threads=1, steps=2)
    assert "unheard-of  failed: KeyError: 'unheard-of'" in table
    assert re.search(r"^NumPy .* ms .* ms ", table, re.MULTILINE)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the high-water mark can't be reset")
def test_peak_memory_is_that_of_the_loss() -> None:
    """The NumPy loss holds the logits, the shifted logits and the gradient; in place, fastloss holds the logits."""
    batch, vocab = 1024, 3000
    buffer = io.BytesIO()
    rng = np.random.default_rng(0)
    np.savez(
        buffer, contexts=rng.integers(0, vocab, (2, batch, demo.CONTEXT)), targets=rng.integers(0, vocab, (2, batch))
    )
    used = {}
    for variant in ["NumPy"] + ["fastloss"] * ("cython" in fl.engines()):
        settings = {"variant": variant, "vocab": vocab, "seed": 0, "threads": 1}
        run = demo.measure_variant(settings, buffer.getvalue())
        assert isinstance(run, demo.Run), run
        if run.memory is None:
            pytest.skip("this system tells no peak memory")
        used[variant] = run.memory / (4 * batch * vocab)
    assert 3 <= used["NumPy"] < 4
    assert 1 <= used.get("fastloss", 1) < 2


def test_tokens_keep_their_case_and_rare_ones_are_unknown(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "text", files=1)
    (folder / "file0.txt").write_bytes(b"Name name_1 == 0x1f\xff\n" * 50 + b"rare")
    assert demo.WORD.findall("Name name_1 == 0x1f\n") == ["Name", "name_1", "=", "=", "0", "x1f", "\n"]
    read = demo.load_corpus(folder, 6, 0)
    assert read.vocabulary[:2] == ["<unk>", "="] and len(read.vocabulary) == 6
    assert read.held_out[-1] == 0  # the rare one
    assert set(read.train) == set(range(6))
    assert "rare" not in demo.load_corpus(folder, 100, 0).vocabulary  # which comes from the training text alone


def test_the_standard_library_is_read_without_tests_and_installed_packages() -> None:
    paths = demo.find_files(None)
    assert any(path.name == "argparse.py" for path in paths)
    assert not any({"test", "tests", "site-packages"} & set(path.parts[-3:-1]) for path in paths)


def test_windows_are_the_words_before_each_position() -> None:
    context, target = demo.windows(np.arange(100, 120), np.array([4, 19]))
    assert context.tolist() == [[100, 101, 102, 103], [115, 116, 117, 118]]
    assert target.tolist() == [104, 119]


def test_update_moves_against_the_numeric_gradient(monkeypatch) -> None:
    """With plain steps instead of Adagrad's, `update` subtracts the gradient of the mean loss."""
    rng = np.random.default_rng(0)
    model = demo.LanguageModel.create(12, 0)
    model.output[:] = rng.standard_normal(model.output.shape)
    context, target = rng.integers(0, 12, (7, demo.CONTEXT)), rng.integers(0, 12, 7)
    context[0] = context[1] = 3  # a word that comes more than once must gather all its gradients
    logits = np.empty((7, 12), np.float32)
    weights = model.embedding, model.hidden, model.output
    originals = [weight.copy() for weight in weights]

    def loss() -> float:
        model.forward(context, logits)
        return demo.numpy_loss(logits.astype(np.float64), target)[0]

    directions = [rng.standard_normal(weight.shape).astype(np.float32) for weight in weights]
    slopes = []
    for weight, original, direction in zip(weights, originals, directions, strict=True):
        step = 1e-3
        weight[:] = original + step * direction
        above = loss()
        weight[:] = original - step * direction
        slopes.append((above - loss()) / (2 * step))
        weight[:] = original

    monkeypatch.setattr(demo, "adagrad", lambda weight, squares, grad: np.subtract(weight, grad, out=weight))
    features, activation = model.forward(context, logits)
    model.update(context, features, activation, demo.numpy_loss(logits, target)[1])
    for weight, original, direction, slope in zip(weights, originals, directions, slopes, strict=True):
        assert float(((original - weight) * direction).sum()) == pytest.approx(slope, rel=5e-3, abs=2e-3)


def test_the_losses_agree() -> None:
    rng = np.random.default_rng(0)
    logits, target = rng.standard_normal((6, 9), dtype=np.float32), rng.integers(0, 9, 6)
    expected, expected_grad = demo.numpy_loss(logits.astype(np.float64), target)
    for name in demo.VARIANTS[: 2 + HAS_TORCH]:
        loss, grad = demo.LOSSES[name](logits.copy(), target)
        assert loss == pytest.approx(expected, rel=1e-6), name
        np.testing.assert_allclose(grad, expected_grad, rtol=1e-5, atol=1e-8, err_msg=name)


def test_the_drawing_shows_the_ends_of_the_scale() -> None:
    lines = demo.draw_curve([3.0, 2.0, 1.0], (4.0, 0.5)).splitlines()
    assert lines[0] == "    4.00 |o" and lines[13] == "    0.50 |    o"
    assert "nan" not in demo.draw_curve([1.0], (1.0, 1.0))  # a flat curve has no scale


def test_numbers_are_written_for_people() -> None:
    assert [demo.perplexity(math.log(value)) for value in (20012.3, 50.04)] == ["20,012", "50.0"]
    assert [demo.milliseconds(value) for value in (1.2345, 0.01234, 0.00123)] == ["1,234 ms", "12.3 ms", "1.23 ms"]
    assert [demo.megabytes(value) for value in (81_920_000, 2_048_000)] == ["82 MB", "2.0 MB"]
    assert [demo.plural(count, "step") for count in (1, 1000)] == ["1 step", "1,000 steps"]
