"""What the measurements were made on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from pathlib import Path

import fastloss as fl
from fastloss.engines import get as get_engine

PACKAGES = ("numpy", "numba", "torch", "jax", "optax", "scikit-learn")
BUSY = 0.5  # processes that run beside, on average


def machine() -> str:
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = re.findall(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.M)
        model = names[0] if names else model
    model = re.sub(r"\((R|TM)\)", "", model)
    return f"{model}, {os.cpu_count()} CPUs, {platform.system()}"


def isa() -> str | None:
    """The instruction set of the compiled engine's kernels."""
    return str(get_engine("cython").isa()) if "cython" in fl.engines() else None


def versions() -> str:
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def complaint() -> str | None:
    """What the user should know before a measurement, where the machine is busy."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load <= BUSY:
        return None
    return f"the load is {load:.1f}: other programs take part of the machine, and its figures mean less"
