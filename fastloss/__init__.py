"""Classification losses and their gradients in one pass over the logits, for NumPy arrays."""

from __future__ import annotations

import os as _os
import sys as _sys

from fastloss import math
from fastloss.config import get_include, get_library_dir
from fastloss.custom import elementwise, rowwise
from fastloss.diagnosis import Diagnosis, DiagnosisWarning, Finding, diagnose
from fastloss.engines import engines, set_engine
from fastloss.losses.binary import binary_cross_entropy, binary_cross_entropy_with_logits
from fastloss.losses.combine import combine
from fastloss.losses.cross_entropy import cross_entropy
from fastloss.losses.evaluate import Evaluation, evaluate
from fastloss.losses.focal import focal_cross_entropy, sigmoid_focal_loss
from fastloss.losses.kl_div import kl_div
from fastloss.losses.lovasz import lovasz_loss
from fastloss.losses.margin import (
    hinge_loss,
    multi_margin_loss,
    multilabel_margin_loss,
    multilabel_soft_margin_loss,
    soft_margin_loss,
)
from fastloss.losses.nll import nll_loss
from fastloss.losses.overlap import dice_loss, jaccard_loss, tversky_loss
from fastloss.losses.primitives import entropy, log_sigmoid, log_softmax, logsumexp, sigmoid, softmax, softplus
from fastloss.memory import set_buffer_limit
from fastloss.prediction import predict
from fastloss.threads import get_num_threads, set_num_threads

__version__ = "0.1.0"

__all__ = [
    "Diagnosis",
    "DiagnosisWarning",
    "Evaluation",
    "Finding",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "combine",
    "cross_entropy",
    "diagnose",
    "dice_loss",
    "elementwise",
    "engines",
    "entropy",
    "evaluate",
    "focal_cross_entropy",
    "get_include",
    "get_library_dir",
    "get_num_threads",
    "hinge_loss",
    "jaccard_loss",
    "kl_div",
    "log_sigmoid",
    "log_softmax",
    "logsumexp",
    "lovasz_loss",
    "math",
    "multi_margin_loss",
    "multilabel_margin_loss",
    "multilabel_soft_margin_loss",
    "nll_loss",
    "predict",
    "rowwise",
    "set_buffer_limit",
    "set_engine",
    "set_num_threads",
    "show_config",
    "sigmoid",
    "sigmoid_focal_loss",
    "soft_margin_loss",
    "softmax",
    "softplus",
    "tversky_loss",
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
