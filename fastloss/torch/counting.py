"""How many calls took which way."""

from __future__ import annotations

import itertools
from typing import Any

Key = tuple[str, Any, Any, bool]  # loss, shape, dtype, whether with the gradient

# The numbers are iterators: to draw one is a single step, which two threads cannot take at once under the interpreter's
# lock, and cheap, which small batches feel.
_fallbacks: dict[tuple[str, str], itertools.count[int]] = {}
_computed: dict[Key, itertools.count[int]] = {}
_forgotten: dict[Key, int] = {}


def count(name: str, way: str) -> None:
    """A call that torch computed."""
    next(_fallbacks.setdefault((name, way), itertools.count()))


def count_computed(name: str, input: Any, needs_grad: bool) -> None:
    """A call that fastloss computed."""
    key = name, input.shape, input.dtype, needs_grad
    number = _computed.get(key)
    next(_computed.setdefault(key, itertools.count()) if number is None else number)


def _drawn(number: itertools.count[int]) -> int:
    """How many numbers were drawn: the one that comes next, which only its text tells without drawing it."""
    return int(repr(number)[len("count(") : -1])


def reset() -> None:
    _fallbacks.clear()
    _computed.clear()
    _forgotten.clear()


def read() -> tuple[dict[tuple[str, str], int], dict[Key, int]]:
    """The calls by loss and way, "fastloss" or why it was torch; and those of fastloss by their shapes."""
    calls = {way: _drawn(number) for way, number in _fallbacks.copy().items()}
    computed = {key: _drawn(number) - _forgotten.get(key, 0) for key, number in _computed.copy().items()}
    for (name, _, _, _), drawn in computed.items():
        calls[name, "fastloss"] = calls.get((name, "fastloss"), 0) + drawn
    return calls, computed


def forget(key: Key, number: int) -> None:
    """Takes back calls that were made to measure."""
    _forgotten[key] = _forgotten.get(key, 0) + number
