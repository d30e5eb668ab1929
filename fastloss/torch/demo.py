"""`python -m fastloss demo --torch`: train a small GPT with torch's loss and, after `install`, with fastloss's."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

import fastloss as fl
from fastloss import demo as words
from fastloss.torch import install, report

WIDTH, LAYERS, HEADS = 256, 4, 4
LENGTH = 256  # tokens of a sequence, if a step has as many
LEARNING_RATE = 5e-4
WARM_UP = 2  # steps that are not timed
COMPARED_STEPS = 10
VARIANTS = {"torch": "torch", "fastloss": "fastloss, installed"}


class GPT(nn.Module):
    """Causal transformer; its loss is torch's module."""

    def __init__(self, vocabulary: int, length: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, WIDTH), nn.Embedding(length, WIDTH)
        layer = partial(nn.TransformerEncoderLayer, WIDTH, HEADS, 4 * WIDTH, dropout=0.0, activation="gelu")
        self.layers = nn.ModuleList(layer(batch_first=True, norm_first=True) for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, vocabulary, bias=False)
        nn.init.normal_(self.head.weight, std=0.02)
        self.loss = nn.CrossEntropyLoss()

    def forward(self, tokens: Any, target: Any) -> Any:
        length = tokens.shape[1]
        x = self.tokens(tokens) + self.places(torch.arange(length))
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        for layer in self.layers:
            x = layer(x, src_mask=mask, is_causal=True)
        return self.loss(self.head(self.norm(x)).flatten(0, 1), target.flatten())


def train(tokens: Any, vocabulary: int, seed: int, steps: int | None, seconds: float, name: str) -> dict[str, Any]:
    """Steps on random windows of the tokens, which are the same for the same seed: losses and seconds of each."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    sequences, length = tokens["sequences"], tokens["length"]
    model = GPT(vocabulary, length)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    text = torch.from_numpy(tokens["train"].astype(np.int64))
    losses: list[float] = []
    times: list[float] = []
    started = time.perf_counter()
    with tqdm(total=steps, desc=name, unit="step", file=sys.stderr) as bar:
        while len(losses) < steps if steps else time.perf_counter() - started < seconds or len(losses) <= WARM_UP:
            starts = torch.from_numpy(rng.integers(0, len(text) - length, sequences))
            windows = text[starts[:, None] + torch.arange(length + 1)]
            start = time.perf_counter()
            optimizer.zero_grad()
            loss = model(windows[:, :-1], windows[:, 1:])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            times.append(time.perf_counter() - start)
            bar.set_postfix_str(f"loss {losses[-1]:.3f}", refresh=False)
            bar.update()
    return {"losses": losses, "seconds": times[WARM_UP:] or times}


def measure() -> None:
    """The process of one variant: settings in argv, tokens on stdin, what it measured on stdout, as JSON."""
    settings = json.loads(sys.argv[1])
    archive = np.load(io.BytesIO(sys.stdin.buffer.read()))
    tokens = {"train": archive["train"], "length": settings["length"], "sequences": settings["sequences"]}
    torch.set_num_threads(settings["threads"])
    if settings["variant"] == "fastloss":
        install()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the high-water mark starts again from here
    before = words.peak_memory()
    result = train(
        tokens, settings["vocabulary"], settings["seed"], settings["steps"], settings["seconds"], settings["variant"]
    )
    after = words.peak_memory()
    result["memory"] = None if before is None or after is None else after - before
    result["calls"] = [[*key, number] for key, number in report().calls.items()]
    print(json.dumps(result))


def run_variant(settings: dict[str, Any], tokens: bytes) -> dict[str, Any]:
    """What `measure` printed in a process of its own; its progress bar is seen."""
    command = [sys.executable, "-c", "from fastloss.torch.demo import measure; measure()", json.dumps(settings)]
    environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(settings["threads"]))
    done = subprocess.run(command, input=tokens, stdout=subprocess.PIPE, env=environment)
    if done.returncode:
        raise words.DemoError(f"training with {settings['variant']} failed, see above")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def table(results: dict[str, dict[str, Any]], logits: int) -> str:
    """Time and memory of a step with each loss, and how far their losses are apart."""
    ours, theirs = results["fastloss"], results["torch"]
    lines = [f"{'':24}{'whole step':>12}{'peak memory*':>16}"]
    for name, result in results.items():
        step = words.milliseconds(statistics.median(result["seconds"]))
        memory = "-" if result["memory"] is None else words.megabytes(result["memory"])
        lines.append(f"{VARIANTS[name]:24}{step:>12}{memory:>16}")
    ratio = statistics.median(theirs["seconds"]) / statistics.median(ours["seconds"])
    apart = [abs(a - b) / abs(b) for a, b in zip(ours["losses"], theirs["losses"], strict=True)]
    first = min(COMPARED_STEPS, len(apart))
    calls = ", ".join(f"{number:,} by {way}" for _, way, number in ours["calls"])
    lines += [
        "",
        f"With fastloss a step takes {1 / ratio:.0%} of its time with torch's loss. Calls of the loss: {calls}.",
        f"The losses differ by at most {max(apart[:first]):.1e} of their size in the first "
        f"{words.plural(first, 'step')}, {max(apart):.1e} in all {len(apart):,}: training amplifies rounding.",
        f"*  growth of resident memory, in a fresh process each; the logits are {words.megabytes(4 * logits)}",
    ]
    return "\n".join(lines)


def save_plot(path: Path, results: dict[str, dict[str, Any]]) -> str | None:
    """The loss curves over each other, and the times of the steps. Returns None, or why there is no picture."""
    try:
        from matplotlib.figure import Figure  # without pyplot: no display is looked for
    except ImportError:
        return "matplotlib is not installed"
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    curves, steps = figure.subplots(1, 2, width_ratios=(2, 1))
    for (name, result), width in zip(results.items(), (4, 1), strict=True):  # the thin one on the thick one
        curves.plot(range(1, len(result["losses"]) + 1), result["losses"], label=VARIANTS[name], linewidth=width)
    curves.set(xlabel="step", ylabel="cross-entropy, nats a token", title="GPT: the same curve")
    curves.legend()
    curves.grid(alpha=0.3)
    medians = [1e3 * statistics.median(result["seconds"]) for result in results.values()]
    bars = steps.bar([VARIANTS[name] for name in results], medians, color=["tab:blue", "tab:orange"])
    steps.bar_label(bars, fmt="%.0f ms")
    steps.set(ylabel="milliseconds", title="a training step")
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        return str(error)
    return None


def demo(options: argparse.Namespace) -> None:
    corpus = words.load_corpus(options.corpus, options.vocab, options.seed)
    vocabulary = len(corpus.vocabulary)
    length = min(LENGTH, options.batch)
    sequences = max(1, options.batch // length)
    if len(corpus.train) <= length + 1:
        raise words.DemoError(
            f"the corpus has {len(corpus.train)} tokens to train on, and --batch {options.batch} needs more"
        )
    threads = options.threads or fl.get_num_threads()
    print(
        f"Text: {len(corpus.train):,} tokens of {options.corpus or 'the standard library'}.\n"
        f"Model: GPT of {LAYERS} layers, width {WIDTH}, {vocabulary:,} words; {sequences} x {length} tokens a step, "
        f"{words.plural(threads, 'thread')}.",
        flush=True,
    )
    buffer = io.BytesIO()
    np.savez(buffer, train=corpus.train)
    settings = {
        "vocabulary": vocabulary, "length": length, "sequences": sequences, "seed": options.seed, "threads": threads,
        "steps": options.steps, "seconds": options.seconds / 2,
    }  # fmt: skip
    results: dict[str, dict[str, Any]] = {}
    for name in VARIANTS:
        results[name] = run_variant({**settings, "variant": name}, buffer.getvalue())
        settings["steps"] = len(results[name]["losses"])
    print("\n" + table(results, sequences * length * vocabulary) + "\n")
    obstacle = save_plot(options.plot, results)
    print(f"No picture of the loss curves: {obstacle}." if obstacle else f"Loss curves and step times: {options.plot}")
