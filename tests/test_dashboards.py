"""What asv measures, the guard against slower kernels, and the README's table."""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest

import fastloss as fl
from fastloss.bench import cases, processes
from fastloss.catalogue import LOSSES

ROOT = Path(__file__).resolve().parent.parent
ASV_BENCH = ROOT / "asv_bench"

pytestmark = pytest.mark.skipif(not ASV_BENCH.exists(), reason="asv_bench/ is not here")


def load(path):
    """A script, whatever its name ends in."""
    loader = SourceFileLoader(path.stem, str(path))
    module = module_from_spec(spec_from_loader(path.stem, loader))
    loader.exec_module(module)
    return module


def run(code, **environment):
    """What a Python prints that has asv_bench/ on its path, beside the fastloss that is tested."""
    path = os.pathsep.join([str(ASV_BENCH), str(Path(fl.__file__).parents[1])])
    environment = {**os.environ, "PYTHONPATH": path, **environment}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---- asv's benchmarks


DISCOVER = """
import importlib, json
found = {}
for module in ("losses", "limit", "peers", "options", "memory", "exactness", "start"):
    for name, kind in vars(importlib.import_module(f"benchmarks.{module}")).items():
        if isinstance(kind, type) and kind.__module__ == f"benchmarks.{module}" and not name.startswith("_"):
            for method in vars(kind):
                if method.split("_")[0] in ("time", "track", "peakmem"):
                    function = getattr(kind, method)
                    unit = getattr(function, "unit", None) if method.startswith("track") else "set by asv"
                    parameters = str(getattr(kind, "params", ()))
                    found[f"{module}.{name}.{method}"] = function.pretty_name, unit, parameters
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def benchmarks():
    return json.loads(run(DISCOVER))


def test_every_loss_is_measured_and_has_readable_names(benchmarks):
    for loss in LOSSES:
        name = "".join(part.capitalize() for part in loss.split("_"))
        for benchmark in ("losses.{}.time_loss", "losses.{}.time_loss_and_gradient", "limit.{}.track_copies"):
            assert benchmarks[benchmark.format(name)][0].startswith(f"{loss}: ")
        assert f"peers.{name}.track_speedup" in benchmarks
        for benchmark in ("memory.PeakMemory.peakmem_loss_and_gradient", "exactness.Exactness.track_loss"):
            assert f"'{loss}'" in benchmarks[benchmark][2]
    assert all(unit for _, unit, _ in benchmarks.values())


def test_a_new_loss_needs_no_other_line():
    """A loss that fastloss.catalogue names is measured."""
    code = "import benchmarks; from fastloss.catalogue import DOMAINS; DOMAINS['new_loss'] = DOMAINS['hinge_loss']\n"
    code += "from benchmarks import losses, start; print(losses.NewLoss.params, 'new_loss' in start.Call.params)"
    assert run(code) == "(['64 x 10', '4096 x 1000', '20000000'], [1, 2]) True\n"


MEASURE = """
from benchmarks import exactness, limit, losses, memory, options, peers, start
for benchmark, parameters in (
    (losses.CrossEntropy(), ("64 x 10", 1)),
    (limit.HingeLoss(), ("64 x 10", 1)),
    (peers.CrossEntropy(), ("NumPy", "64 x 10")),
    (memory.PeakMemory(), ("nll_loss",)),
    (exactness.Exactness(), ("cross_entropy",)),
    (start.Call(), ("dice_loss",)),
):
    benchmark.setup(*parameters)
    for name in dir(benchmark):
        if name.split("_")[0] in ("time", "track", "peakmem"):
            value = getattr(benchmark, name)(*parameters)
            assert name.startswith("track") == isinstance(value, float), name
            assert value is None or value > 0
print(start.Start().track_import() > 0)
"""


def test_benchmarks_run():
    assert run(MEASURE) == "True\n"


def test_a_revision_without_a_loss_or_the_list_is_measured(tmp_path):
    """This checkout's measuring code, on a fastloss that has neither the catalogue nor bench nor hinge_loss."""
    package = tmp_path / "fastloss"
    shutil.copytree(Path(fl.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.rmtree(package / "bench")
    (package / "__init__.py").write_text((package / "__init__.py").read_text() + "\ndel hinge_loss\n")
    code = "import fastloss; from benchmarks import losses, start\n"
    code += "b = losses.CrossEntropy(); b.setup('64 x 10', 1); b.time_loss_and_gradient(); print(fastloss.__file__)\n"
    code += "try: start.Call().setup('hinge_loss')\nexcept NotImplementedError as error: print(error)"
    path = os.pathsep.join([str(tmp_path), str(ASV_BENCH)])
    assert run(code, PYTHONPATH=path) == f"{package / '__init__.py'}\nthis fastloss has no hinge_loss\n"


# ---- the guard


@pytest.fixture
def guard(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))  # which it does itself
    return load(ASV_BENCH / "guard")


def measured(head, base):
    return {"seconds": {"fastloss": [head] * 3, "base": [base] * 3, "copy": [1.0] * 3}}


@pytest.mark.parametrize(
    ("first", "second", "status", "verdict"),
    [(1.05, None, 0, "no kernel is slower"), (1.3, 1.0, 0, "noise"), (1.3, 1.2, 1, "1 of 2 kernels slower")],
)
def test_the_guard_wants_to_see_it_twice(guard, monkeypatch, capsys, first, second, status, verdict):
    kernels = guard.KERNELS[:2]
    runs = [{kernels[0]: measured(first, 1.0), kernels[1]: measured(0.5, 1.0)}, {kernels[0]: measured(second, 1.0)}]
    monkeypatch.setattr(guard, "measure", lambda head, base, chosen, rounds: runs.pop(0))
    assert guard.guard(Path("head"), Path("base"), kernels, 3) == status
    output = capsys.readouterr().out
    assert verdict in output and ("SLOWER" in output) == bool(status)
    assert len(runs) == (1 if second is None else 0)


def test_the_guard_measures_the_builds_that_it_is_given(guard, tmp_path, capsys):
    """A second pass in HEAD's hinge_loss is seen, and cross_entropy is not accused."""
    if "cython" not in fl.engines():
        pytest.skip("this fastloss has no compiled engine")
    head, base = tmp_path / "head", tmp_path / "base"
    for folder in (head, base):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(Path(fl.__file__).parent, folder / "fastloss", ignore=ignore)
    slow = "\n_once = hinge_loss\ndef hinge_loss(*args, **options):\n    _once(*args, **options)\n"
    slow += "    _once(*args, **options)\n    return _once(*args, **options)\n"
    with open(head / "fastloss" / "__init__.py", "a") as file:
        file.write(slow)
    kernels = [cases.Case("hinge_loss", "200000"), cases.Case("cross_entropy", "200 x 100")]
    results = guard.measure(head, base, kernels, rounds=3)
    calls = [len(results[case]["seconds"][call]) for case in kernels for call in ("fastloss", "base", "copy")]
    assert calls == [3] * 6
    assert guard.slowdown(results[kernels[0]]) > guard.slowdown(results[kernels[1]])


def test_a_build_that_is_not_imported_is_refused(tmp_path, capfd):
    plan = processes.Plan(1, (), seconds=0, build=str(tmp_path))
    with pytest.raises(processes.WorkerFailed):
        list(processes.measure(plan, path=[Path(fl.__file__).parents[1]]))
    assert f"and is to be measured in {tmp_path}" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--only", "l2"], "no such kernel: l2"), (["--base", "nowhere"], "has no revision 'nowhere'")],
)
def test_the_guard_names_what_is_not_there(options, message):
    done = subprocess.run([sys.executable, ASV_BENCH / "guard", *options], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and message in done.stderr


# ---- the README's table


def result(loss, shape, threads, fastloss, **peers):
    seconds = {"fastloss": [fastloss] * 3, "copy": [1e-3] * 3, **{name: [time] * 3 for name, time in peers.items()}}
    return {"loss": loss, "shape": shape, "threads": threads, "seconds": seconds, "others": 0.0}


def test_the_table_is_made_from_what_bench_writes(monkeypatch, tmp_path):
    readme = load(ASV_BENCH / "readme.py")
    results = [
        result("cross_entropy", "64 x 10", 1, 2e-6, NumPy=2e-5, torch=6e-5),
        result("binary_cross_entropy_with_logits", "20000000", 1, 2e-3, torch=1e-2),
        result("cross_entropy", "64 x 10", 2, 1e-6, NumPy=2e-5, torch=6e-5),
        result("binary_cross_entropy_with_logits", "20000000", 2, 1e-3, torch=1e-2),
    ]
    report = {"machine": "A CPU", "isa": "an ISA", "versions": "numpy 2", "date": "2026-01-02", "results": results}
    text = readme.markdown(report)
    assert text.splitlines()[0] == "On A CPU; instruction set an ISA; numpy 2; 2026-01-02. Each cell: 1 / 2 threads."
    assert text.splitlines()[4:] == [
        "| 64 x 10 | 2.0 µs / 1.0 µs |  | 10× / 20× | 30× / 60× |  |  |",
        "| BCE, 20000000 | 2.00 ms / 1.00 ms | 2.00 / 1.00 |  | 5× / 10× |  |  |",
    ]
    page = tmp_path / "README.md"
    page.write_text("a\n<!-- speed -->\nold\n<!-- /speed -->\nb\n")
    monkeypatch.setattr(readme, "README", page)
    (tmp_path / "b.json").write_text(json.dumps(report))
    monkeypatch.setattr(sys, "argv", ["readme.py", "--json", str(tmp_path / "b.json")])
    readme.main()
    assert page.read_text() == f"a\n<!-- speed -->\n{text}\n<!-- /speed -->\nb\n"
    page.write_text("no markers")
    with pytest.raises(SystemExit, match="needs one pair of"):
        readme.main()


def test_the_readme_has_the_markers():
    assert re.search(r"<!-- speed -->\n.*<!-- /speed -->", (ROOT / "README.md").read_text(), re.S)
