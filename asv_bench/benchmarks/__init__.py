"""Benchmarks of fastloss for asv, made from its list of losses.

The code that measures is this checkout's fastloss.bench, whichever revision of fastloss is measured: so all revisions
are measured alike, also those that have no fastloss.bench. What it needs of fastloss besides is the list of losses,
which old revisions do not have, or without the losses' domains.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import fastloss

PACKAGE = Path(__file__).parents[2] / "fastloss"


def load(name: str, path: Path) -> None:
    """Puts this checkout's module or package in place of the measured revision's."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    setattr(fastloss, name.rpartition(".")[2], module)


load("fastloss.catalogue", PACKAGE / "catalogue.py")
for loss in fastloss.catalogue.DOMAINS:
    if hasattr(fastloss, loss):
        fastloss.catalogue.LOSSES[loss] = getattr(fastloss, loss)
load("fastloss.bench", PACKAGE / "bench" / "__init__.py")
