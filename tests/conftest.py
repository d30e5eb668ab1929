import importlib
import os
import sys
import warnings

import pytest

# The tests are of the installed package. `python -m pytest` puts the folder it starts in on the path, and there the
# source tree's fastloss/, which is not compiled, would hide it. (An editable install is found by its import hook.)
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
for entry in [entry for entry in sys.path if os.path.abspath(entry) == ROOT]:
    sys.path.remove(entry)
os.environ["PYTHONSAFEPATH"] = "1"  # the same in the Pythons that tests start (3.11 and later)

import fastloss as fl  # noqa: E402
from fastloss.engines import get  # noqa: E402

IN_CI = os.environ.get("CI") == "true"


def pytest_report_header():
    isa = f", {get('cython').isa()}" if "cython" in fl.engines() else ""
    return f"fastloss {fl.__version__}, engines {', '.join(fl.engines())}{isa}, from {os.path.dirname(fl.__file__)}"


def pytest_sessionstart():
    if IN_CI and "cython" not in fl.engines():
        pytest.exit("the compiled engine is missing: the tests run on the installed package", returncode=1)


@pytest.fixture(params=fl.engines())
def engine(request):
    return request.param


@pytest.fixture
def peer():
    """Imports another library; where it is missing the test is skipped, and fails in CI."""

    def load(name):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return importlib.import_module(name)
        except ImportError as error:
            if IN_CI:
                raise
            pytest.skip(f"{name} is not installed: {error}")

    return load
