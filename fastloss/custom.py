"""Losses from a formula: written as a Python function, differentiated, and compiled into one fused parallel kernel."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from functools import update_wrapper
from typing import Any

import numpy as np

from fastloss import validate
from fastloss.engines import engines, unavailable

_ROW_ARGUMENTS = ("z_target", "lse", "log_p", "p", "not_p")
_STEP = 1e-5  # of the numeric derivatives, which are in double: half of its digits are left
_TOLERANCE = 1e-6


def elementwise(function: Callable[..., Any]) -> ElementwiseLoss:
    r"""A loss of each logit and its target, from its formula.

    ::

        loss_i = function(z_i, y_i),    grad_i = d loss_i / d z_i,    hess_i = d^2 loss_i / d z_i^2

    Parameters
    ----------
    function
        Takes a logit and its target, and parameters by keyword with numbers as defaults; returns a formula of them in
        Python's operators and the functions of `fastloss.math`. It is called once, with symbols.

    Returns
    -------
    ElementwiseLoss
        ``loss(logits, target, *, weight=None, reduction="mean", return_grad=False, return_hess=False, out_grad=None,
        out_hess=None, grad_output=None, engine=None, num_threads=None, **parameters)``, whose arguments are those of
        `fastloss.binary_cross_entropy_with_logits`; targets may be any numbers. It returns the loss, (loss, grad), or
        with return_hess (loss, grad, hess). Its formulas are its attributes ``formula``, ``gradient``, ``hessian``.

    Errors
    ------
    TypeError where the function can't be differentiated, naming the operation. ImportError without Numba or SymPy.

    Notes
    -----
    Derivatives are made by SymPy with stable rules of fastloss's own. With FASTLOSS_DEBUG=1 the first call compares
    them with numeric ones and raises ArithmeticError where they differ. Where a formula has a kink, the derivative is
    that of the branch taken there. Engines: "numba", and "reference" (NumPy, float64).

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> @fl.elementwise
    ... def huber(z, y, *, delta=1.0):
    ...     '''Huber, 1964.'''
    ...     distance = fl.math.abs(z - y)
    ...     return fl.math.where(distance < delta, 0.5 * (z - y) ** 2, delta * (distance - 0.5 * delta))
    >>> loss, grad = huber(np.array([0.5, 3.0]), np.array([0.0, 0.0]), reduction="sum", return_grad=True)
    >>> loss, grad.tolist()
    (2.625, [0.5, 1.0])
    """
    return ElementwiseLoss(function)


def rowwise(function: Callable[..., Any]) -> RowwiseLoss:
    r"""A loss over an axis of classes, from its formula in what a row of logits and its target class give.

    ::

        z_target                        the target's logit
        lse    = log(sum_c exp(z_c))
        log_p  = z_target - lse         the log-probability of the target
        p      = exp(log_p)             its probability
        not_p  = 1 - p                  that of the other classes, with all its digits

    Parameters
    ----------
    function
        Takes some of the five above, by these names, and parameters by keyword with numbers as defaults; returns a
        formula of them in Python's operators and the functions of `fastloss.math`. It is called once, with symbols.

    Returns
    -------
    RowwiseLoss
        ``loss(logits, target, *, weight=None, sample_weight=None, ignore_index=-100, axis=1, normalizer=None,
        empty="nan", reduction="mean", return_grad=False, out_grad=None, grad_output=None, engine=None,
        num_threads=None, **parameters)``, whose arguments are those of `fastloss.cross_entropy` with class indices.

    Errors
    ------
    TypeError where the function can't be differentiated, naming the operation. ImportError without Numba or SymPy.

    Notes
    -----
    As for `fastloss.elementwise`. log_p, p and not_p keep their digits where the target leads by far; a formula
    should use them instead of z_target - lse and 1 - p.

    Examples
    --------
    >>> import numpy as np
    >>> import fastloss as fl
    >>> @fl.rowwise
    ... def focal(log_p, not_p, *, gamma=2.0):
    ...     '''Lin et al., 2017, arXiv:1708.02002.'''
    ...     return -(not_p**gamma) * log_p
    >>> loss, grad = focal(np.array([[2.0, 0.1, 0.4]]), np.array([0]), return_grad=True)
    >>> f"{loss:.4f}", grad.round(4).tolist()
    ('0.0204', [[-0.0477, 0.0203, 0.0274]])
    """
    return RowwiseLoss(function)


class _Custom:
    """What both kinds share: the formula, its source code, and the kernels that are compiled when they are needed."""

    formula: Any
    _source: str

    def __init__(self, function: Callable[..., Any], arguments: tuple[str, ...], defaults: dict[str, float]) -> None:
        if not callable(function):
            raise TypeError(f"expected a function, not {type(function).__name__}")
        self.defaults = defaults
        self._arguments = arguments
        self._kernel: Any = None
        self._is_checked = os.environ.get("FASTLOSS_DEBUG", "") not in ("1", "true")
        self.__name__ = str(getattr(function, "__name__", "a loss"))
        update_wrapper(self, function)  # type: ignore[arg-type]
        self.__signature__ = inspect.signature(type(self).__call__)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.__name__}: {self.formula}>"

    def _parameters(self, given: dict[str, Any]) -> tuple[float, ...]:
        for name in given:
            if name not in self.defaults:
                known = ", ".join(self.defaults) or "none"
                raise TypeError(f"{self.__name__} has no parameter {name!r}: its own are {known}")
        merged = {**self.defaults, **given}
        values = tuple(validate.parameter(name, value) for name, value in merged.items())
        return values or (0.0,)

    def _engine(self, name: str | None) -> str:
        if name not in (None, "numba", "reference"):
            raise ValueError(f"engine is {name!r}, but custom losses have the engines numba and reference")
        if name != "reference" and "numba" not in engines():
            raise ImportError(f"a custom loss needs Numba: {unavailable()['numba']}")
        return name or "numba"

    def _run_numpy(self, *arguments: Any) -> Any:
        from fastloss.engines import reference

        with np.errstate(all="ignore"):
            return reference.run_formula(self._source, *arguments)


class ElementwiseLoss(_Custom):
    """A loss of each logit and its target: see `fastloss.elementwise`."""

    def __init__(self, function: Callable[..., Any]) -> None:
        symbolic = _symbolic()
        defaults = symbolic.parameters_of(function, 2)
        super().__init__(function, ("z", "y"), defaults)
        self.formula, (z, _) = symbolic.trace(function, ("z", "y"), tuple(defaults))
        self.gradient = self.formula.diff(z)
        self.hessian = self.gradient.diff(z)
        self._source = symbolic.source(("z", "y"), tuple(defaults), [self.formula, self.gradient, self.hessian])

    def __call__(
        self,
        logits: Any,
        target: Any,
        *,
        weight: Any = None,
        reduction: Any = "mean",
        return_grad: bool = False,
        return_hess: bool = False,
        out_grad: Any = None,
        out_hess: Any = None,
        grad_output: Any = None,
        engine: str | None = None,
        num_threads: Any = None,
        **parameters: Any,
    ) -> Any:
        values = self._parameters(parameters)
        name = self._engine(engine)
        want_hess = return_hess or out_hess is not None
        problem = validate.element_loss(
            logits, target, weight=weight, reduction=reduction, return_grad=return_grad or want_hess,
            out_grad=out_grad, grad_output=grad_output, num_threads=num_threads,
        )  # fmt: skip
        if out_hess is not None:
            validate.check_out_hess(out_hess, problem)
        if not self._is_checked:
            self._check(problem, values)
        loss, grad, hess = self._compute(name, problem, values, want_hess, out_hess)
        if want_hess:
            return loss, grad, hess
        return (loss, grad) if problem.want_grad else loss

    def _compute(self, name: str, problem: Any, values: tuple[float, ...], want_hess: bool, out_hess: Any) -> Any:
        if name == "reference":
            from fastloss.engines import reference

            return reference.elementwise(self._run_numpy, problem, values, want_hess, out_hess)
        from fastloss.engines import _numba, numba_custom

        if self._kernel is None:
            self._kernel = numba_custom.elementwise(self._source)
        return _numba.elementwise(self._kernel, problem, values, want_hess, out_hess)

    def _check(self, problem: Any, values: tuple[float, ...]) -> None:
        """Compares the derivatives with numeric ones, at the batch's targets."""
        self._is_checked = True
        y = np.resize(problem.target.astype(np.float64), 1001) if problem.target.size else np.zeros(1001)
        z = np.linspace(-6, 6, 1001) + 1e-3 * np.pi  # next to no kink at a round number
        below, at, above = (np.array(self._run_numpy(z + step, y, values)) for step in (-_STEP, 0.0, _STEP))
        for k, what in ((0, "gradient"), (1, "second derivative")):
            left, right = (at[k] - below[k]) / _STEP, (above[k] - at[k]) / _STEP
            smooth = np.abs(right - left) < 1e-2 * (1 + np.abs(right))
            error = np.abs((left + right) / 2 - at[k + 1]) / (1 + np.abs(at[k + 1]))
            bad = smooth & ~(error < _TOLERANCE * (1 + np.abs(at[k])))
            if bad.any():
                i = int(np.argmax(np.where(bad, error, 0)))
                raise ArithmeticError(
                    f"the {what} of {self.__name__} is {at[k + 1][i]:.9g} at z = {z[i]:.6g}, "
                    f"y = {y[i]:.6g}, but numerically {(left[i] + right[i]) / 2:.9g}"
                )


class RowwiseLoss(_Custom):
    """A loss over an axis of classes: see `fastloss.rowwise`."""

    def __init__(self, function: Callable[..., Any]) -> None:
        symbolic = _symbolic()
        defaults = symbolic.parameters_of(function, _ROW_ARGUMENTS)
        names = tuple(name for name in inspect.signature(function).parameters if name not in defaults)
        super().__init__(function, _ROW_ARGUMENTS, defaults)
        self.formula, symbols = symbolic.trace(function, names, tuple(defaults))
        by_name = dict(zip(names, symbols, strict=True))

        def slope(name: str) -> Any:
            return self.formula.diff(by_name[name]) if name in by_name else 0

        # d log_p = d z_y - sum_c p_c d z_c, and so for p and not_p; d lse = sum_c p_c d z_c.
        p, not_p = symbolic.symbol("p"), symbolic.symbol("not_p")
        through_p = slope("log_p") + p * (slope("p") - slope("not_p"))
        others = slope("lse") - through_p
        target = through_p * not_p + slope("lse") * p + slope("z_target")
        self._source = symbolic.source(_ROW_ARGUMENTS, tuple(defaults), [self.formula, others, target])

    def __call__(
        self,
        logits: Any,
        target: Any,
        *,
        weight: Any = None,
        sample_weight: Any = None,
        ignore_index: Any = -100,
        axis: Any = 1,
        normalizer: Any = None,
        empty: Any = "nan",
        reduction: Any = "mean",
        return_grad: bool = False,
        out_grad: Any = None,
        grad_output: Any = None,
        engine: str | None = None,
        num_threads: Any = None,
        **parameters: Any,
    ) -> Any:
        values = self._parameters(parameters)
        name = self._engine(engine)
        problem = validate.class_loss(
            logits, target, weight=weight, sample_weight=sample_weight, ignore_index=ignore_index,
            axis=axis, normalizer=normalizer, empty=empty,
            reduction=reduction, return_grad=return_grad, out_grad=out_grad, grad_output=grad_output,
            num_threads=num_threads,
        )  # fmt: skip
        if problem.is_probabilities:
            raise TypeError(f"{self.__name__} takes class indices as targets, not probabilities")
        if not self._is_checked:
            self._check(values)
        loss, grad = self._compute(name, problem, values)
        return (loss, grad) if problem.want_grad else loss

    def _compute(self, name: str, problem: Any, values: tuple[float, ...]) -> Any:
        if name == "reference":
            from fastloss.engines import reference

            return reference.rowwise(self._run_numpy, problem, values)
        from fastloss.engines import _numba, numba_custom

        if self._kernel is None:
            self._kernel = numba_custom.rowwise(self._source)
        return _numba.rowwise(self._kernel, problem, values)

    def _check(self, values: tuple[float, ...]) -> None:
        """Compares the gradient with a numeric one, on rows of random logits."""
        self._is_checked = True
        rng = np.random.default_rng(0)
        logits, target = rng.normal(0, 2, (50, 4)), rng.integers(0, 4, 50)
        settings = dict(zip(self.defaults, values, strict=False))
        call: dict[str, Any] = {"reduction": "none", "engine": "reference", **settings}
        _, grad = self(logits, target, return_grad=True, **call)
        for c in range(4):
            step = np.zeros(4)
            step[c] = _STEP
            numeric = (self(logits + step, target, **call) - self(logits - step, target, **call)) / (2 * _STEP)
            error = np.abs(numeric - grad[:, c]) / (1 + np.abs(numeric))
            if not (error < _TOLERANCE).all():
                i = int(np.argmax(error))
                raise ArithmeticError(
                    f"the gradient of {self.__name__} at class {c} of logits {logits[i].round(6).tolist()} with "
                    f"target {target[i]} is {grad[i, c]:.9g}, but numerically {numeric[i]:.9g}"
                )


def _symbolic() -> Any:
    try:
        from fastloss import symbolic
    except ModuleNotFoundError as error:
        if error.name != "sympy":
            raise
        raise ImportError("a custom loss needs SymPy: pip install 'fastloss[numba]'") from error
    return symbolic
