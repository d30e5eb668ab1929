"""Loops for Numba kernels that are written as vectors: where LLVM would not make vectors of a loop, or would choose an
order of sums, which need not be the same every time it compiles."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastloss.engines.numba_math import exp_scaled_code, llvm_type

# A register's of AVX-512.
WIDEST_BITS = 512
# As many vectors are taken at a time, so that one sum need not wait for another.
AT_ONCE = 4
# Vectors between what is read and what is fetched meanwhile.
FETCHED = 32

_OfTwo = Callable[[Any, Any], Any]


def _has_masks(context: Any) -> bool:
    """Whether the CPU has AVX-512, and so loads and stores parts of vectors as fast as whole ones."""
    _, _, features = context.codegen().magic_tuple()
    return "+avx512f" in features


def _lanes(context: Any, real: Any) -> int:
    """Elements of a vector, which is as wide as AVX-512's or AVX2's; where registers are shorter, several hold it."""
    return WIDEST_BITS // (1 if _has_masks(context) else 2) // int(real.bitwidth)


class _Array:
    """One of an intrinsic's arguments."""

    def __init__(self, context: Any, builder: Any, kind: Any, value: Any) -> None:
        self.builder = builder
        self.real = llvm_type(kind.dtype)
        self.bytes = kind.dtype.bitwidth // 8
        self.has_masks = _has_masks(context)
        self.lanes = _lanes(context, kind.dtype)
        self.vector = ir.VectorType(self.real, self.lanes)
        array = context.make_array(kind)(context, builder, value)
        self.data = array.data
        self.size = cgutils.unpack_tuple(builder, array.shape)[0]
        # Elements that don't follow one another are brought together one by one.
        self.stride = None if kind.layout == "C" else cgutils.unpack_tuple(builder, array.strides)[0]

    def at(self, i: Any, kind: Any = None) -> Any:
        """The address of element i, as one of this type."""
        if self.stride is None:
            address = self.builder.gep(self.data, [i])
        else:
            address = cgutils.pointer_add(self.builder, self.data, self.builder.mul(i, self.stride), self.data.type)
        return address if kind is None else self.builder.bitcast(address, kind.as_pointer())

    def splat(self, value: Any) -> Any:
        """It in every lane."""
        every = ir.VectorType(ir.IntType(32), self.lanes)([0] * self.lanes)
        value = self.builder.insert_element(self.vector(ir.Undefined), value, ir.IntType(32)(0))
        return self.builder.shuffle_vector(value, value, every)

    def load(self, i: Any, part: Any = None, otherwise: float = 0.0) -> Any:
        """A vector from element i on; where `part` is given, with that number of elements."""
        builder = self.builder
        if self.stride is not None:
            return self._gather(i, part, otherwise)
        if part is None:
            return builder.load(self.at(i, self.vector), align=self.bytes)
        rest = self.vector([otherwise] * self.lanes)
        return self._masked(
            "load", self.vector, [self.at(i, self.vector), ir.IntType(32)(self.bytes), self._mask(part), rest]
        )

    def store(self, value: Any, i: Any, part: Any = None) -> None:
        """The other way."""
        if self.stride is not None:
            self._scatter(value, i, part)
        elif part is None:
            self.builder.store(value, self.at(i, self.vector), align=self.bytes)
        elif self.has_masks:
            pointer = self.at(i, self.vector)
            self._masked("store", ir.VoidType(), [value, pointer, ir.IntType(32)(self.bytes), self._mask(part)])
        else:  # AVX2 has masked stores, which take AMD's processors longer than these
            builder, zero = self.builder, ir.IntType(32)(0)
            lanes = cgutils.alloca_once(builder, ir.ArrayType(self.real, self.lanes))
            builder.store(value, builder.bitcast(lanes, self.vector.as_pointer()), align=self.bytes)
            with cgutils.for_range(builder, part, intp=part.type) as loop:
                lane = builder.load(builder.gep(lanes, [zero, loop.index]))
                builder.store(lane, self.at(builder.add(i, loop.index)))

    def fetch(self, i: Any, to_write: bool) -> None:
        """Asks for the cache line of element i, which may lie past the end."""
        pointer = self.builder.bitcast(self.at(i), cgutils.voidptr_t)
        int32 = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, int32, int32, int32])
        function = cgutils.get_or_insert_function(self.builder.module, kind, "llvm.prefetch.p0")
        self.builder.call(function, [pointer, int32(int(to_write)), int32(3), int32(1)])

    def only(self, value: Any, part: Any) -> Any:
        """value in the first lanes, `part` in number, and 0 in the others."""
        return self.builder.select(self._mask(part), value, self.vector([0.0] * self.lanes))

    def without(self, value: Any, lane: Any) -> Any:
        """value, but 0 in this lane."""
        return self.builder.select(self._compare("!=", lane), value, self.vector([0.0] * self.lanes))

    def _mask(self, part: Any) -> Any:
        """Which lanes are among so many."""
        return self._compare("<", part)

    def _compare(self, how: str, number: Any) -> Any:
        """Which lanes' numbers are less than this one, or another."""
        integers = ir.VectorType(ir.IntType(32), self.lanes)
        number = self.builder.insert_element(
            integers(ir.Undefined), self.builder.trunc(number, ir.IntType(32)), ir.IntType(32)(0)
        )
        number = self.builder.shuffle_vector(number, number, integers([0] * self.lanes))
        return self.builder.icmp_unsigned(how, integers([*range(self.lanes)]), number)

    def _masked(self, name: str, result: Any, args: list[Any]) -> Any:
        kind = ir.FunctionType(result, [value.type for value in args])
        name = f"llvm.masked.{name}.v{self.lanes}{self.real.intrinsic_name}.p0"
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), args)

    def _gather(self, i: Any, part: Any, otherwise: float) -> Any:
        builder, last = self.builder, self.builder.sub(self.size, self.size.type(1))
        values = self.vector(ir.Undefined)
        for lane in range(self.lanes):
            at = builder.add(i, i.type(lane))
            at = builder.select(builder.icmp_signed("<", at, last), at, last)
            values = builder.insert_element(values, builder.load(self.at(at)), ir.IntType(32)(lane))
        rest = self.vector([otherwise] * self.lanes)
        return values if part is None else builder.select(self._mask(part), values, rest)

    def _scatter(self, value: Any, i: Any, part: Any) -> None:
        builder = self.builder
        for lane in range(self.lanes):
            inside = ir.IntType(1)(1) if part is None else builder.icmp_unsigned("<", i.type(lane), part)
            with builder.if_then(inside):
                one = builder.extract_element(value, ir.IntType(32)(lane))
                builder.store(one, self.at(builder.add(i, i.type(lane))))


def _arrays(context: Any, builder: Any, signature: Any, args: Any) -> list[_Array]:
    return [
        _Array(context, builder, kind, value)
        for kind, value in zip(signature.args, args, strict=True)
        if isinstance(kind, types.Array)
    ]


def _each(builder: Any, x: _Array, do: Callable[[int, Any, Any], None]) -> None:
    """do(k, i, part) for each vector of x, the k-th of those taken at once, from element i on. part is None, or the
    number of the last one's elements."""
    count, lanes = x.size.type, x.lanes
    rest = builder.urem(x.size, count(lanes))
    of_steps = builder.sub(x.size, builder.urem(x.size, count(lanes * AT_ONCE)))
    of_vectors = builder.sub(x.size, rest)
    with cgutils.for_range_slice(builder, count(0), of_steps, count(lanes * AT_ONCE)) as (i, _):
        for k in range(AT_ONCE):
            do(k, builder.add(i, count(k * lanes)), None)
    with cgutils.for_range_slice(builder, of_steps, of_vectors, count(lanes)) as (i, _):
        do(0, i, None)
    with builder.if_then(builder.icmp_unsigned(">", rest, count(0))):
        do(AT_ONCE - 1, of_vectors, rest)


def _reduced(builder: Any, x: _Array, real: Any, start: float, combine: _OfTwo, term: _OfTwo) -> Any:
    """What combine() makes of all terms, beginning with `start`: see _total_of."""
    vector = ir.VectorType(real, x.lanes)
    result = cgutils.alloca_once(builder, vector)
    fits = builder.icmp_unsigned("<=", x.size, x.size.type(x.lanes))
    with builder.if_else(fits) as (one_vector, several):
        with one_vector:
            builder.store(term(x.size.type(0), x.size), result)
        with several:
            results = [cgutils.alloca_once_value(builder, vector([start] * x.lanes)) for _ in range(AT_ONCE)]

            def add(k: int, i: Any, part: Any) -> None:
                value = term(i, part)
                builder.store(combine(builder.load(results[k]), value), results[k])

            _each(builder, x, add)
            values = [builder.load(result) for result in results]
            while len(values) > 1:
                values = [combine(*values[k : k + 2]) for k in range(0, len(values), 2)]
            builder.store(values[0], result)
    return _across(builder, builder.load(result), combine)


def _across(builder: Any, vector: Any, combine: _OfTwo) -> Any:
    """What combine() makes of all lanes."""
    lanes = vector.type.count
    while lanes > 1:
        lanes //= 2
        indices = ir.VectorType(ir.IntType(32), lanes)
        vector = combine(*(builder.shuffle_vector(vector, vector, indices([*range(k, k + lanes)])) for k in (0, lanes)))
    return builder.extract_element(vector, ir.IntType(32)(0))


def _total_of(builder: Any, x: _Array, real: Any, term: _OfTwo) -> Any:
    """The sum of term(i, part), vectors from element i on of something as long as x. part is None, or how many elements
    the last vector has; the others of its term are 0."""
    return _reduced(builder, x, real, 0.0, builder.fadd, term)


def _larger(builder: Any) -> _OfTwo:
    return lambda a, b: builder.select(builder.fcmp_ordered(">", b, a), b, a)


def _largest(builder: Any, x: _Array) -> Any:
    return _reduced(builder, x, x.real, -math.inf, _larger(builder), lambda i, part: x.load(i, part, -math.inf))


@intrinsic
def largest(typing_context: Any, x: Any) -> Any:
    """The maximum of at least one element; NaN or anything where there is NaN."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _largest(builder, *_arrays(context, builder, signature, args))

    return x.dtype(x), code


@intrinsic
def total(typing_context: Any, x: Any) -> Any:
    """The sum of at most a block, in the values' type."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        (values,) = _arrays(context, builder, signature, args)
        return _total_of(builder, values, values.real, values.load)

    return x.dtype(x), code


@intrinsic
def total_in_double(typing_context: Any, x: Any) -> Any:
    """The sum of any number of elements, added up in double."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        (values,) = _arrays(context, builder, signature, args)
        double = ir.DoubleType()

        def term(i: Any, part: Any) -> Any:
            value = values.load(i, part)
            return value if values.real == double else builder.fpext(value, ir.VectorType(double, values.lanes))

        return _total_of(builder, values, double, term)

    return types.float64(x), code


@intrinsic
def total_of_products(typing_context: Any, x: Any, y: Any) -> Any:
    """The sum of x y, in their type."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        a, b = _arrays(context, builder, signature, args)
        return _total_of(builder, a, a.real, lambda i, part: builder.fmul(a.load(i, part), b.load(i, part)))

    return x.dtype(x, y), code


def _exponentials(builder: Any, z: _Array, shift: Any, y: Any, e: _Array, i: Any, part: Any, x: Any) -> Any:
    """A vector of them, stored in e, from logits x."""
    limit = z.vector([60.0] * z.lanes)
    x = builder.fsub(x, shift)
    x = builder.select(builder.fcmp_ordered(">", x, limit), limit, x)
    result = cgutils.alloca_once_value(builder, exp_scaled_code(builder, x))
    lane = builder.sub(y, i)
    with builder.if_then(builder.icmp_unsigned("<", lane, i.type(e.lanes)), likely=False):
        builder.store(e.without(builder.load(result), lane), result)
    value = builder.load(result)
    e.store(value, i, part)
    return value


def _sum_of_exponentials(builder: Any, z: _Array, reference: Any, y: Any, e: _Array) -> Any:
    shift = z.splat(reference)

    def term(i: Any, part: Any) -> Any:
        if part is None:
            ahead = builder.add(i, i.type(FETCHED * z.lanes))
            z.fetch(ahead, False)
            e.fetch(ahead, True)
        return _exponentials(builder, z, shift, y, e, i, part, z.load(i, part, -math.inf))

    return _total_of(builder, z, z.real, term)


@intrinsic
def exponentials(typing_context: Any, z: Any, reference: Any, y: Any, e: Any) -> Any:
    """e = scaled exponentials of z - reference, where that is below 60, but 0 at y; returns their sum."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        logits, out = _arrays(context, builder, signature, args)
        return _sum_of_exponentials(builder, logits, args[1], args[2], out)

    return z.dtype(z, z.dtype, types.intp, e), code


@intrinsic
def room(typing_context: Any, count: Any, like: Any) -> Any:
    """The length of the array that exponentials_below_largest writes for so many logits."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if _has_masks(context):
            return args[0]
        lanes = args[0].type(_lanes(context, like))
        return builder.mul(builder.udiv(builder.add(args[0], builder.sub(lanes, lanes.type(1))), lanes), lanes)

    return types.intp(types.intp, like), code


@intrinsic
def exponentials_below_largest(typing_context: Any, z: Any, y: Any, e: Any) -> Any:
    """(The maximum, the sum of e): e = scaled exponentials of z less the maximum, but 0 at y. e is as long as
    `room` says."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        logits, out = _arrays(context, builder, signature, args)
        top, total = cgutils.alloca_once(builder, logits.real), cgutils.alloca_once(builder, logits.real)
        size, y = logits.size, args[1]
        count, lanes = size.type, logits.lanes

        def in_registers(vectors: int) -> None:
            """A row of so many vectors."""
            parts = [(count(k * lanes), None) for k in range(vectors - 1)]
            parts.append((count((vectors - 1) * lanes), builder.sub(size, count((vectors - 1) * lanes))))
            logits.fetch(count(FETCHED * lanes), False)
            x = [logits.load(i, part, -math.inf) for i, part in parts]
            m = _across(builder, functools.reduce(_larger(builder), x), _larger(builder))
            shift = logits.splat(m)
            e = [exp_scaled_code(builder, builder.fsub(vector, shift)) for vector in x]
            e = [out.without(vector, builder.sub(y, i)) for vector, (i, _) in zip(e, parts, strict=True)]
            for vector, (i, part) in zip(e, parts, strict=True):
                out.store(vector, i, part if out.has_masks else None)
            builder.store(m, top)
            builder.store(_across(builder, functools.reduce(builder.fadd, e), builder.fadd), total)

        def from_memory() -> None:
            m = _largest(builder, logits)
            builder.store(m, top)
            builder.store(_sum_of_exponentials(builder, logits, m, y, out), total)

        with builder.if_else(builder.icmp_unsigned("<=", size, count(lanes))) as (one, more):
            with one:
                in_registers(1)
            with more, builder.if_else(builder.icmp_unsigned("<=", size, count(2 * lanes))) as (two, several):
                with two:
                    in_registers(2)
                with several:
                    from_memory()
        return context.make_tuple(builder, signature.return_type, [builder.load(top), builder.load(total)])

    return types.UniTuple(z.dtype, 2)(z, types.intp, e), code


@intrinsic
def distance_below(typing_context: Any, x: Any, top: Any) -> Any:
    """The sum of top - x."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        (values,) = _arrays(context, builder, signature, args)
        every = values.splat(args[1])

        def term(i: Any, part: Any) -> Any:
            term = builder.fsub(every, values.load(i, part))
            return term if part is None else values.only(term, part)

        return _total_of(builder, values, values.real, term)

    return x.dtype(x, x.dtype), code


@intrinsic
def scale_into(typing_context: Any, e: Any, factor: Any, shift: Any, out: Any) -> Any:
    """out = e * factor - shift; out may be e, which may be longer."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, sink = _arrays(context, builder, signature, args)
        by, less = source.splat(args[1]), source.splat(args[2])

        def do(k: int, i: Any, part: Any) -> None:
            sink.store(builder.fsub(builder.fmul(source.load(i, part), by), less), i, part)

        _each(builder, sink, do)
        return context.get_dummy_value()

    return types.none(e, e.dtype, e.dtype, out), code
