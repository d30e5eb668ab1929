"""docs/performance.md and its picture: what the results of asv say, in short."""

from __future__ import annotations

import datetime
import itertools
import json
import subprocess
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = HERE / "results"
PAGE = ROOT / "docs" / "performance.md"
PICTURE = ROOT / "docs" / "performance.png"

PEERS = ("NumPy", "torch", "torch.compile", "JAX", "scikit-learn")
HISTORY = [("CrossEntropy", "4096 x 1000"), ("BinaryCrossEntropyWithLogits", "4096 x 1000")]  # over all commits

INTRODUCTION = """\
# Performance

From the results of the benchmark suite in `asv_bench/`, by `python asv_bench/publish.py`, which builds the whole site:
graphs of every benchmark over commits, shapes and options. Look at it with
`python -m http.server -d asv_bench/html`. Figures for your own machine come from `python -m fastloss bench`.

All times are of float32 on one thread, with the gradient in a buffer that is used again. Copies: that time over the
time of a copy of the input. The names of others: how many times longer they take; NumPy, for losses other than
`cross_entropy` and `binary_cross_entropy_with_logits`, is fastloss's reference engine, which computes in float64.
Errors are the largest against float64, in units in the last place (ULP) of the largest value.
"""


class Results:
    """What one commit's file holds."""

    def __init__(self, path: Path) -> None:
        self.content = json.loads(path.read_text())
        self.commit = self.content["commit_hash"]
        self.values: dict[str, dict[tuple[str, ...], Any]] = {}
        for name, (values, parameters, _) in self.content["results"].items():
            combinations = itertools.product(*([text.strip("'") for text in texts] for texts in parameters))
            self.values[name] = dict(zip(combinations, values or [], strict=False))

    def get(self, name: str, *parameters: str) -> float | None:
        return self.values.get(name, {}).get(parameters)

    @property
    def date(self) -> str:
        return str(datetime.datetime.fromtimestamp(self.content["date"] / 1000, datetime.timezone.utc).date())

    @property
    def subject(self) -> str:
        command = ["git", "-C", str(ROOT), "log", "-1", "--format=%s", self.commit]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def of_machine(machine: Path) -> list[Results]:
    """The results of each commit, oldest first."""
    return sorted((Results(path) for path in machine.glob("*-py*.json")), key=lambda results: results.content["date"])


def page() -> str:
    parts = [INTRODUCTION]
    for machine in sorted(path.parent for path in RESULTS.glob("*/machine.json")):
        facts = json.loads((machine / "machine.json").read_text())
        commits = of_machine(machine)
        parts.append(f"## {facts['cpu']}\n\n{facts['versions']}.\n")
        whole = [each for each in commits if any(name.startswith("losses.") for name in each.values)]
        parts.append(f"### Every loss, at {whole[-1].commit[:8]}\n\n{latest(whole[-1])}\n")
        parts.append(f"### Over commits\n\nLoss and gradient.\n\n{history(commits)}\n")
        parts.append(f"![Loss and gradient over commits]({PICTURE.name})\n")
    return "\n".join(parts)


def latest(results: Results) -> str:
    rows = []
    for name in sorted(results.values):
        group, loss, function = name.split(".")
        if group == "losses" and function == "time_loss_and_gradient":
            shapes = [shape for shape, threads in results.values[name] if threads == "1"]
            shape = next((s for s in ("4096 x 1000", *shapes) if results.get(name, s, "1") is not None), None)
            if shape:
                rows.append(loss_row(results, loss, shape))
    title = ["loss", "input", "loss alone", "with gradient", "copies", *PEERS, "call on 2 numbers", "peak memory"]
    return table([*title, "errors, loss / gradient"], rows)


def loss_row(results: Results, loss: str, shape: str) -> list[str]:
    name = snake(loss)
    speedups = [results.get(f"peers.{loss}.track_speedup", peer, shape) for peer in PEERS]
    errors = [results.get(f"exactness.Exactness.track_{part}", name) for part in ("loss", "gradient")]
    memory = results.get("memory.PeakMemory.peakmem_loss_and_gradient", name)
    return [
        f"`{name}`",
        shape,
        time(results.get(f"losses.{loss}.time_loss", shape, "1")),
        time(results.get(f"losses.{loss}.time_loss_and_gradient", shape, "1")),
        number(results.get(f"limit.{loss}.track_copies", shape, "1")),
        *(number(speedup, "×") for speedup in speedups),
        time(results.get("start.Call.time_call", name)),
        "" if memory is None else f"{memory / 1e6:.0f} MB",
        "" if None in errors else " / ".join(f"{error:.1f}" for error in errors),
    ]


def history(commits: list[Results]) -> str:
    title = ["commit", "date", "change", "`cross_entropy`, 64 x 10"]
    title += [f"`{snake(loss)}`, {shape}{unit}" for loss, shape in HISTORY for unit in ("", ", copies")]
    rows = []
    for results in commits:
        row = [results.commit[:8], results.date, results.subject.replace("|", "/")]
        row.append(time(results.get("losses.CrossEntropy.time_loss_and_gradient", "64 x 10", "1")))
        for loss, shape in HISTORY:
            row.append(time(results.get(f"losses.{loss}.time_loss_and_gradient", shape, "1")))
            row.append(number(results.get(f"limit.{loss}.track_copies", shape, "1")))
        rows.append(row)
    return table(title, rows)


def draw() -> None:
    """The picture: copies over commits, a line for each shape and machine."""
    from matplotlib.figure import Figure  # without pyplot: no display is looked for

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for machine in sorted(path.parent for path in RESULTS.glob("*/machine.json")):
        commits = of_machine(machine)
        for loss, shape in HISTORY:
            points = [(c.commit[:8], c.get(f"limit.{loss}.track_copies", shape, "1")) for c in commits]
            axes.plot(*zip(*points, strict=True), "o-", label=f"{snake(loss)}, {shape}, {machine.name}")
    axes.axhline(1, color="black", linewidth=0.8, label="a copy of the input")
    axes.set(ylabel="copies of the input", ylim=(0, None), title="Loss and gradient, one thread")
    axes.tick_params(axis="x", rotation=30)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(PICTURE, dpi=110, metadata={"Software": None})


def write() -> None:
    PAGE.write_text(page())
    draw()


def table(title: list[str], rows: list[list[str]]) -> str:
    used = [any(row[column] for row in rows) for column in range(len(title))]
    lines = [title, ["---"] * len(title), *rows]
    return "\n".join("| " + " | ".join(itertools.compress(line, used)) + " |" for line in lines)


def snake(name: str) -> str:
    """cross_entropy for CrossEntropy."""
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).strip("_")


def time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-4 else f"{seconds * 1e6:.1f} µs"


def number(value: float | None, unit: str = "") -> str:
    return "" if value is None else f"{value:.3g}{unit}"
