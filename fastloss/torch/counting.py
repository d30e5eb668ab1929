"""How many calls took which way."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

Key = tuple[str, Any, Any, bool]  # loss, shape, dtype, whether with the gradient

_lock = threading.Lock()
_fallbacks: dict[tuple[str, str], int] = {}
_computed: Counter[Key] = Counter()
_recent: list[Key] = []  # calls that are not in _computed yet: small batches feel what counting costs


def count(name: str, way: str) -> None:
    """A call that torch computed."""
    with _lock:
        _fallbacks[name, way] = _fallbacks.get((name, way), 0) + 1


def count_computed(name: str, input: Any, needs_grad: bool) -> None:
    """A call that fastloss computed."""
    _recent.append((name, input.shape, input.dtype, needs_grad))
    if len(_recent) >= 500:
        with _lock:
            _gather()


def _gather() -> None:
    count = len(_recent)  # another thread may append meanwhile
    _computed.update(_recent[:count])
    del _recent[:count]


def reset() -> None:
    with _lock:
        _gather()
        _fallbacks.clear()
        _computed.clear()


def read() -> tuple[dict[tuple[str, str], int], dict[Key, int]]:
    """The calls by loss and way, "fastloss" or why it was torch; and those of fastloss by their shapes."""
    with _lock:
        _gather()
        calls, computed = dict(_fallbacks), dict(_computed)
    for (name, _, _, _), number in computed.items():
        calls[name, "fastloss"] = calls.get((name, "fastloss"), 0) + number
    return calls, computed


def forget(key: Key, number: int) -> None:
    """Takes back calls that were made to measure."""
    with _lock:
        _gather()
        _computed[key] -= number
