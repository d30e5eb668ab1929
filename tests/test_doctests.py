"""The examples in docstrings and in README.md run, and print what they say."""

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import fastloss as fl

README = Path(__file__).parent.parent / "README.md"
PUBLIC = [name for name in fl.__all__ if callable(getattr(fl, name))]


def modules():
    for module in pkgutil.walk_packages(fl.__path__, "fastloss."):
        if not module.name.endswith(("__main__", "._cython")):
            yield module.name


@pytest.fixture(autouse=True)
def plain_state():
    """Examples may set what the next ones would see."""
    yield
    fl.set_num_threads(None)
    fl.set_engine(None)
    fl.set_buffer_limit(2**30)


def assert_all_pass(results, place):
    assert results.failed == 0, f"{results.failed} of {results.attempted} examples of {place} failed, see above"


@pytest.mark.parametrize("name", ["fastloss", *modules()])
def test_docstrings(name, peer):
    if name.startswith("fastloss.torch"):
        peer("torch")
    if name == "fastloss.config" and "cython" not in fl.engines():
        pytest.skip("installed without the C library")
    assert_all_pass(doctest.testmod(importlib.import_module(name)), name)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_function_has_an_example_that_runs(name):
    examples = doctest.DocTestFinder(recurse=False).find(getattr(fl, name), name, globs={})
    assert sum(len(each.examples) for each in examples) > 0
    if "cython" in fl.engines() or not name.startswith("get_"):
        runner = doctest.DocTestRunner()
        for each in examples:
            runner.run(each)
        assert_all_pass(runner.summarize(verbose=False), name)


def test_readme(peer):
    peer("torch")
    results = doctest.testfile(str(README), module_relative=False, encoding="utf-8")
    assert results.attempted > 0
    assert_all_pass(results, README.name)
