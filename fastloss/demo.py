"""`python -m fastloss demo`: train a word-level language model with NumPy and fastloss.

The text is the source of the running Python's own standard library, which every machine has. The model predicts a
word from the few words before it through a softmax over the whole vocabulary, so each step makes a matrix of logits,
batch x vocabulary, of tens of megabytes. What happens to that matrix is the subject: fastloss turns it into its
gradient in place, and the same steps are then timed with the loss written in plain NumPy, and with torch where it is
installed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import math
import os
import random
import re
import statistics
import subprocess
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import fastloss as fl

CONTEXT = 4  # words that the model sees
EMBEDDING = 64
HIDDEN = 64
LEARNING_RATE = 0.05
MAX_CHARACTERS = 5_000_000  # of text: enough for minutes of training, read and cut into words in about two seconds
MIN_TOKENS = 100
HELD_OUT_BATCHES = 16
COMPARED_STEPS = 10
VARIANTS = ("fastloss", "NumPy", "torch")

WORD = re.compile(r"[^\W\d]\w*|\d+|[^\w\s]|\n")
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}

LossFunction = Callable[[np.ndarray, np.ndarray], tuple[float, np.ndarray]]


class DemoError(Exception):
    """What the user has to change, in one sentence."""


# ---- text -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Corpus:
    """Text as word numbers. Number 0 is <unk>, every word too rare for the vocabulary."""

    train: np.ndarray
    held_out: np.ndarray
    vocabulary: list[str]
    files: int


def find_files(folder: Path | None) -> list[Path]:
    """The files to read, sorted: Python's own library without its tests, or all that is not hidden in `folder`."""
    root = folder or Path(sysconfig.get_path("stdlib"))
    if not root.is_dir():
        raise DemoError(f"the corpus {str(root)!r} {'is not a folder' if root.exists() else 'does not exist'}")
    found = []
    for parent, folders, names in os.walk(root):
        skipped = SKIPPED_FOLDERS if folder is None else {"__pycache__"}
        folders[:] = [name for name in folders if name not in skipped and not name.startswith(".")]
        wanted = [name for name in names if not name.startswith(".") and (folder or name.endswith(".py"))]
        found += [Path(parent, name) for name in wanted]
    return sorted(path for path in found if path.is_file())  # a pipe among them would be waited on for ever


def read_text(paths: list[Path], seed: int) -> tuple[str, int]:
    """The text of the files in an order drawn by `seed`, up to MAX_CHARACTERS, and how many files it came from."""
    texts, length = [], 0
    for path in random.Random(seed).sample(paths, len(paths)):
        try:
            with open(path, "rb") as file:
                raw = file.read(MAX_CHARACTERS - length)
        except OSError:
            continue  # a dangling link, or not ours to read: the rest will do
        if b"\0" in raw:
            continue  # not text
        texts.append(raw.decode("utf-8", errors="ignore"))
        length += len(texts[-1])
        if length >= MAX_CHARACTERS:
            break
    return "\n".join(texts), len(texts)


def load_corpus(folder: Path | None, vocab: int, seed: int) -> Corpus:
    """Read, cut into tokens, number them. The last tenth is held out: files unseen in training, but for one cut."""
    text, files = read_text(find_files(folder), seed)
    words = WORD.findall(text)
    if len(words) < MIN_TOKENS:
        where = f"the corpus {str(folder)!r}" if folder else "this Python's standard library (try --corpus DIR)"
        raise DemoError(f"{where} holds {len(words)} tokens of text, and at least {MIN_TOKENS} are needed")
    cut = len(words) - len(words) // 10
    counts = Counter(words[:cut])  # of the training text alone: the held-out words must be able to be unknown
    vocabulary = ["<unk>"] + [word for word, _ in counts.most_common(vocab - 1)]
    number = {word: i for i, word in enumerate(vocabulary)}
    tokens = np.fromiter((number.get(word, 0) for word in words), np.int32, len(words))
    return Corpus(tokens[:cut], tokens[cut:], vocabulary, files)


def windows(tokens: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(context, target) for the words at `positions`: the CONTEXT words before each, and the word itself."""
    return tokens[positions[:, None] - np.arange(CONTEXT, 0, -1)], tokens[positions]


def random_batches(tokens: np.ndarray, batch: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    while True:
        yield windows(tokens, rng.integers(CONTEXT, len(tokens), batch))


# ---- model ----------------------------------------------------------------------------------------------------------


def adagrad(weight: np.ndarray, squares: np.ndarray, grad: np.ndarray) -> None:
    """One Adagrad step in place: each weight's step is its gradient over the root of its summed squares so far."""
    squares += grad * grad
    grad /= np.sqrt(squares)
    grad *= LEARNING_RATE
    weight -= grad


@dataclass
class LanguageModel:
    """The embeddings of CONTEXT words side by side -> tanh layer -> one logit for each word of the vocabulary.

    The last row of `output` is the bias: its hidden unit is always 1, which spares two passes over the logits.
    """

    embedding: np.ndarray  # vocabulary x EMBEDDING
    hidden: np.ndarray  # CONTEXT * EMBEDDING x HIDDEN
    output: np.ndarray  # HIDDEN + 1 x vocabulary
    squares: tuple[np.ndarray, np.ndarray, np.ndarray]  # Adagrad's memory, one array for each of the above

    @classmethod
    def create(cls, vocab: int, seed: int) -> LanguageModel:
        rng = np.random.default_rng(seed)
        shapes = (vocab, EMBEDDING), (CONTEXT * EMBEDDING, HIDDEN), (HIDDEN + 1, vocab)
        embedding, hidden, output = (rng.standard_normal(shape, dtype=np.float32) for shape in shapes)
        hidden /= math.sqrt(len(hidden))
        output *= 0.01  # nearly equal logits: the perplexity before training is the size of the vocabulary
        # Small enough to be nothing beside the first squared gradients, and no division by zero where there are none.
        squares = np.full_like(embedding, 1e-12), np.full_like(hidden, 1e-12), np.full_like(output, 1e-12)
        return cls(embedding, hidden, output, squares)

    def forward(self, context: np.ndarray, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Fill `logits`; return (features, activation), the inputs of the two layers, for `update`."""
        features = self.embedding[context].reshape(len(context), -1)
        activation = np.ones((len(context), HIDDEN + 1), np.float32)
        np.tanh(features @ self.hidden, out=activation[:, :HIDDEN])
        np.matmul(activation, self.output, out=logits)
        return features, activation

    def update(self, context: np.ndarray, features: np.ndarray, activation: np.ndarray, grad: np.ndarray) -> None:
        """Propagate the gradient of the logits back, and take an Adagrad step."""
        tanh = activation[:, :HIDDEN]
        hidden_grad = (grad @ self.output[:HIDDEN].T) * (1 - tanh * tanh)
        feature_grad = (hidden_grad @ self.hidden.T).reshape(-1, EMBEDDING)
        adagrad(self.output, self.squares[2], activation.T @ grad)
        adagrad(self.hidden, self.squares[1], features.T @ hidden_grad)

        # Only the embeddings of this batch's words move. Sorted by word, each word's rows are summed by one reduceat.
        order = np.argsort(context, axis=None, kind="stable")
        words, starts = np.unique(context.ravel()[order], return_index=True)
        squares, embedding = self.squares[0][words], self.embedding[words]
        adagrad(embedding, squares, np.add.reduceat(feature_grad[order], starts))
        self.squares[0][words], self.embedding[words] = squares, embedding


# ---- losses: (logits, target) -> (mean loss, gradient), free to overwrite the logits --------------------------------


def fastloss_loss(logits: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray]:
    loss, grad = fl.cross_entropy(logits, target, axis=-1, out_grad=logits)
    return loss, grad


def numpy_loss(logits: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray]:
    """What one writes without a library."""
    rows = np.arange(len(target))
    grad = np.exp(logits - logits.max(axis=1, keepdims=True))
    grad /= grad.sum(axis=1, keepdims=True)
    loss = -np.log(grad[rows, target]).mean()
    grad[rows, target] -= 1
    grad /= len(target)
    return float(loss), grad


def torch_loss(logits: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray]:
    import torch

    leaf = torch.from_numpy(logits).requires_grad_()
    loss = torch.nn.functional.cross_entropy(leaf, torch.from_numpy(target).long())
    loss.backward()
    return loss.item(), leaf.grad.numpy()


LOSSES: dict[str, LossFunction] = dict(zip(VARIANTS, (fastloss_loss, numpy_loss, torch_loss), strict=True))


# ---- training -------------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """What a training run gave: lists with one number a step, and what `measure` adds."""

    losses: list[float] = field(default_factory=list)
    loss_seconds: list[float] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    memory: int | None = None  # bytes that the process grew by


def run_steps(
    model: LanguageModel,
    batches: Iterator[tuple[np.ndarray, np.ndarray]],
    loss_function: LossFunction,
    report: Callable[[Run], bool] = lambda run: False,
) -> Run:
    """Train on `batches` until they end or `report`, called after each step, returns True."""
    run = Run()
    logits = None
    for context, target in batches:
        start = time.perf_counter()
        if logits is None:  # allocated once: fresh pages cost more than the arithmetic on them
            logits = np.empty((len(target), len(model.embedding)), np.float32)
        features, activation = model.forward(context, logits)
        before = time.perf_counter()
        loss, grad = loss_function(logits, target)
        after = time.perf_counter()
        model.update(context, features, activation, grad)
        run.losses.append(loss)
        run.loss_seconds.append(after - before)
        run.step_seconds.append(time.perf_counter() - start)
        del grad  # or it would live on into the next step's loss, beside the next gradient
        if report(run):
            break
    return run


def held_out_loss(model: LanguageModel, tokens: np.ndarray, batch: int) -> float:
    """Mean loss over held-out words spread evenly over the text. Its exponential is the perplexity."""
    count = min(len(tokens) - CONTEXT, HELD_OUT_BATCHES * batch)
    positions = np.linspace(CONTEXT, len(tokens) - 1, count).astype(np.int64)
    logits = np.empty((min(batch, count), len(model.embedding)), np.float32)
    total = 0.0
    for first in range(0, count, batch):
        context, target = windows(tokens, positions[first : first + batch])
        model.forward(context, logits[: len(target)])
        total += fl.cross_entropy(logits[: len(target)], target, axis=-1, reduction="sum")
    return total / count


class Progress:
    """A bar on stderr: tqdm's where it is installed, else a line that is rewritten."""

    def __init__(self) -> None:
        try:
            from tqdm import tqdm
        except ImportError:
            self.bar, self.shown = None, 0.0
            return
        layout = "training {percentage:3.0f}%|{bar}| {desc}"
        seldom = 0.2 if sys.stderr.isatty() else 5  # a log file gets a line every few seconds
        self.bar = tqdm(total=1.0, mininterval=seldom, bar_format=layout)

    def show(self, fraction: float, text: str) -> None:
        if self.bar is not None:
            self.bar.set_description_str(text, refresh=False)
            self.bar.update(min(fraction, 1.0) - self.bar.n)
        elif fraction >= 1 or (sys.stderr.isatty() and time.perf_counter() - self.shown > 0.2):
            self.shown = time.perf_counter()
            print(f"\rtraining {min(fraction, 1.0):4.0%}  {text} ", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        else:
            print(file=sys.stderr)


def train(model: LanguageModel, corpus: Corpus, batch: int, seed: int, seconds: float, steps: int | None) -> Run:
    """Train with fastloss for `seconds`, or for `steps` where that is given, with a progress bar."""
    progress = Progress()
    start = time.perf_counter()

    def report(run: Run) -> bool:
        done, elapsed = len(run.losses), time.perf_counter() - start
        fraction = done / steps if steps else elapsed / seconds
        recent = statistics.fmean(run.losses[-20:])
        rate = batch * done / elapsed
        progress.show(fraction, f"step {done:,}, loss {recent:.3f}, {rate:,.0f} tokens/s")
        return fraction >= 1

    try:
        return run_steps(model, random_batches(corpus.train, batch, seed), fastloss_loss, report)
    finally:
        progress.close()


# ---- comparison -----------------------------------------------------------------------------------------------------


def peak_memory() -> int | None:
    """The most resident memory that this process has had, in bytes; None where the system does not tell."""
    with contextlib.suppress(OSError, StopIteration), open("/proc/self/status") as status:
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
    with contextlib.suppress(ImportError):  # no such module on Windows
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return None


def measure() -> None:
    """The fresh process of one variant: settings in argv, batches on stdin, what it measured on stdout, as JSON."""
    settings = json.loads(sys.argv[1])
    archive = np.load(io.BytesIO(sys.stdin.buffer.read()))
    contexts, targets = archive["contexts"], archive["targets"]
    loss_function = LOSSES[settings["variant"]]
    if settings["variant"] == "torch":
        import torch

        torch.set_num_threads(settings["threads"])
    with thread_limit(settings["threads"]):
        # A miniature first: lazy initialisation, of BLAS or of torch's autograd, is neither timed nor counted.
        run_steps(LanguageModel.create(64, 0), iter([(contexts[0] % 64, targets[0] % 64)] * 2), loss_function)
        model = LanguageModel.create(settings["vocab"], settings["seed"])
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # Linux: the high-water mark starts again from here
        before = peak_memory()
        run = run_steps(model, zip(contexts, targets, strict=True), loss_function)
        after = peak_memory()
    if before is not None and after is not None and after - before >= 4 * targets[0].size * settings["vocab"]:
        run.memory = after - before  # less than the logits alone: the mark had been higher, and this measured nothing
    print(json.dumps(vars(run)))


def measure_variant(settings: dict[str, int | str], batches: bytes) -> Run | str:
    """What `measure` printed in a process of its own, or the last line of its complaint."""
    names = "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"
    command = [sys.executable, "-c", "from fastloss.demo import measure; measure()", json.dumps(settings)]
    environment = os.environ | dict.fromkeys(names, str(settings["threads"]))
    done = subprocess.run(command, input=batches, capture_output=True, env=environment)
    if done.returncode:
        complaint = done.stderr.decode(errors="replace").strip() or f"exit status {done.returncode}"
        return complaint.splitlines()[-1]
    return Run(**json.loads(done.stdout))


def compare(corpus: Corpus, batch: int, seed: int, threads: int, steps: int) -> str:
    """The same steps with each loss, each in a process of its own so that peak memory is its own: a table."""
    drawn = random_batches(corpus.train, batch, seed)
    contexts, targets = zip(*(next(drawn) for _ in range(steps)), strict=True)
    buffer = io.BytesIO()
    np.savez(buffer, contexts=np.stack(contexts), targets=np.stack(targets))

    vocab = len(corpus.vocabulary)
    settings: dict[str, int | str] = {"vocab": vocab, "seed": seed, "threads": threads}
    installed = [name for name in VARIANTS if name != "torch" or importlib.util.find_spec("torch")]
    results = {name: measure_variant(settings | {"variant": name}, buffer.getvalue()) for name in installed}
    lines = [
        f"The same {plural(steps, 'step')} with each loss: same weights, same batches, {plural(threads, 'thread')}, "
        "medians.",
        "",
        f"{'':10}{'loss':>12}{'whole step':>14}{'peak memory*':>16}{'difference of the losses**':>30}",
    ]
    lines += [table_row(name, result, results["fastloss"]) for name, result in results.items()]
    lines += [
        "",
        f"*  growth of resident memory during the steps, in a fresh process each; the logits are {batch:,} x {vocab:,} "
        f"float32, {megabytes(4 * batch * vocab)}",
        f"** from fastloss, the largest in {plural(steps, 'step')}",
    ]
    return "\n".join(lines)


def table_row(name: str, run: Run | str, baseline: Run | str) -> str:
    if isinstance(run, str):
        return f"{name:10}  failed: {run}"
    loss, step = milliseconds(statistics.median(run.loss_seconds)), milliseconds(statistics.median(run.step_seconds))
    memory = "-" if run.memory is None else megabytes(run.memory)
    difference = "-"
    if isinstance(baseline, Run) and run is not baseline:
        difference = f"{max(abs(a - b) for a, b in zip(run.losses, baseline.losses, strict=True)):.1e}"
    return f"{name:10}{loss:>12}{step:>14}{memory:>16}{difference:>30}"


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def milliseconds(seconds: float) -> str:
    ms = 1000 * seconds
    return f"{ms:,.{0 if ms >= 100 else 1 if ms >= 10 else 2 if ms >= 1 else 4}f} ms"


def megabytes(count: int) -> str:
    return f"{count / 1e6:,.{0 if count >= 1e7 else 1}f} MB"


# ---- the curve ------------------------------------------------------------------------------------------------------


def save_plot(path: Path, losses: list[float], held_out: tuple[float, float]) -> str | None:
    """Save the loss curve as a picture. Returns None, or why there is no picture."""
    try:
        from matplotlib.figure import Figure  # without pyplot: no display is looked for
    except ImportError:
        return "matplotlib is not installed"
    steps = np.arange(1, len(losses) + 1)
    width = max(1, len(losses) // 40)
    smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(steps, losses, color="tab:blue", alpha=0.3, linewidth=0.8, label="training, each step")
    axes.plot(steps[width - 1 :], smooth, color="tab:blue", label=f"training, mean of {plural(width, 'step')}")
    axes.plot([0, len(losses)], held_out, "o", color="tab:red", label="held out, before and after", clip_on=False)
    axes.set(xlabel="step", ylabel="cross-entropy, nats a token", title="fastloss demo", xlim=(0, len(losses)))
    axes.grid(alpha=0.3)
    axes.legend()
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:  # ValueError: the name's ending is no picture format
        return str(error)
    return None


def draw_curve(losses: list[float], held_out: tuple[float, float], width: int = 64, height: int = 14) -> str:
    """The loss curve in characters: * the mean training loss of some steps, o the held-out loss before and after."""
    width = min(width, len(losses))
    means = [part.mean() for part in np.array_split(losses, width)]
    low, high = min(*means, *held_out), max(*means, *held_out)
    scale = (height - 1) / ((high - low) or 1.0)
    grid = [[" "] * (width + 2) for _ in range(height)]
    points = [(column, value, "*") for column, value in enumerate(means, 1)]
    for column, value, mark in points + [(0, held_out[0], "o"), (width + 1, held_out[1], "o")]:
        grid[round((high - value) * scale)][column] = mark
    lines = [f"{high - row / scale:8.2f} |" + "".join(cells).rstrip() for row, cells in enumerate(grid)]
    last = f"{len(losses):,}"
    lines += [" " * 9 + "+" + "-" * (width + 2), " " * 10 + "0" + last.rjust(width + 1)]
    lines.append(" " * 10 + "step; * training loss, nats a token; o held out, before and after")
    return "\n".join(lines)


# ---- command line ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def thread_limit(threads: int) -> Iterator[None]:
    """fastloss, and BLAS where threadpoolctl is installed to tell it, use so many threads inside."""
    before = fl.get_num_threads()
    fl.set_num_threads(threads)
    try:
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        blas = contextlib.nullcontext()
    else:
        blas = threadpool_limits(threads, user_api="blas")
    try:
        with blas:
            yield
    finally:
        fl.set_num_threads(before)


def whole_number(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        return int(text)

    return parse


def positive_seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return value


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m fastloss demo",
        description="Train a word-level language model with NumPy and fastloss, then time the same steps "
        "with the loss in plain NumPy and in torch.",
    )
    add = parser.add_argument
    add("--seconds", type=positive_seconds, default=60.0, help="how long to train (default: 60)")
    add("--steps", type=whole_number(1), help="train for so many steps instead: the same losses at each run")
    add("--torch", action="store_true", help="train a small GPT in torch instead, without and with fastloss")
    add("--vocab", type=whole_number(2), help="words that the model knows (default: 20000; with --torch 30000)")
    add("--batch", type=whole_number(1), default=1024, help="tokens in a step (default: 1024)")
    add("--threads", type=whole_number(1), help="threads for the loss and for BLAS (default: what fastloss chooses)")
    add("--corpus", type=Path, metavar="DIR", help="folder of text files (default: Python's standard library)")
    add("--plot", type=Path, metavar="FILE", default=Path("fastloss-demo.png"), help="(default: %(default)s)")
    add("--seed", type=whole_number(0), default=0, help="of weights, batches, order of the files (default: 0)")
    options = parser.parse_args(argv)
    options.vocab = options.vocab or (30_000 if options.torch else 20_000)
    return options


def demo(options: argparse.Namespace) -> None:
    if not options.plot.absolute().parent.is_dir():  # said now, not when the training is over
        raise DemoError(f"the folder of --plot {str(options.plot)!r} does not exist")
    if options.torch:
        if importlib.util.find_spec("torch") is None:
            raise DemoError("--torch needs torch, which is not installed")
        from fastloss.torch.demo import demo as torch_demo

        torch_demo(options)
        return
    start = time.perf_counter()
    corpus = load_corpus(options.corpus, options.vocab, options.seed)
    vocab = len(corpus.vocabulary)
    print(
        f"Text: {len(corpus.train) + len(corpus.held_out):,} tokens of {options.corpus or 'the standard library'} "
        f"({plural(corpus.files, 'file')}, {time.perf_counter() - start:.1f} s), a tenth held out."
    )
    print(
        f"Model: {CONTEXT} words x {EMBEDDING} -> tanh {HIDDEN} -> softmax over {vocab:,} words; "
        f"{plural(options.batch, 'token')} a step.",
        flush=True,
    )
    threads = options.threads or fl.get_num_threads()
    with thread_limit(threads):
        model = LanguageModel.create(vocab, options.seed)
        before = held_out_loss(model, corpus.held_out, options.batch)
        run = train(model, corpus, options.batch, options.seed, options.seconds, options.steps)
        after = held_out_loss(model, corpus.held_out, options.batch)
    steps = len(run.losses)
    del model  # the comparison makes its own, in processes that want the memory
    print("\n" + compare(corpus, options.batch, options.seed, threads, min(steps, COMPARED_STEPS)) + "\n")

    obstacle = save_plot(options.plot, run.losses, (before, after))
    if obstacle:
        print(draw_curve(run.losses, (before, after)) + "\n")
    seconds = sum(run.step_seconds)
    print(f"Held-out perplexity: {perplexity(before)} before, {perplexity(after)} after {plural(steps, 'step')}.")
    print(
        f"Training: {seconds:.1f} s, {options.batch * steps / seconds:,.0f} tokens/s, "
        f"{sum(run.loss_seconds) / seconds:.0%} of the time in the loss."
    )
    print(f"No picture of the loss curve: {obstacle}." if obstacle else f"Loss curve: {options.plot}")


def perplexity(loss: float) -> str:
    value = math.exp(loss)
    return f"{value:,.{0 if value >= 100 else 1}f}"


def main(argv: list[str] | None = None) -> int:
    """Run the demo with the arguments `argv` (default: the command line's) and return the exit status."""
    options = parse_arguments(argv)
    try:
        demo(options)
    except DemoError as error:
        print(f"fastloss demo: {error}.", file=sys.stderr)
        return 2
    except MemoryError:
        print("fastloss demo: not enough memory; try a smaller --batch or --vocab.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nfastloss demo: interrupted, stopped without a result.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
