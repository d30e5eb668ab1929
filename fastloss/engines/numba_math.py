"""exp, log1p and relatives for Numba kernels, in float32 and float64, from arithmetic that LLVM makes vectors of.

Numba lowers np.exp to a call a number; a loop over these functions becomes vector code instead. The methods and the
coefficients are those of csrc/vector_math.h (made by csrc/minimax.py). All works in the type of the first argument:
numbers beside it are taken in that type, instead of widening it to float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

# For what other kernels call. Divisions by 0 give infinities: the check for them would keep loops from being vectors.
INLINE = {"forceinline": True, "error_model": "numpy"}


def llvm_type(real: Any) -> Any:
    return ir.FloatType() if real == types.float32 else ir.DoubleType()


def _layout(real: Any) -> tuple[int, int, int]:
    """Bits, bits of the mantissa, and bias of the exponent."""
    return (32, 23, 127) if real == types.float32 else (64, 52, 1023)


def _constant(single: float, double: float) -> Any:
    """A function that gives a number in the type of its argument."""

    @intrinsic
    def constant(typing_context: Any, like: Any) -> Any:
        value = single if like == types.float32 else double
        return like(like), lambda context, builder, signature, args: llvm_type(like)(value)

    return constant


def _fused(builder: Any, a: Any, b: Any, c: Any) -> Any:
    element, lanes = (a.type.element, f"v{a.type.count}") if isinstance(a.type, ir.VectorType) else (a.type, "")
    name = f"llvm.fmuladd.{lanes}{element.intrinsic_name}"
    kind = ir.FunctionType(a.type, [a.type] * 3)
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [a, b, c])


def _polynomial(single: Sequence[str], double: Sequence[str]) -> Any:
    """A function that evaluates a polynomial, its coefficients given from the highest power down to the constant."""

    @intrinsic
    def polynomial(typing_context: Any, x: Any) -> Any:
        coefficients = [float.fromhex(text) for text in (single if x == types.float32 else double)]

        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            value = args[0].type(coefficients[0])
            for coefficient in coefficients[1:]:
                value = _fused(builder, value, args[0], args[0].type(coefficient))
            return value

        return x(x), code

    return polynomial


@intrinsic
def as_real(typing_context: Any, value: Any, like: Any) -> Any:
    """value in the type of `like`."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return context.cast(builder, args[0], signature.args[0], signature.return_type)

    return like(types.unliteral(value), like), code


@intrinsic
def fma(typing_context: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once where the CPU has an instruction for it."""
    return a(a, a, a), lambda context, builder, signature, args: _fused(builder, *args)


@intrinsic
def _power_of_two(typing_context: Any, t: Any) -> Any:
    """2^n, from t = n + bias + 1.5 * 2^mantissa bits: n and the bias stand in the low bits of t."""
    bits, mantissa, _ = _layout(t)

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        integer = ir.IntType(bits)
        return builder.bitcast(builder.shl(builder.bitcast(args[0], integer), integer(mantissa)), llvm_type(t))

    return t(t), code


@intrinsic
def _log_split(typing_context: Any, u: Any) -> Any:
    """(k, m) with u = 2^k m, m in [sqrt(1/2), sqrt(2))."""
    bits, mantissa, bias = _layout(u)
    sqrt_half, one = (0x3F3504F3, 0x3F800000) if bits == 32 else (0x3FE6A09E667F3BCD, 0x3FF0000000000000)

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        integer = ir.IntType(bits)
        shifted = builder.add(builder.bitcast(args[0], integer), integer(one - sqrt_half))
        exponent = builder.sub(builder.ashr(shifted, integer(mantissa)), integer(bias))
        rest = builder.add(builder.and_(shifted, integer((1 << mantissa) - 1)), integer(sqrt_half))
        values = [builder.sitofp(exponent, llvm_type(u)), builder.bitcast(rest, llvm_type(u))]
        return context.make_tuple(builder, signature.return_type, values)

    return types.UniTuple(u, 2)(u), code


@intrinsic
def wide_vectors(typing_context: Any) -> Any:
    """Has the function that calls this use all of a vector register, as AVX-512 code does not by default.

    It then stays a function of its own: what it was inlined into would decide.
    """

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        attributes = builder.function.attributes
        attributes.discard("alwaysinline")
        attributes.add("noinline")
        set.add(attributes, '"prefer-vector-width"="512"')  # add() itself knows no attributes of targets
        return context.get_dummy_value()

    return types.none(), code


# ---- Exponentials and logarithms ------------------------------------------------------------------------------------

# x = n ln 2 + r. Adding 1.5 * 2^mantissa rounds to an integer, and leaves n with the exponent's bias in the low bits.
# Exponentials scaled by 2^24 and 2^53 stay normal numbers wherever e^x is not zero.
_PER_LN2_PAIR = float.fromhex("0x1.715476p+0"), float.fromhex("0x1.71547652b82fep+0")
_LN2_UPPER_PAIR = float.fromhex("0x1.63p-1"), float.fromhex("0x1.62e42feep-1")
_LN2_LOWER_PAIR = float.fromhex("-0x1.bd0106p-13"), float.fromhex("0x1.a39ef35793c76p-33")
_EXP_ROUND_PAIR = 1.5 * 2**23 + 127 + 24, 1.5 * 2**52 + 1023 + 53
_EXP_LOWEST_PAIR = -151 / 1.44269502, -1076 / 1.4426950408889634
_PER_LN2 = _constant(*_PER_LN2_PAIR)
_LN2_UPPER = _constant(*_LN2_UPPER_PAIR)
_LN2_LOWER = _constant(*_LN2_LOWER_PAIR)
_EXP_ROUND_UNSCALED = _constant(1.5 * 2**23 + 127, 1.5 * 2**52 + 1023)
_EXP_LOWEST_UNSCALED = _constant(-127 / 1.44269502, -1023 / 1.4426950408889634)
SCALE_DOWN = _constant(2.0**-24, 2.0**-53)
LOWEST = _constant(-3.4028234663852886e38, -1.7976931348623157e308)

_EXP_TAIL_PAIR = (
    ["0x1.6a23d2p-10", "0x1.123a26p-7", "0x1.5558f4p-5", "0x1.555490p-3", "0x1.fffffcp-2", "0x1p0"],
    [
        "0x1.ad7f457020b3fp-26", "0x1.28ad9def2129fp-22", "0x1.71df25b33092ap-19", "0x1.a01999dfd5278p-16",
        "0x1.a01a012a0d266p-13", "0x1.6c16c184399bfp-10", "0x1.1111111127d1bp-7", "0x1.555555555083ap-5",
        "0x1.55555555554f9p-3", "0x1.000000000000ap-1", "0x1p0",
    ],
)  # fmt: skip
_exp_tail = _polynomial(*_EXP_TAIL_PAIR)

# log(1 + f) = f - (f^2 / 2 - s (f^2 / 2 + R(s^2))) with s = f / (2 + f)
_log_tail = _polynomial(
    ["0x1.31e2c6p-2", "0x1.995ec0p-2", "0x1.55557ap-1", "0x0p0"],
    [
        "0x1.2f071e68b62b2p-3", "0x1.39a195775ba1ep-3", "0x1.746640143a4bfp-3", "0x1.c71c52050dca6p-3",
        "0x1.24924941f4a16p-2", "0x1.999999997fd9bp-2", "0x1.5555555555592p-1", "0x0p0",
    ],
)  # fmt: skip

# log(1 + u) = u - u^2 Q(u) on [0, 1]
_log1p_unit_tail = _polynomial(
    [
        "0x1.b2f010p-9", "-0x1.4b0542p-6", "0x1.d8607ep-5", "-0x1.b5787cp-4", "0x1.3a7a26p-3", "-0x1.935c82p-3",
        "0x1.ff26dcp-3", "-0x1.554df0p-2", "0x1.ffffd2p-2",
    ],
    ["0x0p0"],
)  # fmt: skip


def exp_scaled_code(builder: Any, x: Any) -> Any:
    """Code for exp_scaled of a number or a vector."""
    real, lanes = (x.type.element, x.type.count) if isinstance(x.type, ir.VectorType) else (x.type, 0)
    is_double = real == ir.DoubleType()
    integer = ir.IntType(64 if is_double else 32)

    def every(kind: Any, value: Any) -> Any:
        return ir.VectorType(kind, lanes)([value] * lanes) if lanes else kind(value)

    def number(pair: tuple[float, float]) -> Any:
        return every(real, pair[is_double])

    def minus(value: Any) -> Any:
        return builder.fsub(every(real, -0.0), value)

    lowest, rounding = number(_EXP_LOWEST_PAIR), number(_EXP_ROUND_PAIR)
    x = builder.select(builder.fcmp_ordered("<", x, lowest), lowest, x)
    t = _fused(builder, x, number(_PER_LN2_PAIR), rounding)
    minus_n = minus(builder.fsub(t, rounding))
    r = _fused(builder, minus_n, number(_LN2_UPPER_PAIR), x)
    r = _fused(builder, minus_n, number(_LN2_LOWER_PAIR), r)
    bits = builder.bitcast(t, ir.VectorType(integer, lanes) if lanes else integer)
    power = builder.bitcast(builder.shl(bits, every(integer, 52 if is_double else 23)), x.type)
    tail = [every(real, float.fromhex(text)) for text in _EXP_TAIL_PAIR[is_double]]
    value = tail[0]
    for coefficient in tail[1:]:
        value = _fused(builder, value, r, coefficient)
    return _fused(builder, builder.fmul(value, r), power, power)


@intrinsic
def exp_scaled(typing_context: Any, x: Any) -> Any:
    """e^x 2^24 in float32, e^x 2^53 in float64: exactly 0 for -inf, NaN for NaN. The caller keeps x below 60."""
    return x(x), lambda context, builder, signature, args: exp_scaled_code(builder, args[0])


@njit(**INLINE)
def exp(x):
    """e^x. The caller keeps x below 60."""
    return exp_scaled(x) * SCALE_DOWN(x)


@njit(**INLINE)
def exp_and_rest(x):
    """e^x, and 1 - e^x with all its digits, for x <= 0."""
    lowest = _EXP_LOWEST_UNSCALED(x)
    x = lowest if x < lowest else x
    t = fma(x, _PER_LN2(x), _EXP_ROUND_UNSCALED(x))
    n = t - _EXP_ROUND_UNSCALED(x)
    r = fma(-n, _LN2_UPPER(x), x)
    r = fma(-n, _LN2_LOWER(x), r)
    power = _power_of_two(t)
    tail = _exp_tail(r) * r
    return fma(tail, power, power), fma(-tail, power, as_real(1.0, x) - power)


@njit(**INLINE)
def log1p(x):
    """log(1 + x) for finite x > -1/2. 1 + x = u + c with u rounded; u = 2^k (1 + f)."""
    one = as_real(1.0, x)
    half = as_real(0.5, x)
    u = one + x
    x_in_u = u - one
    c = ((one - (u - x_in_u)) + (x - x_in_u)) / u
    k, m = _log_split(u)
    f = m - one
    s = f / (one + one + f)
    half_square = half * (f * f)
    tail = fma(s, half_square + _log_tail(s * s), fma(k, _LN2_LOWER(x), c))
    # NaN has no exponent to split off: x - x keeps it.
    return fma(k, _LN2_UPPER(x), f - (half_square - tail)) + (x - x)


@njit(**INLINE)
def log1p_unit(u):
    """log(1 + u) for u in [0, 1]."""
    return _log1p_unit_of(u)


@intrinsic
def _is_single(typing_context: Any, x: Any) -> Any:
    single = x == types.float32
    return types.boolean(x), lambda context, builder, signature, args: ir.IntType(1)(single)


@njit(**INLINE)
def _log1p_unit_of(u):
    if _is_single(u):
        return fma(-(u * u), _log1p_unit_tail(u), u)
    return log1p(u)


# ---- What formulas of custom losses are made of; all for any x -------------------------------------------------------

_EXP_FAR = _constant(44.0, 350.0)
_EXP_OF_FAR = _constant(math.exp(44.0), math.exp(350.0))
_EXP_BEYOND = _constant(50.0, 400.0)


@njit(**INLINE)
def exp_any(x):
    """e^x: far above 0 as a product, which overflows to infinity where e^x does."""
    one = as_real(1.0, x)
    zero = as_real(0.0, x)
    is_far = x > _EXP_FAR(x)
    near = x - (_EXP_FAR(x) if is_far else zero)
    near = _EXP_BEYOND(x) if near > _EXP_BEYOND(x) else near
    return exp(near) * (_EXP_OF_FAR(x) if is_far else one)


@njit(**INLINE)
def log1p_any(x):
    """log(1 + x): NaN below -1, -inf at -1, inf at inf."""
    infinity = as_real(np.inf, x)
    result = log1p(x)
    result = -infinity if x == -1 else result
    result = infinity if x == infinity else result
    return as_real(np.nan, x) if x < -1 else result


_TINY = _constant(2.0**-126, 2.0**-1022)
_FROM_TINY = _constant(2.0**24, 2.0**54)
_LOG_TINY = _constant(24 * math.log(2), 54 * math.log(2))


@njit(**INLINE)
def log(x):
    """log(x): NaN below 0, -inf at 0, inf at inf."""
    one = as_real(1.0, x)
    zero = as_real(0.0, x)
    infinity = as_real(np.inf, x)
    is_tiny = x < _TINY(x)
    k, m = _log_split(x * (_FROM_TINY(x) if is_tiny else one))
    f = m - one
    s = f / (one + one + f)
    half_square = as_real(0.5, x) * (f * f)
    tail = fma(s, half_square + _log_tail(s * s), k * _LN2_LOWER(x))
    result = fma(k, _LN2_UPPER(x), f - (half_square - tail)) - (_LOG_TINY(x) if is_tiny else zero)
    result = -infinity if x == 0 else result
    result = infinity if x == infinity else result
    result = as_real(np.nan, x) if x < 0 else result
    return x if x != x else result


@njit(**INLINE)
def power_of_unit(x, a):
    """x^a for x in [0, 1] and a >= 0, where 0^0 = 1."""
    if a == 2:
        return x * x
    if a == 1:
        return x
    lowest = LOWEST(x)
    log_x = log(x)
    return exp(as_real(a, x) * (lowest if log_x < lowest else log_x))


@njit(**INLINE)
def sigmoid(x):
    one = as_real(1.0, x)
    u = exp(-abs(x))
    return (u if x < 0 else one) / (one + u)


@njit(**INLINE)
def log_sigmoid(x):
    return (x if x < 0 else as_real(0.0, x)) - log1p_unit(exp(-abs(x)))


@njit(**INLINE)
def softplus(x):
    return (as_real(0.0, x) if x < 0 else x) + log1p_unit(exp(-abs(x)))


@njit(**INLINE)
def tanh(x):
    u, rest = exp_and_rest(-(abs(x) + abs(x)))
    value = rest / (as_real(1.0, x) + u)
    return -value if x < 0 else value


@njit(**INLINE)
def tanh_slope(x):
    """1 - tanh(x)^2, which does not cancel."""
    u = exp(-(abs(x) + abs(x)))
    inverse = as_real(1.0, x) / (as_real(1.0, x) + u)
    return as_real(4.0, x) * u * (inverse * inverse)


@njit(**INLINE)
def sqrt(x):
    return np.sqrt(x)


@njit(**INLINE)
def absolute(x):
    return abs(x)


@njit(**INLINE)
def sign(x):
    one = as_real(1.0, x)
    zero = as_real(0.0, x)
    return x if x != x else (one if x > 0 else zero) - (one if x < 0 else zero)


@njit(**INLINE)
def power(x, y):
    return x**y


@njit(**INLINE)
def power_slope(x, y):
    """y x^(y - 1), and 0 for y = 0."""
    return as_real(0.0, x) if y == 0 else y * x ** (y - as_real(1.0, x))


@njit(**INLINE)
def select_less(a, b, x, y):
    return x if a < b else y


@njit(**INLINE)
def select_less_equal(a, b, x, y):
    return x if a <= b else y


@njit(**INLINE)
def zero_times(factor, x):
    """x, but where the factor is 0 a number even for an infinite x, so that their product is 0. NaN stays."""
    highest = -LOWEST(x)
    return highest if (factor == 0) & (x > highest) else x
