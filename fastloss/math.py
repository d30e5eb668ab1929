"""Functions for the formulas of custom losses: see `fastloss.elementwise` and `fastloss.rowwise`.

On numbers and arrays they compute with NumPy; on the symbols that a formula is traced with they build an expression.
Arithmetic, comparisons and powers are Python's own operators; instead of `if` there is `where`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = [
    "abs", "exp", "log", "log1p", "log_sigmoid", "maximum", "minimum", "sigmoid", "softplus", "sqrt", "tanh", "where",
]  # fmt: skip


def exp(x: Any) -> Any:
    """e^x.

    >>> float(exp(0.0))
    1.0
    """
    return _call("exp", x)


def log(x: Any) -> Any:
    """Natural logarithm.

    >>> float(log(1.0))
    0.0
    """
    return _call("log", x)


def log1p(x: Any) -> Any:
    """log(1 + x), with all digits for a small x.

    >>> float(log1p(1e-20))
    1e-20
    """
    return _call("log1p", x)


def sqrt(x: Any) -> Any:
    """Square root.

    >>> float(sqrt(9.0))
    3.0
    """
    return _call("sqrt", x)


def tanh(x: Any) -> Any:
    """Hyperbolic tangent.

    >>> float(tanh(0.0))
    0.0
    """
    return _call("tanh", x)


def sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x)).

    >>> float(sigmoid(0.0))
    0.5
    """
    return _call("sigmoid", x)


def log_sigmoid(x: Any) -> Any:
    """log(sigmoid(x)); its derivative is sigmoid(-x).

    >>> float(log_sigmoid(-1000.0))
    -1000.0
    """
    return _call("log_sigmoid", x)


def softplus(x: Any) -> Any:
    """log(1 + exp(x)); its derivative is sigmoid(x).

    >>> float(softplus(1000.0))
    1000.0
    """
    return _call("softplus", x)


def abs(x: Any) -> Any:
    """Absolute value; its derivative at 0 is 0.

    >>> float(abs(-2.0))
    2.0
    """
    return _call("absolute", x)


def maximum(x: Any, y: Any) -> Any:
    """The larger; its derivative is that of x where they are equal.

    >>> float(maximum(1.0, 2.0))
    2.0
    """
    return _call("maximum", x, y)


def minimum(x: Any, y: Any) -> Any:
    """The smaller; its derivative is that of x where they are equal.

    >>> float(minimum(1.0, 2.0))
    1.0
    """
    return _call("minimum", x, y)


def where(condition: Any, x: Any, y: Any) -> Any:
    """x where the condition holds, else y. Conditions are comparisons, joined by & and |, turned round by ~.

    >>> float(where(np.float64(3) > 2, 1.0, 0.0))
    1.0
    """
    return _call("where", condition, x, y)


def _call(name: str, *args: Any) -> Any:
    if any(type(arg).__module__.startswith("sympy.") or hasattr(arg, "free_symbols") for arg in args):
        from fastloss import symbolic

        return getattr(symbolic, name)(*args)
    with np.errstate(all="ignore"):
        return _NUMPY[name](*args)


def _sigmoid(x: Any) -> Any:
    u = np.exp(-np.abs(x))
    return np.where(np.less(x, 0), u, 1) / (1 + u)


def _softplus(x: Any) -> Any:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


_NUMPY: dict[str, Any] = {
    "exp": np.exp,
    "log": np.log,
    "log1p": np.log1p,
    "sqrt": np.sqrt,
    "tanh": np.tanh,
    "absolute": np.abs,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "where": np.where,
    "sigmoid": _sigmoid,
    "softplus": _softplus,
    "log_sigmoid": lambda x: -_softplus(np.negative(x)),
}
