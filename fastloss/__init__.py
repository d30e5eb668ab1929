"""Classification losses and their gradients in one pass over the logits, for NumPy arrays."""

from __future__ import annotations

import os as _os
import sys as _sys

from fastloss import math
from fastloss.config import get_include, get_library_dir
from fastloss.custom import elementwise, rowwise
from fastloss.engines import engines, set_engine
from fastloss.losses.binary import binary_cross_entropy_with_logits
from fastloss.losses.cross_entropy import cross_entropy
from fastloss.losses.primitives import entropy, log_sigmoid, log_softmax, logsumexp, sigmoid, softmax, softplus
from fastloss.memory import set_buffer_limit
from fastloss.threads import get_num_threads, set_num_threads

__version__ = "0.1.0"

__all__ = [
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "elementwise",
    "engines",
    "entropy",
    "get_include",
    "get_library_dir",
    "get_num_threads",
    "log_sigmoid",
    "log_softmax",
    "logsumexp",
    "math",
    "rowwise",
    "set_buffer_limit",
    "set_engine",
    "set_num_threads",
    "show_config",
    "sigmoid",
    "softmax",
    "softplus",
]


def show_config() -> None:
    """Print what runs here: versions, engines, instruction set, threads.

    >>> import fastloss as fl
    >>> fl.show_config()  # doctest: +ELLIPSIS
    fastloss      ...
    """
    import platform

    import numpy

    from fastloss.engines import get, unavailable

    lines = [
        ("fastloss", f"{__version__}, {_os.path.dirname(_os.path.abspath(__file__))}"),
        ("Python", f"{platform.python_version()}, {_sys.platform}, {platform.machine()}"),
        ("NumPy", numpy.__version__),
        ("engines", ", ".join(engines())),
        ("engine", get().__name__.rpartition(".")[2].lstrip("_")),
    ]
    lines += [(f"no {name}", reason) for name, reason in unavailable().items()]
    if "cython" in engines():
        compiled = get("cython")
        for label, name in (("ISA", "isa"), ("ISAs", "isa_list"), ("threading", "threading")):
            if hasattr(compiled, name):
                value = getattr(compiled, name)()
                lines.append((label, value if isinstance(value, str) else ", ".join(value)))
    lines.append(("threads", str(get_num_threads())))
    print("\n".join(f"{label:<13} {text}" for label, text in lines))
