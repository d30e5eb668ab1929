"""The picture of a report: bars against peers, and how the time scales with the row's length and with threads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastloss.bench.calls import PEERS
from fastloss.bench.processes import Result
from fastloss.bench.report import Report, median, speedup

COLORS = dict(zip(PEERS, ("tab:gray", "tab:orange", "tab:red", "tab:green", "tab:blue"), strict=True))


def obstacle(path: Path) -> str | None:
    """Why no picture can be written there, or None."""
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError:
        return "it needs matplotlib: pip install matplotlib"
    endings = FigureCanvasBase.get_supported_filetypes()
    if path.suffix.lstrip(".").lower() not in endings:
        return f"a picture's name ends in one of {', '.join('.' + ending for ending in sorted(endings))}"
    return None


def draw(path: Path, report: Report) -> None:
    """A row of three diagrams for each loss."""
    from matplotlib.figure import Figure  # without pyplot: no display is looked for

    losses = list(dict.fromkeys(result["loss"] for result in report["results"]))
    figure = Figure(figsize=(17, 4.2 * len(losses)), layout="constrained")
    figure.suptitle(f"fastloss {report['fastloss']}, loss and gradient; {report['machine']}; {report['date']}")
    for row, loss in zip(figure.subplots(len(losses), 3, squeeze=False), losses, strict=True):
        results = [result for result in report["results"] if result["loss"] == loss]
        bars(row[0], results)
        over_lengths(row[1], results)
        over_threads(row[2], results)
    figure.savefig(path, dpi=110)


def bars(axes: Any, results: list[Result]) -> None:
    """How many times longer each peer takes, on the most threads."""
    most = max(result["threads"] for result in results)
    results = [result for result in results if result["threads"] == most]
    found = [peer for peer in PEERS if any(peer in result["seconds"] for result in results)]
    width = 0.8 / max(1, len(found))
    for number, peer in enumerate(found):
        values = [speedup(result, peer) or 0 for result in results]
        positions = [place + width * (number - (len(found) - 1) / 2) for place in range(len(results))]
        drawn = axes.bar(positions, values, width, label=peer, color=COLORS[peer])
        axes.bar_label(drawn, [f"{value:.3g}" if value else "" for value in values], fontsize=7)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks(range(len(results)), [result["shape"] for result in results], rotation=25, ha="right", fontsize=8)
    axes.set(yscale="log", ylabel="times fastloss's time", title=f"{title(results[0])}: others, {threads(most)}")
    axes.margins(y=0.15)
    if found:
        axes.legend(fontsize=8)


def over_lengths(axes: Any, results: list[Result]) -> None:
    """Time per element, and the copy's, over the length of a row."""
    matrices = [result for result in results if result["shape"].count("x") == 1]
    for number in sorted({result["threads"] for result in matrices}):
        chosen = sorted((r for r in matrices if r["threads"] == number), key=lambda r: lengths(r)[1])
        classes = [lengths(result)[1] for result in chosen]
        for call, style in (("fastloss", "o-"), ("copy", "o:")):
            values = [1e9 * median(r, call) / (lengths(r)[0] * lengths(r)[1]) for r in chosen]
            axes.plot(classes, values, style, label=f"{call}, {threads(number)}", color=f"C{number.bit_length()}")
    axes.set(xscale="log", yscale="log", xlabel="classes", ylabel="ns an element", title="by the length of a row")
    axes.grid(alpha=0.3)
    if matrices:
        axes.legend(fontsize=8)


def over_threads(axes: Any, results: list[Result]) -> None:
    """Speed by the number of threads, that of the fewest being 1."""
    numbers = sorted({result["threads"] for result in results})
    for shape in dict.fromkeys(result["shape"] for result in results):
        times = {result["threads"]: median(result, "fastloss") for result in results if result["shape"] == shape}
        axes.plot(numbers, [times[numbers[0]] / times[number] for number in numbers], "o-", label=shape)
    axes.plot(numbers, [number / numbers[0] for number in numbers], color="black", linewidth=0.8, label="ideal")
    axes.set(xlabel="threads", ylabel=f"speed, that of {threads(numbers[0])} being 1", title="by threads")
    axes.set_xticks(numbers)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)


def title(result: Result) -> str:
    return ", ".join(part for part in (result["loss"], result["dtype"], result["engine"]) if part)


def threads(number: int) -> str:
    return f"{number} thread" + ("s" if number > 1 else "")


def lengths(result: Result) -> tuple[int, ...]:
    return tuple(int(part) for part in result["shape"].split("x"))
