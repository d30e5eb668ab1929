"""Measures revisions with asv, and builds the site of all results in one command.

    python asv_bench/publish.py                              # the site alone, from the results in the repository
    python asv_bench/publish.py --measure HEAD --quick       # under 5 minutes
    python asv_bench/publish.py --measure v0.1.0 HEAD        # the whole suite: about 35 minutes each

A revision is built in a temporary worktree and measured in the Python that runs this, by this checkout's benchmarks.
Its results go to asv_bench/results, the site to asv_bench/html/index.html, and a summary to docs/performance.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import summary
from summary import HERE, RESULTS, ROOT

sys.path.insert(0, str(ROOT))
from fastloss.bench import machine, revisions  # noqa: E402

HTML = HERE / "html"
VENDOR = HERE / "vendor"

# asv matches them with benchmarks and their parameters.
QUICK = (
    r"^(losses|limit)\..*\('(64 x 10|4096 x 1000|2 x 21 x 128 x 128)', 1\)",
    r"^options\..*\('(4096 x 1000|cross_entropy)', .*\b1\)",
    r"^peers\.(CrossEntropy|BinaryCrossEntropyWithLogits)\..*'4096 x 1000'",
    r"^peers\..*\('(NumPy|torch)', '(4096 x 1000|2 x 21 x 128 x 128)'\)",
    r"^(memory|exactness|start)\.",
)
KEPT = ("result", "params", "version")  # of what asv says of a benchmark, what the site needs


# ---- measuring


def measure(revision: str, builds: Path | None, patterns: Sequence[str]) -> bool:
    """Runs asv on a build of the revision, and adds the results to those in the repository.

    Whether all benchmarks could be run.
    """
    commit = revisions.commit(revision, ROOT)
    with tempfile.TemporaryDirectory(prefix="fastloss-") as temporary:
        folder = Path(temporary)
        print(f"building {revision}", flush=True)
        build = revisions.build(commit, ROOT, builds or folder)
        name = machine_name()
        write_json(folder / ".asv-machine.json", {name: machine_facts(name), "version": 1})
        write_json(folder / "asv.conf.json", {**settings(), "results_dir": str(folder / "results")})
        # asv keeps what it knows of machines at home.
        environment = {**os.environ, "HOME": str(folder), "ASV_PYTHONPATH": str(build), "JAX_PLATFORMS": "cpu"}
        command = ["--machine", name, "-E", "existing:same", "--set-commit-hash", commit, "--launch-method", "spawn"]
        for pattern in patterns:
            command += ["--bench", pattern]
        done = asv("run", folder / "asv.conf.json", *command, environment=environment)
        for path in (folder / "results" / name).glob(f"{commit[:8]}-*.json"):
            merge(path, RESULTS / name)
        if not (folder / "results" / "benchmarks.json").exists():
            sys.exit("asv found no benchmarks: see above")
        shutil.copy(folder / "results" / name / "machine.json", RESULTS / name)
        shutil.copy(folder / "results" / "benchmarks.json", RESULTS)
    return done


def merge(path: Path, folder: Path) -> None:
    """Adds a file of results to the one that the repository has for that commit and Python, as short as can be."""
    new = json.loads(path.read_text())
    columns = new["result_columns"]
    new["python"] = ".".join(map(str, sys.version_info[:2]))
    new["params"]["python"] = new["python"]  # instead of where it lies on this machine
    new["env_name"] = f"py{new['python']}"
    new["result_columns"] = list(KEPT)
    new["results"] = {
        name: [rounded(dict(zip(columns, values, strict=False)).get(column)) for column in KEPT]
        for name, values in new["results"].items()
    }
    new["durations"] = {}
    target = folder / f"{new['commit_hash'][:8]}-{new['env_name']}.json"
    if target.exists():
        for name, values in json.loads(target.read_text())["results"].items():
            new["results"][name] = combined(values, new["results"].get(name, values))
    folder.mkdir(parents=True, exist_ok=True)
    write_json(target, new)


def combined(old: list[Any], new: list[Any]) -> list[Any]:
    """A benchmark's new results, and the old ones where a quick run has left parameters out."""
    if old[1:] != new[1:] or not isinstance(old[0], list) or not isinstance(new[0], list):
        return new
    return [[a if b is None else b for a, b in zip(old[0], new[0], strict=True)], *new[1:]]


def rounded(value: Any) -> Any:
    """Four digits: what a measurement has."""
    if isinstance(value, list):
        return [rounded(entry) for entry in value]
    if isinstance(value, float):
        return None if math.isnan(value) else float(f"{value:.4g}")
    return value


def machine_name() -> str:
    return re.sub(r"[^a-z0-9]+", "-", machine.machine().lower()).strip("-")


def machine_facts(name: str) -> dict[str, str]:
    return {"machine": name, "cpu": machine.machine(), "versions": machine.versions(), "version": 1}


# ---- the site


def publish(html: Path = HTML) -> None:
    """asv's site of what has results, made to work without the network and on a phone."""
    with tempfile.TemporaryDirectory(prefix="fastloss-") as temporary:
        results = Path(temporary, "results")
        shutil.copytree(RESULTS, results)
        for folder in results.iterdir():
            if folder.is_dir():
                keep_common(folder)
        write_json(
            results / "benchmarks.json", with_results(json.loads((RESULTS / "benchmarks.json").read_text()), results)
        )
        write_json(Path(temporary, "asv.conf.json"), {**settings(), "results_dir": str(results), "html_dir": str(html)})
        if not asv("publish", Path(temporary, "asv.conf.json"), "--no-pull"):
            sys.exit("asv publish failed: see above")
    for source in (VENDOR, HERE / "site.css", HERE / "site.js"):
        (shutil.copytree if source.is_dir() else shutil.copy)(source, html / source.name)
    page = html / "index.html"
    page.write_text(offline(page.read_text()))


def keep_common(machine: Path) -> None:
    """Leaves of each benchmark the parameters alone that every commit has results of, if there are any: asv's overview
    draws means over all parameters, which would jump where the whole suite follows quick runs."""
    files = {path: json.loads(path.read_text()) for path in machine.glob("*-py*.json")}
    common: dict[str, set[tuple[str, ...]]] = {}
    for content in files.values():
        for name, result in content["results"].items():
            if found := set(measured(result)):
                common[name] = common.get(name, found) & found
    for path, content in files.items():
        for name, (values, parameters, *rest) in content["results"].items():
            if common.get(name) and values is not None:
                combinations = zip(itertools.product(*parameters), values, strict=True)
                values = [value if combination in common[name] else None for combination, value in combinations]
                content["results"][name] = [values, parameters, *rest]
        write_json(path, content)


def measured(result: list[Any]) -> list[tuple[str, ...]]:
    """The parameters of a benchmark that have results."""
    values, parameters = result[:2]
    combinations = zip(itertools.product(*parameters), values or [], strict=False)
    return [combination for combination, value in combinations if value is not None]


def with_results(benchmarks: dict[str, Any], results: Path) -> dict[str, Any]:
    """The benchmarks, and of each the parameters, that have results: asv would draw empty graphs of the others."""
    found: dict[str, list[set[str]]] = {}
    for path in results.glob("*/*-py*.json"):
        for name, result in json.loads(path.read_text())["results"].items():
            if combinations := measured(result):
                axes = found.setdefault(name, [set() for _ in result[1]])
                for axis, seen in zip(axes, zip(*combinations, strict=True), strict=True):
                    axis.update(seen)
    chosen = {"version": benchmarks["version"]}
    for name in sorted(found.keys() & benchmarks.keys()):
        axes = zip(benchmarks[name]["params"], found[name], strict=True)
        chosen[name] = {**benchmarks[name], "params": [[text for text in axis if text in seen] for axis, seen in axes]}
    return chosen


def offline(page: str) -> str:
    """asv's page with this repository's copies of what it would load from elsewhere, and with what is added to it."""

    def local(match: re.Match[str]) -> str:
        if not (VENDOR / match["file"]).exists():
            sys.exit(f"asv's page loads {match['url']}, of which {VENDOR.name}/ has no copy")
        return f'vendor/{match["file"]}"'

    page = re.sub(r"jquery-3.3.1.min.js", "jquery.min.js", page)
    page = re.sub(r"(jquery\.flot\.\w+|jquery\.flot)\.min\.js", r"\1.js", page)
    page = re.sub(r'(?P<url>https?://[^"]+/(?P<file>[^"/]+\.(?:js|css)))"', local, page)
    page = re.sub(r' (?:integrity|crossorigin|referrerpolicy)="[^"]*"', "", page)
    before, script, after = page.partition(
        '<script language="javascript" type="text/javascript"\n            src="asv.js">'
    )
    if not script:
        sys.exit("asv's page does not load asv.js where it is expected")
    page = f'{before}<script src="site.js"></script>\n    {script}{after}'
    style = '<link href="site.css" rel="stylesheet">'
    viewport = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    return page.replace("</head>", f"  {viewport}\n    {style}\n  </head>").replace(
        "<title>airspeed velocity", "<title>fastloss"
    )


# ---- asv


def settings() -> dict[str, Any]:
    """asv.conf.json, with paths that hold wherever the file is."""
    text = re.sub(r"^\s*//.*$", "", (HERE / "asv.conf.json").read_text(), flags=re.M)
    paths = {"benchmark_dir": HERE / "benchmarks", "env_dir": HERE / "env", "results_dir": RESULTS, "html_dir": HTML}
    return {**json.loads(text), "repo": str(ROOT), **{name: str(path) for name, path in paths.items()}}


def asv(command: str, config: Path, *options: str, environment: dict[str, str] | None = None) -> bool:
    """Whether asv did all it was asked for."""
    words = [sys.executable, "-m", "asv", command, "--config", str(config), *options]
    return subprocess.run(words, env=environment).returncode == 0


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", nargs="+", metavar="REV", default=[], help="revisions to measure first")
    parser.add_argument("--quick", action="store_true", help="one thread, small shapes, and peers for two losses only")
    parser.add_argument(
        "--bench", nargs="+", metavar="REGEX", default=[], help="benchmarks to run, as asv matches them"
    )
    parser.add_argument("--builds", type=Path, metavar="DIR", help="keep builds there, and use those that are there")
    options = parser.parse_args()
    patterns = options.bench or (QUICK if options.quick else ())
    try:
        failed = [revision for revision in options.measure if not measure(revision, options.builds, patterns)]
    except revisions.RevisionError as error:
        sys.exit(f"{error}.")
    publish()
    print(f"The site: {HTML}; look at it with: {Path(sys.executable).name} -m http.server -d {HTML}")
    if options.measure:
        summary.write()
        print(f"Its summary: {summary.PAGE}")
    if failed:
        sys.exit(f"not every benchmark could be run on {', '.join(failed)}: see above")


if __name__ == "__main__":
    main()
