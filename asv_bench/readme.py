"""Measures the README's table of speed with `python -m fastloss bench`, and writes it.

python asv_bench/readme.py                    # about three minutes, on a machine that does nothing else
python asv_bench/readme.py --json FILE        # from what bench --json has written
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from fastloss.bench import cases
from fastloss.bench.report import Report, is_noisy, median, of_copy, speedup

README = Path(__file__).resolve().parent.parent / "README.md"
PEERS = {"NumPy": "NumPy", "torch": "torch eager", "JAX": "jitted JAX", "scikit-learn": "scikit-learn"}
NAMES = {"cross_entropy": "", "binary_cross_entropy_with_logits": "BCE, "}


def measure() -> Report:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "bench.json")
        options = ["--loss", *NAMES, "--threads", "1", "2", "--seconds", "180", "--json", str(path)]
        if subprocess.run([sys.executable, "-m", "fastloss", "bench", *options]).returncode != 0:
            sys.exit("bench failed: see above")
        return json.loads(path.read_text())


def markdown(report: Report) -> str:
    """A row for each loss and shape; each cell holds the figure of every number of threads."""
    threads = sorted({result["threads"] for result in report["results"]})
    lines = [
        f"On {report['machine']}; instruction set {report['isa']}; {report['versions']}; {report['date']}. "
        f"Each cell: {' / '.join(map(str, threads))} thread{'s' * (threads != [1])}.",
        "",
        "| logits | fastloss | copies of the logits | " + " | ".join(PEERS.values()) + " |",
        "|---" * (3 + len(PEERS)) + "|",
    ]
    for loss, shape in dict.fromkeys((result["loss"], result["shape"]) for result in report["results"]):
        results = [
            r for n in threads for r in report["results"] if (r["loss"], r["shape"], r["threads"]) == (loss, shape, n)
        ]
        cells = [" / ".join(time(median(result, "fastloss")) for result in results)]
        in_cache = math.prod(cases.parse_shape(shape)) < 2**16  # a copy within the cache is no limit
        cells.append("" if in_cache else " / ".join(f"{1 / of_copy(result):.2f}" for result in results))
        for peer in PEERS:
            speedups = [speedup(result, peer) for result in results]
            cells.append("" if None in speedups else " / ".join(f"{value:.3g}×" for value in speedups))
        lines.append(f"| {NAMES.get(loss, f'{loss}, ')}{shape} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def time(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-4 else f"{seconds * 1e6:.1f} µs"


def write(path: Path, table: str) -> None:
    """Puts the table between the markers."""
    pattern = r"(<!-- speed -->\n).*?(<!-- /speed -->)"
    new, count = re.subn(pattern, lambda match: f"{match[1]}{table}\n{match[2]}", path.read_text(), flags=re.S)
    if count != 1:
        sys.exit(f"{path} needs one pair of <!-- speed --> and <!-- /speed -->, each on a line of its own")
    path.write_text(new)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="take the figures from there")
    options = parser.parse_args()
    report = json.loads(options.json.read_text()) if options.json else measure()
    noisy = sum(map(is_noisy, report["results"]))
    if noisy:
        print(f"{noisy} of {len(report['results'])} lines are too noisy to trust: measure again", file=sys.stderr)
    write(README, markdown(report))


if __name__ == "__main__":
    main()
