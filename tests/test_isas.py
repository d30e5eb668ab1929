"""Every instruction set of this CPU gives right numbers, and FASTLOSS_ISA chooses among them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastloss as fl
from fastloss.engines import get

TESTS = Path(__file__).parent
NUMERIC = [
    "known_values", "options_grid", "edges", "layouts", "invariants", "confident", "numeric_gradients",
    "catalogue_numeric", "catalogue_oracle", "catalogue_edges", "overlap", "combine", "evaluate",
]  # fmt: skip

if "cython" in fl.engines():
    USED, LIST = get("cython").isa(), get("cython").isa_list()
else:
    USED, LIST = None, ()

needs_cython = pytest.mark.skipif(USED is None, reason="the compiled engine is missing")


def run(*arguments, isa, timeout=60):
    environment = {**os.environ, "FASTLOSS_ISA": isa}
    environment.pop("FASTLOSS_ENGINE", None)
    return subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=TESTS, capture_output=True, text=True, timeout=timeout
    )


@needs_cython
def test_the_widest_is_used_unless_the_variable_names_another():
    assert (os.environ.get("FASTLOSS_ISA") or LIST[-1]) == USED
    code = "import fastloss as fl; from fastloss.engines import get; print(get('cython').isa())"
    for name in LIST:
        assert run("-c", code, isa=name).stdout == f"{name}\n"
    assert run("-c", code, isa="").stdout == f"{LIST[-1]}\n"


@needs_cython
@pytest.mark.parametrize("isa", [name for name in LIST if name != USED])
def test_numbers(isa):
    files = [str(TESTS / f"test_{name}.py") for name in NUMERIC]
    command = ["-m", "pytest", "-x", "-p", "no:cacheprovider", "-m", "not huge", "-k", "cython", *files]
    done = run(*command, isa=isa, timeout=900)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert " passed" in done.stdout and f", {isa}" in done.stdout, done.stdout[:1000]


@needs_cython
@pytest.mark.parametrize(
    "statement",
    [
        "fl.set_engine('cython')",
        "fl.engines()",
        "fl.cross_entropy([1.0, 2.0], 0)",
        "fl.softplus([0.0], engine='cython')",
        "fl.show_config()",
        "fl.set_buffer_limit(0)",
    ],
)
def test_an_unknown_name_is_an_error_wherever_it_is_met(statement):
    """And again at the second try, instead of another engine in silence."""
    code = f"""
import fastloss as fl
for _ in range(2):
    try:
        {statement}
    except ValueError as error:
        print(error)
"""
    done = run("-c", code, isa="pdp-11")
    message = f"FASTLOSS_ISA is 'pdp-11', which this CPU or build does not have: choose from {', '.join(LIST)}"
    assert done.stdout.splitlines() == [message] * 2, done.stdout + done.stderr


@needs_cython
def test_an_unknown_name_leaves_the_reference_alone():
    code = "import fastloss as fl; print(fl.softplus([0.0], engine='reference')[0])"
    done = run("-c", code, isa="pdp-11")
    assert done.stdout.startswith("0.693"), done.stderr


@needs_cython
def test_the_command_line_says_it_in_one_sentence():
    done = run("-m", "fastloss", "info", isa="pdp-11")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("fastloss: FASTLOSS_ISA is 'pdp-11', which this CPU or build does not have: choose")
