"""Formulas as SymPy expressions: functions with stable derivatives, and source code for loss and derivatives.

The functions have rules of their own, instead of SymPy's, so that nothing is rewritten into a form that overflows: the
derivative of softplus is sigmoid, never exp / (1 + exp)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import sympy as sp


class _Real(sp.Function):
    is_real = True
    is_commutative = True


class exp(_Real):
    nargs = 1

    def fdiff(self, argindex: int = 1) -> Any:
        return exp(self.args[0])


class log(_Real):
    nargs = 1

    def fdiff(self, argindex: int = 1) -> Any:
        return 1 / self.args[0]


class log1p(_Real):
    nargs = 1

    def fdiff(self, argindex: int = 1) -> Any:
        return 1 / (1 + self.args[0])


class sqrt(_Real):
    nargs = 1

    def fdiff(self, argindex: int = 1) -> Any:
        return 1 / (2 * sqrt(self.args[0]))


class tanh(_Real):
    nargs = 1

    def fdiff(self, argindex: int = 1) -> Any:
        return tanh_slope(self.args[0])


class tanh_slope(_Real):
    """1 - tanh^2."""

    nargs = 1

    def fdiff(self, argindex: int = 1) -> Any:
        return -2 * tanh(self.args[0]) * tanh_slope(self.args[0])


class sigmoid(_Real):
    nargs = 1

    def fdiff(self, argindex: int = 1) -> Any:
        return sigmoid(self.args[0]) * sigmoid(-self.args[0])


class log_sigmoid(_Real):
    nargs = 1

    def fdiff(self, argindex: int = 1) -> Any:
        return sigmoid(-self.args[0])


class softplus(_Real):
    nargs = 1

    def fdiff(self, argindex: int = 1) -> Any:
        return sigmoid(self.args[0])


class absolute(_Real):
    nargs = 1

    def fdiff(self, argindex: int = 1) -> Any:
        return sign(self.args[0])


class sign(_Real):
    nargs = 1

    def fdiff(self, argindex: int = 1) -> Any:
        return sp.S.Zero


class power(_Real):
    """x^a, for any a but an integer: SymPy would leave x^a / x in its derivative, which is 0 / 0 at 0."""

    nargs = 2

    def fdiff(self, argindex: int = 1) -> Any:
        x, a = self.args
        return power_slope(x, a) if argindex == 1 else self * log(x)


class power_slope(_Real):
    """a x^(a - 1), and 0 for a = 0."""

    nargs = 2

    def fdiff(self, argindex: int = 1) -> Any:
        x, a = self.args
        return a * power_slope(x, a - 1) if argindex == 1 else power(x, a - 1) * (1 + a * log(x))


class _Select(_Real):
    """Of (a, b, x, y): x where a and b compare so, else y."""

    nargs = 4

    def fdiff(self, argindex: int = 1) -> Any:
        a, b = self.args[:2]
        return {3: self.func(a, b, 1, 0), 4: self.func(a, b, 0, 1)}.get(argindex, sp.S.Zero)


class select_less(_Select):
    pass


class select_less_equal(_Select):
    pass


def maximum(x: Any, y: Any) -> Any:
    return select_less(x, y, y, x)


def minimum(x: Any, y: Any) -> Any:
    return select_less(y, x, y, x)


def where(condition: Any, x: Any, y: Any) -> Any:
    if condition in (True, False, sp.true, sp.false):
        return x if condition in (True, sp.true) else y
    match condition:
        case sp.StrictLessThan() | sp.StrictGreaterThan():
            return select_less(condition.lts, condition.gts, x, y)
        case sp.LessThan() | sp.GreaterThan():
            return select_less_equal(condition.lts, condition.gts, x, y)
        case sp.Eq():
            return where(condition.lhs <= condition.rhs, where(condition.lhs >= condition.rhs, x, y), y)
        case sp.Ne():
            return where(sp.Eq(*condition.args), y, x)
        case sp.And():
            for part in condition.args:
                x = where(part, x, y)
            return x
        case sp.Or():
            for part in condition.args:
                y = where(part, x, y)
            return y
        case sp.Not():
            return where(condition.args[0], y, x)
    raise TypeError(f"the condition of where must be a comparison, not {condition}")


FUNCTIONS = (
    exp, log, log1p, sqrt, tanh, tanh_slope, sigmoid, log_sigmoid, softplus, absolute, sign, power, power_slope,
    select_less, select_less_equal,
)  # fmt: skip


# ---- From a Python function to expressions --------------------------------------------------------------------------


def symbol(name: str) -> Any:
    return sp.Symbol(name, real=True)


def trace(function: Callable[..., Any], variables: Sequence[str], parameters: Sequence[str]) -> tuple[Any, list[Any]]:
    """The expression of function(*variables, **parameters), and the variables' symbols."""
    name = function.__name__
    symbols = [symbol(variable) for variable in variables]
    keywords = {parameter: symbol(parameter) for parameter in parameters}
    try:
        expression = function(*symbols, **keywords)
    except TypeError as error:
        if "truth value" in str(error):
            raise TypeError(
                f"{name} branches on its arguments with if, and, or, not, min or max, which can't be differentiated: "
                "use fastloss.math.where, maximum and minimum, and join conditions by & and |"
            ) from error
        if "loop of ufunc" in str(error) or "Cannot convert expression to float" in str(error):
            raise TypeError(
                f"{name} calls a function that knows no formulas ({error}): use those of fastloss.math"
            ) from error
        raise
    try:
        expression = sp.sympify(expression)
    except sp.SympifyError:
        expression = None
    if not isinstance(expression, sp.Expr):
        raise TypeError(f"{name} must return a formula of its arguments, not {expression!r}")
    return _own_functions(expression, name), symbols


def _own_functions(expression: Any, name: str) -> Any:
    """SymPy's functions that Python's operators make, as those above; others are errors."""
    expression = expression.replace(sp.Abs, absolute).replace(sp.sign, sign).replace(sp.exp, exp).replace(sp.log, log)
    expression = expression.replace(sp.tanh, tanh)
    expression = expression.replace(
        lambda part: part.is_Pow and not part.exp.is_Integer,
        lambda part: sqrt(part.base) if part.exp == sp.Rational(1, 2) else power(part.base, part.exp),
    )
    # Both overflow, and their derivatives divide infinity by infinity, where softplus does neither.
    any_x = sp.Wild("any_x")
    expression = expression.replace(log1p(exp(any_x)), softplus(any_x)).replace(log(1 + exp(any_x)), softplus(any_x))
    for part in sp.preorder_traversal(expression):
        if isinstance(part, sp.Function) and not isinstance(part, FUNCTIONS):
            raise TypeError(
                f"{name} uses {part.func.__name__}, which fastloss can't differentiate: use the functions of "
                f"fastloss.math"
            )
        if isinstance(part, (sp.Integral, sp.Sum, sp.Product, sp.Derivative)) or part in (sp.zoo, sp.nan, sp.I):
            raise TypeError(f"{name} holds {part}, which is no formula of real numbers")
    return expression


def parameters_of(function: Callable[..., Any], positional: int | Sequence[str]) -> dict[str, float]:
    """The keyword parameters of a formula and their defaults; TypeError for a signature of another kind."""
    name, signature = getattr(function, "__name__", repr(function)), inspect.signature(function)
    defaults: dict[str, float] = {}
    given = []
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY:
            if parameter.default is parameter.empty or isinstance(parameter.default, bool):
                raise TypeError(f"{name}'s parameter {parameter.name!r} needs a number as its default")
            try:
                defaults[parameter.name] = float(parameter.default)
            except (TypeError, ValueError):
                raise TypeError(
                    f"{name}'s parameter {parameter.name!r} needs a number as its default, not {parameter.default!r}"
                ) from None
        elif parameter.kind is parameter.POSITIONAL_OR_KEYWORD and parameter.default is parameter.empty:
            given.append(parameter.name)
        else:
            raise TypeError(f"{name}'s argument {parameter.name!r} must be plain, or keyword-only with a default")
    if isinstance(positional, int):
        if len(given) != positional:
            raise TypeError(f"{name} takes {len(given)} plain arguments, expected {positional}: a logit and its target")
    else:
        unknown = [each for each in given if each not in positional]
        if unknown or not given:
            raise TypeError(
                f"{name}'s plain arguments are {', '.join(given) or 'none'}: expected some of {', '.join(positional)}"
            )
    return defaults


# ---- From expressions to source code --------------------------------------------------------------------------------


def source(arguments: Sequence[str], parameters: Sequence[str], results: Sequence[Any]) -> str:
    """Python source of element(*arguments, parameters) -> results, in the first argument's type."""
    lines = [f"def element({', '.join(arguments)}, parameters):"]
    lines += [f"    {name} = as_real(parameters[{i}], {arguments[0]})" for i, name in enumerate(parameters)]
    shared, reduced = sp.cse(list(results), symbols=sp.numbered_symbols("_shared"), optimizations=None)
    lines += [f"    {symbol} = {_code(value, arguments[0])}" for symbol, value in shared]
    lines += [f"    return ({', '.join(_code(value, arguments[0]) for value in reduced)},)"]
    return "\n".join(lines) + "\n"


def _code(expression: Any, like: str) -> str:
    if expression.is_Symbol:
        return str(expression.name)
    if expression.is_Number or expression.is_NumberSymbol:
        return f"as_real({float(expression)!r}, {like})"
    if expression.is_Add:
        return "(" + " + ".join(_code(part, like) for part in expression.args) + ")"
    if expression.is_Mul:
        above = [part for part in expression.args if not _is_reciprocal(part)]
        below = [1 / part for part in expression.args if _is_reciprocal(part)]
        numerator = " * ".join(_code(part, like) for part in above) or f"as_real(1.0, {like})"
        if not below:
            return f"({numerator})"
        return f"(({numerator}) / ({' * '.join(_code(part, like) for part in below)}))"
    if expression.is_Pow:
        base, exponent = expression.args
        if _is_reciprocal(expression):
            return f"(as_real(1.0, {like}) / {_code(1 / expression, like)})"
        if exponent.is_Integer and exponent <= 8:
            return "(" + " * ".join([_code(base, like)] * int(exponent)) + ")"
        return f"power({_code(base, like)}, {_code(exponent, like)})"
    if isinstance(expression, FUNCTIONS):
        return f"{type(expression).__name__}({', '.join(_code(part, like) for part in expression.args)})"
    raise TypeError(f"the derivative holds {expression}, for which fastloss has no code")


def _is_reciprocal(expression: Any) -> bool:
    return bool(expression.is_Pow and expression.args[1].is_number and expression.args[1].is_negative)
