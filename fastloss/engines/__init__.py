"""The engines: each computes the same problems, in another way. Best first: cython, numba, reference."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sysconfig
import warnings
from types import ModuleType

NAMES = ("cython", "numba", "reference")

_MODULES = {
    "cython": "fastloss.engines._cython",
    "numba": "fastloss.engines._numba",
    "reference": "fastloss.engines.reference",
}

_loaded: dict[str, ModuleType] = {}
_reasons: dict[str, str] = {}
_current: ModuleType | None = None  # what get() returns: set at the first use, and by set_engine


def engines() -> tuple[str, ...]:
    """The names of the engines that can be used here, best first.

    >>> import fastloss as fl
    >>> "reference" in fl.engines()
    True
    """
    return tuple(name for name in NAMES if _is_there(name))


def set_engine(name: str | None) -> None:
    """Use the engine of this name where a call names none; None goes back to FASTLOSS_ENGINE or the best available.

    Raises ValueError for a name that is not in `engines()`.

    >>> import fastloss as fl
    >>> fl.set_engine("reference")
    >>> fl.set_engine(None)
    """
    global _current
    _current = _default() if name is None else get(name)


def get(name: str | None = None) -> ModuleType:
    """The engine of this name; without one that of set_engine, FASTLOSS_ENGINE, or the best available."""
    global _current
    if name is None:
        if _current is None:
            _current = _default()
        return _current
    module = _loaded.get(name) if isinstance(name, str) else None
    return module if module is not None else _named(name, "engine")


def unavailable() -> dict[str, str]:
    """Why the engines that are not in `engines()` can't be used."""
    engines()
    return dict(_reasons)


def _default() -> ModuleType:
    name = os.environ.get("FASTLOSS_ENGINE")
    if name:
        return _named(name, "FASTLOSS_ENGINE")
    best = next(name for name in NAMES if _load(name) is not None)
    if best != "cython":
        slowness = {"numba": "Numba engine, which compiles at first use", "reference": "slow reference engine"}[best]
        warnings.warn(
            f"fastloss runs on its {slowness}, because the compiled one is missing: {_reasons['cython']}",
            RuntimeWarning,
            stacklevel=3,
        )
    return get(best)


def _named(name: str, source: str) -> ModuleType:
    if not isinstance(name, str):
        raise TypeError(f"{source} must be a string or None, not {name!r}")
    module = _load(name) if name in NAMES else None
    if module is None:
        reason = f" ({_reasons[name]})" if name in _reasons else ""
        raise ValueError(f"{source} is {name!r}, which is not available{reason}: choose from {', '.join(engines())}")
    return module


def _is_there(name: str) -> bool:
    """Whether an engine can be loaded. Numba takes long to import, so whether it is installed has to do."""
    if name in _loaded or name in _reasons or name != "numba":
        return _load(name) is not None
    if importlib.util.find_spec("numba") is None:
        _reasons[name] = "Numba is not installed: pip install 'fastloss[numba]'"
        return False
    return True


def _load(name: str) -> ModuleType | None:
    if name in _loaded:
        return _loaded[name]
    if name in _reasons:
        return None
    if name == "cython" and "musl" in (sysconfig.get_config_var("HOST_GNU_TYPE") or ""):
        os.environ.setdefault("OMP_STACKSIZE", "1M")  # musl gives threads 128 KiB; the kernels take up to 192
    try:
        module = importlib.import_module(_MODULES[name])
    except ImportError as error:  # and no ValueError: another engine in its place would hide a bad FASTLOSS_ISA
        missing = isinstance(error, ModuleNotFoundError) and error.name == "numba"
        _reasons[name] = "Numba is not installed: pip install 'fastloss[numba]'" if missing else str(error)
        return None
    _loaded[name] = module
    return module
