"""Vectors in kernels: one text, two readings.

A *pointwise* function is ordinary Python on vectors: it loads, computes and stores a fixed number of
them, with no branch on their values and no loop but `fold`. Decorated with `pointwise`, the text is read in
two ways:

- under Numba it is run once, at compile time, on values that write LLVM instructions as they are
  combined (`Vector`, `Mask`, `Index`, `Scalar`). The kernel receives the straight line of vector code; Numba
  sees a single call and has nothing to infer or to vectorise;
- without JIT it is simply called, on NumPy arrays of the same lanes, and overflows as silently.

So the equation on the page is the compiled code, and its NumPy twin cannot differ from it.

Vectors as typed Numba values, one overload for each operator, were the first plan: every operator then
costs Numba about a millisecond to type and lower, and every operation needs a twin of its own.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, config, types
from numba.extending import intrinsic

from .target import REGISTERS, VECTOR_BYTES

I1, I32, I64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)
_FLOATS = {np.dtype("float32"): ir.FloatType(), np.dtype("float64"): ir.DoubleType()}
_SUFFIX = {np.dtype("float32"): "f32", np.dtype("float64"): "f64"}


def block(a: Any) -> int:
    """Elements in a block: 64 bytes, whatever the machine. Tapes are laid out in blocks of hidden units, so that sums
    over them run in one order for every width of vector.
    """
    return 64 // a.dtype.itemsize


def lanes(a: Any) -> int:
    """Lanes of the native vector for the elements of `a` (an array, or the compiled form of one)."""
    return VECTOR_BYTES // a.dtype.itemsize


# ---------------------------------------------------------------------------------------------------
# Values of the compiled reading
# ---------------------------------------------------------------------------------------------------


class Pointer:
    """An array argument: the address of its first element, and what it holds."""

    def __init__(self, builder: ir.IRBuilder, address: ir.Value, dtype: np.dtype) -> None:
        self.builder, self.address, self.dtype = builder, address, dtype

    def at(self, off: Any) -> ir.Value:
        return self.builder.gep(self.address, [_index(off)])


class Index:
    """A 64-bit integer argument, with the little arithmetic that offsets need."""

    def __init__(self, builder: ir.IRBuilder, value: ir.Value) -> None:
        self.builder, self.value = builder, value

    def __add__(self, other: Any) -> Index:
        return Index(self.builder, self.builder.add(self.value, _index(other)))

    def __sub__(self, other: Any) -> Index:
        return Index(self.builder, self.builder.sub(self.value, _index(other)))

    def __mul__(self, other: Any) -> Index:
        return Index(self.builder, self.builder.mul(self.value, _index(other)))

    __radd__, __rmul__ = __add__, __mul__


class Vector:
    """`n` lanes of float32 or float64 in registers."""

    def __init__(self, builder: ir.IRBuilder, value: ir.Value, dtype: np.dtype) -> None:
        self.builder, self.value, self.dtype = builder, value, dtype

    @property
    def lanes(self) -> int:
        return self.value.type.count

    def same(self, x: Any) -> ir.Value:
        """`x` as a vector of this kind: a vector as it is, a number in every lane."""
        if isinstance(x, Vector):
            return x.value
        if isinstance(x, Scalar):
            value = _converted(self.builder, x.value, self.value.type.element)
            return _splat(self.builder, value, self.lanes)
        return ir.Constant(self.value.type, [_constant(x, self.dtype)] * self.lanes)

    def _do(self, name: str, a: Any, b: Any) -> Vector:
        return Vector(self.builder, getattr(self.builder, name)(self.same(a), self.same(b)), self.dtype)

    def __add__(self, other: Any) -> Vector:
        return self._do("fadd", self, other)

    def __sub__(self, other: Any) -> Vector:
        return self._do("fsub", self, other)

    def __rsub__(self, other: Any) -> Vector:
        return self._do("fsub", other, self)

    def __mul__(self, other: Any) -> Vector:
        return self._do("fmul", self, other)

    def __truediv__(self, other: Any) -> Vector:
        return self._do("fdiv", self, other)

    def __rtruediv__(self, other: Any) -> Vector:
        return self._do("fdiv", other, self)

    def __neg__(self) -> Vector:
        return Vector(self.builder, self.builder.fneg(self.value), self.dtype)

    __radd__, __rmul__ = __add__, __mul__

    def _compare(self, op: str, other: Any) -> Mask:
        return Mask(self.builder, self.builder.fcmp_ordered(op, self.value, self.same(other)))

    def __lt__(self, other: Any) -> Mask:
        return self._compare("<", other)

    def __gt__(self, other: Any) -> Mask:
        return self._compare(">", other)

    def __le__(self, other: Any) -> Mask:
        return self._compare("<=", other)

    def __ge__(self, other: Any) -> Mask:
        return self._compare(">=", other)

    def call(self, name: str, *others: Any) -> Vector:
        """The LLVM intrinsic `name`, lane by lane."""
        args = [self.value, *(self.same(o) for o in others)]
        full = f"llvm.{name}.v{self.lanes}{_SUFFIX[self.dtype]}"
        return Vector(self.builder, _call(self.builder, full, self.value.type, args), self.dtype)


class Mask:
    """One truth value for each lane."""

    def __init__(self, builder: ir.IRBuilder, value: ir.Value) -> None:
        self.builder, self.value = builder, value


class Scalar:
    """A run-time floating-point argument; it takes part in vector arithmetic as itself in every lane."""

    def __init__(self, builder: ir.IRBuilder, value: ir.Value) -> None:
        self.builder, self.value = builder, value

    def __neg__(self) -> Scalar:
        return Scalar(self.builder, self.builder.fneg(self.value))


def _constant(x: Any, dtype: np.dtype) -> ir.Constant:
    return ir.Constant(_FLOATS[dtype], float(dtype.type(x)))


def _index(x: Any) -> ir.Value:
    return x.value if isinstance(x, Index) else ir.Constant(I64, int(x))


def _call(builder: ir.IRBuilder, name: str, result: ir.Type, args: list[ir.Value]) -> ir.Value:
    fnty = ir.FunctionType(result, [a.type for a in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, fnty, name), args)


def _converted(builder: ir.IRBuilder, value: ir.Value, to: ir.Type) -> ir.Value:
    """A number of one precision in the other: what Python passes is float64, whatever the arrays hold."""
    if value.type == to:
        return value
    return builder.fptrunc(value, to) if isinstance(to, ir.FloatType) else builder.fpext(value, to)


def _splat(builder: ir.IRBuilder, value: ir.Value, n: int) -> ir.Value:
    vec = ir.VectorType(value.type, n)
    one = builder.insert_element(ir.Constant(vec, ir.Undefined), value, ir.Constant(I32, 0))
    return builder.shuffle_vector(one, ir.Constant(vec, ir.Undefined), ir.Constant(ir.VectorType(I32, n), [0] * n))


def _first(builder: ir.IRBuilder, count: Any, n: int) -> ir.Value:
    """Mask of the lanes below `count`."""
    ramp = ir.Constant(ir.VectorType(I64, n), list(range(n)))
    return builder.icmp_signed("<", ramp, _splat(builder, _index(count), n))


# ---------------------------------------------------------------------------------------------------
# Operations. Each has its compiled form first and its NumPy twin second.
# ---------------------------------------------------------------------------------------------------


def load(a: Any, off: Any, count: Any = None, n: int | None = None, fill: float = 0.0) -> Any:
    """`n` consecutive elements of `a` from flat offset `off`; from `count` on they are `fill`, and not touched."""
    n = n or lanes(a)
    if isinstance(a, Pointer):
        b, vec = a.builder, ir.VectorType(_FLOATS[a.dtype], n)
        p = b.bitcast(a.at(off), vec.as_pointer())
        if count is None:
            return Vector(b, b.load(p, align=a.dtype.itemsize), a.dtype)
        past = ir.Constant(vec, [_constant(fill, a.dtype)] * n)
        args = [p, ir.Constant(I32, a.dtype.itemsize), _first(b, count, n), past]
        name = f"llvm.masked.load.v{n}{_SUFFIX[a.dtype]}.p0"
        return Vector(b, _call(b, name, vec, args), a.dtype)
    v = np.full(n, fill, a.dtype)
    count = n if count is None else max(0, min(count, n))
    v[:count] = a.reshape(-1)[off : off + count]
    return v


def store(a: Any, off: Any, v: Any, count: Any = None) -> None:
    """Writes `v` into `a` from flat offset `off`; lanes from `count` on are not touched.

    `off` must lie in `a` even where `count` is 0: a store of no lanes to an address that is not mapped faults inside
    the processor, in silence, and takes 100 ns.
    """
    if isinstance(a, Pointer):
        b, size = a.builder, a.dtype.itemsize
        p = b.bitcast(a.at(off), v.value.type.as_pointer())
        if count is None:
            b.store(v.value, p, align=size)
            return
        args = [v.value, p, ir.Constant(I32, size), _first(b, count, v.lanes)]
        name = f"llvm.masked.store.v{v.lanes}{_SUFFIX[a.dtype]}.p0"
        if REGISTERS == 32:
            _call(b, name, ir.VoidType(), args)
            return
        # 256-bit vectors have no masks of their own: a masked store takes 5 to 8 ns on Zen 3, a plain one 0.6, and an
        # LSTM's gates 0.65 of the time. (Loads take 2 and 0.6: training 0.95 to 1.04 of the time, but 1 s more of a
        # cold training step's 9.)
        whole = b.icmp_signed(">=", _index(count), ir.Constant(I64, v.lanes))
        with b.if_else(whole, likely=True) as (then, otherwise):
            with then:
                b.store(v.value, p, align=size)
            with otherwise:
                _call(b, name, ir.VoidType(), args)
        return
    count = len(v) if count is None else max(0, min(count, len(v)))
    a.reshape(-1)[off : off + count] = v[:count]


def prefetch(a: Any, off: Any, write: bool = True, level: int = 1) -> None:
    """Begins to bring the line of `a` at flat offset `off` into the cache of a level, to be written, or to be read
    only. `off` may lie outside `a`.
    """
    if isinstance(a, Pointer):
        b, byte = a.builder, ir.IntType(8).as_pointer()
        args = [b.bitcast(a.at(off), byte), *(ir.Constant(I32, k) for k in (int(write), 4 - level, 1))]
        _call(b, "llvm.prefetch.p0", ir.VoidType(), args)


def read(a: Any, off: Any) -> Any:
    """The element of `a` at flat offset `off`, as a scalar that combines with vectors."""
    if isinstance(a, Pointer):
        return Scalar(a.builder, a.builder.load(a.at(off)))
    return a.reshape(-1)[off]


def zero(a: Any, n: int | None = None) -> Any:
    """A native vector of zeros for the elements of `a`."""
    n = n or lanes(a)
    if isinstance(a, Pointer):
        return Vector(a.builder, ir.Constant(ir.VectorType(_FLOATS[a.dtype], n), None), a.dtype)
    return np.zeros(n, a.dtype)


def every(x: Any, like: Any) -> Any:
    """The number `x` in every lane of a vector like `like`."""
    if isinstance(like, Vector):
        return Vector(like.builder, like.same(x), like.dtype)
    return np.full_like(like, x)


def fma(x: Any, y: Any, z: Any) -> Any:
    """`x * y + z`, rounded once."""
    for v in (x, y, z):
        if isinstance(v, Vector):
            return Vector(v.builder, v.same(x), v.dtype).call("fma", y, z)
    dtype = np.result_type(*(v for v in (x, y, z) if isinstance(v, np.ndarray)))
    if dtype == np.float32:  # the product of two float32 is exact in float64
        return (np.float64(x) * np.float64(y) + np.float64(z)).astype(np.float32)
    return x * y + z


def select(mask: Any, x: Any, y: Any) -> Any:
    """`x` where `mask`, else `y`."""
    if isinstance(mask, Mask):
        v = x if isinstance(x, Vector) else y
        return Vector(v.builder, v.builder.select(mask.value, v.same(x), v.same(y)), v.dtype)
    v = x if isinstance(x, np.ndarray) else y
    return np.where(mask, x, y).astype(v.dtype)


def only(x: Any, count: Any) -> Any:
    """`x` in the lanes below `count`, zeros in the others."""
    if isinstance(x, Vector):
        b, n = x.builder, x.lanes
        return Vector(b, b.select(_first(b, count, n), x.value, ir.Constant(x.value.type, None)), x.dtype)
    return np.where(np.arange(len(x)) < count, x, 0).astype(x.dtype)


def widen(x: Any) -> Any:
    """`x` in float64."""
    if isinstance(x, Vector):
        wide = ir.VectorType(ir.DoubleType(), x.lanes)
        value = x.value if x.value.type == wide else x.builder.fpext(x.value, wide)
        return Vector(x.builder, value, np.dtype("float64"))
    return x.astype(np.float64)


def least(a: Any, b: Any) -> Any:
    """The smaller of two indices."""
    if isinstance(a, Index) or isinstance(b, Index):
        builder = (a if isinstance(a, Index) else b).builder
        x, y = _index(a), _index(b)
        return Index(builder, builder.select(builder.icmp_signed("<", x, y), x, y))
    return min(a, b)


def greatest(a: Any, b: Any) -> Any:
    """The larger of two indices."""
    if isinstance(a, Index) or isinstance(b, Index):
        builder = (a if isinstance(a, Index) else b).builder
        x, y = _index(a), _index(b)
        return Index(builder, builder.select(builder.icmp_signed("<", x, y), y, x))
    return max(a, b)


def interleave(x: Any, y: Any) -> tuple[Any, Any]:
    """x0 y0 x1 y1 ... in two vectors."""
    if isinstance(x, Vector):
        n = x.lanes
        both = [lane for k in range(n) for lane in (k, n + k)]
        picks = [ir.Constant(ir.VectorType(I32, n), both[:n]), ir.Constant(ir.VectorType(I32, n), both[n:])]
        low, high = (Vector(x.builder, x.builder.shuffle_vector(x.value, y.value, p), x.dtype) for p in picks)
        return low, high
    both = np.stack([x, y], axis=1).reshape(-1)
    return both[: len(x)], both[len(x) :]


def transpose(vectors: list[Any]) -> list[Any]:
    """As many vectors as they have lanes, as the rows of a matrix: its columns. One round for each bit of the index."""
    half = len(vectors) // 2
    for _ in range(half.bit_length()):
        vectors = [v for k in range(half) for v in interleave(vectors[k], vectors[k + half])]
    return vectors


def absolute(x: Any) -> Any:
    """|x|"""
    return x.call("fabs") if isinstance(x, Vector) else np.abs(x)


def copysign(x: Any, sign: Any) -> Any:
    """The magnitude of `x` with the sign of `sign`."""
    return x.call("copysign", sign) if isinstance(x, Vector) else np.copysign(x, sign)


def sqrt(x: Any) -> Any:
    """Correctly rounded square root."""
    return x.call("sqrt") if isinstance(x, Vector) else np.sqrt(x)


def round_even(x: Any) -> Any:
    """Nearest integer, ties to even, as a float."""
    return x.call("rint") if isinstance(x, Vector) else np.rint(x)


def maximum(x: Any, y: Any) -> Any:
    """The larger; a NaN in `x` stays NaN (the comparison is false, so `x` is kept)."""
    return select(x < y, y, x)


def minimum(x: Any, y: Any) -> Any:
    """The smaller; a NaN in `x` stays NaN."""
    return select(x > y, y, x)


def _bits(dtype: np.dtype) -> tuple[ir.IntType, np.dtype, int, int]:
    """Integer type of the same size, mantissa bits and exponent bias."""
    if dtype == np.float32:
        return I32, np.dtype("int32"), 23, 127
    return I64, np.dtype("int64"), 52, 1023


def exp2_integer(n: Any) -> Any:
    """2**n for an integral float `n` within the exponents of normal numbers (NaN gives anything)."""
    return exponent(n, 1.0)[1]


def exponent(x: Any, factor: float, most: float | None = None) -> tuple[Any, Any]:
    """(n, 2**n): the integer nearest to factor * x, at `most`, as a float. 2**n must be a normal number.

    A NaN gives NaN and anything.
    """
    llint, npint, mantissa, bias = _bits(x.dtype)
    # A number at which floats are integers: the addition rounds, and leaves the exponent's bits at the end. No
    # conversion, which is poison for NaN.
    magic = 1.5 * 2.0**mantissa + bias
    t = fma(x, factor, magic)
    if most is not None:
        t = minimum(t, magic + most)
    if isinstance(t, Vector):
        b, vec = t.builder, ir.VectorType(llint, t.lanes)
        i = b.shl(b.bitcast(t.value, vec), ir.Constant(vec, [ir.Constant(llint, mantissa)] * t.lanes))
        return t - magic, Vector(b, b.bitcast(i, t.value.type), t.dtype)
    return t - t.dtype.type(magic), (t.view(npint) << npint.type(mantissa)).view(t.dtype)


def split_exponent(x: Any) -> tuple[Any, Any]:
    """(m, e) with x = m * 2**e and sqrt(1/2) <= m < sqrt(2), for a normal positive `x`; e is a float."""
    llint, npint, mantissa, _ = _bits(x.dtype)
    shift = int(np.array(np.sqrt(0.5), x.dtype).view(npint))  # bits of sqrt(1/2): where m begins
    if isinstance(x, Vector):
        b, vec = x.builder, ir.VectorType(llint, x.lanes)

        def every(value: int) -> ir.Constant:
            return ir.Constant(vec, [ir.Constant(llint, value)] * x.lanes)

        d = b.sub(b.bitcast(x.value, vec), every(shift))
        e = b.ashr(d, every(mantissa))
        m = b.add(b.sub(d, b.shl(e, every(mantissa))), every(shift))
        return (
            Vector(b, b.bitcast(m, x.value.type), x.dtype),
            Vector(b, b.sitofp(e, x.value.type), x.dtype),
        )
    d = x.view(npint) - npint.type(shift)
    e = d >> npint.type(mantissa)
    return (d - (e << npint.type(mantissa)) + npint.type(shift)).view(x.dtype), e.astype(x.dtype)


def accumulate(v: Any, op: Callable[[Any, Any], Any] = operator.add) -> Any:
    """All lanes combined to one scalar, halves upon halves: the same order whatever the machine."""
    if isinstance(v, Vector):
        n = v.lanes
        while n > 1:
            n //= 2
            picks = [ir.Constant(ir.VectorType(I32, n), list(range(start, start + n))) for start in (0, n)]
            undef = ir.Constant(v.value.type, ir.Undefined)
            low, high = (Vector(v.builder, v.builder.shuffle_vector(v.value, undef, p), v.dtype) for p in picks)
            v = op(low, high)
        return Scalar(v.builder, v.builder.extract_element(v.value, ir.Constant(I32, 0)))
    while len(v) > 1:
        v = op(v[: len(v) // 2], v[len(v) // 2 :])
    return v[0]


def fold(count: Any, n: int, start: tuple[Any, ...], body: Callable[..., tuple[Any, ...]]) -> tuple[Any, ...]:
    """Goes through `count` >= 0 elements, `n` (a power of two) at a time, with vectors `start` in registers.

    They become body(k, None, *vectors) for whole groups from element k, and for what is left, if anything
    is, body(k, left, *vectors). What they are at the end is returned.
    """
    if not isinstance(count, Index):
        whole = count - count % n
        for k in range(0, whole, n):
            start = body(k, None, *start)
        return body(whole, count - whole, *start) if whole < count else start
    b, before = count.builder, count.builder.block
    names = ("head", "group", "rest", "tail", "end")
    head, group, rest, tail, end = (b.append_basic_block(f"fold.{name}") for name in names)
    whole = b.and_(count.value, ir.Constant(I64, -n))
    b.branch(head)

    b.position_at_end(head)
    k = b.phi(I64)
    carried = [Vector(b, b.phi(v.value.type), v.dtype) for v in start]
    b.cbranch(b.icmp_signed("<", k, whole), group, rest)

    b.position_at_end(group)
    after = body(Index(b, k), None, *carried)
    k_next = b.add(k, ir.Constant(I64, n))
    k.add_incoming(ir.Constant(I64, 0), before)
    k.add_incoming(k_next, b.block)
    for v, first, v_next in zip(carried, start, after, strict=True):
        v.value.add_incoming(first.value, before)
        v.value.add_incoming(v_next.value, b.block)
    b.branch(head)

    b.position_at_end(rest)
    b.cbranch(b.icmp_signed("<", whole, count.value), tail, end)

    b.position_at_end(tail)
    last, left = body(Index(b, whole), Index(b, b.sub(count.value, whole)), *carried), b.block
    b.branch(end)

    b.position_at_end(end)
    result = []
    for v, v_last in zip(carried, last, strict=True):
        phi = b.phi(v.value.type)
        phi.add_incoming(v.value, rest)
        phi.add_incoming(v_last.value, left)
        result.append(Vector(b, phi, v.dtype))
    return tuple(result)


# ---------------------------------------------------------------------------------------------------
# The decorator
# ---------------------------------------------------------------------------------------------------


def pointwise(function: Callable[..., Any]) -> Any:
    """Makes `function` callable from kernels (see the module's text).

    Its arguments are arrays, integers, floats, None, and tuples of these. An argument that the kernel leaves out has
    its default. `if` may ask whether something is None and how long a tuple is: those are choices at compile time.
    It returns nothing or one scalar: `-> float` of the first array's type, `-> np.float64` always that.
    """
    if config.DISABLE_JIT:
        # What the vectors do in silence: sigmoid, for one, is right where its sum overflows.
        return np.errstate(over="ignore")(function)

    defaults = [p.default for p in inspect.signature(function).parameters.values()]

    def define(typingctx: Any, *args: types.Type) -> Any:
        args = (*args, *(types.Omitted(d) for d in defaults[len(args) :]))
        floats = [np.dtype(str(a.dtype)) for a in args if isinstance(a, types.Array) and a.dtype in types.real_domain]
        # Written once, with no result, to learn whether the function returns a scalar.
        result = types.none
        if function.__annotations__.get("return") in (float, "float"):
            result = types.float32 if floats[0] == np.float32 else types.float64
        elif function.__annotations__.get("return") in (np.float64, "np.float64"):
            result = types.float64

        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> Any:
            wrapped = [_wrap(context, builder, ty, v) for ty, v in zip(signature.args, values, strict=True)]
            out = function(*wrapped)
            return context.get_dummy_value() if result is types.none else out.value

        return result(*args), codegen

    define.__name__ = function.__name__
    define.__doc__ = function.__doc__
    define.__signature__ = _with_context(function)  # type: ignore[attr-defined]
    made = intrinsic(define)
    made.py_func = function
    return made


def _with_context(function: Callable[..., Any]) -> Any:
    sig = inspect.signature(function)
    ctx = inspect.Parameter("typingctx", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sig.replace(parameters=[ctx, *sig.parameters.values()])


def data_of(context: Any, builder: ir.IRBuilder, ty: types.Array, value: ir.Value) -> ir.Value:
    """Where an array's numbers begin. (Numba's proxy of an array has it written to memory and read again.)"""
    return builder.extract_value(value, context.data_model_manager[ty].get_field_position("data"))


def _wrap(context: Any, builder: ir.IRBuilder, ty: types.Type, value: ir.Value) -> Any:
    """An argument of an intrinsic as the value that a pointwise function works on."""
    if isinstance(ty, types.Omitted | types.NoneType):
        return getattr(ty, "value", None)
    if isinstance(ty, types.BaseTuple):
        return tuple(_wrap(context, builder, t, builder.extract_value(value, k)) for k, t in enumerate(ty))
    if isinstance(ty, types.Array):
        data = data_of(context, builder, ty, value)
        return Pointer(builder, data, np.dtype(str(ty.dtype)))
    if isinstance(ty, types.Integer | types.Boolean):
        wide = context.cast(builder, value, ty, types.int64)
        return Index(builder, wide)
    return Scalar(builder, value)


def _constant_of(size: int) -> Callable[..., Any]:
    def define(typingctx: Any, a: types.Type) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> Any:
            return ir.Constant(I64, size // np.dtype(str(a.dtype)).itemsize)

        return types.int64(a), codegen

    return define


def _stack(typingctx: Any, a: types.Type, vectors: types.Type) -> Any:
    if not isinstance(vectors, types.IntegerLiteral):
        return None

    array = types.Array(a.dtype, 1, "C")

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> Any:
        from numba.np.arrayobj import make_array, populate_array  # 20 ms of a warm start, which compiles nothing

        dtype = np.dtype(str(a.dtype))
        n = vectors.literal_value * VECTOR_BYTES // dtype.itemsize
        # Not Numba's alloca_once: it fills with zeros, and LLVM takes seconds to see through such a store.
        with builder.goto_entry_block():
            data = builder.alloca(ir.ArrayType(_FLOATS[dtype], n))
        data.align = VECTOR_BYTES
        made = make_array(array)(context, builder)
        size = ir.Constant(I64, dtype.itemsize)
        populate_array(
            made, builder.bitcast(data, _FLOATS[dtype].as_pointer()),
            shape=[ir.Constant(I64, n)], strides=[size], itemsize=size, meminfo=None,
        )  # fmt: skip
        return made._getvalue()

    return array(a, vectors), codegen


def _stack_twin(a: Any, vectors: int) -> np.ndarray:
    return np.empty(vectors * lanes(a), a.dtype)


# Working memory of a kernel: `vectors` (a constant) vectors for elements like those of `a`, gone when it returns.
stack = _stack_twin if config.DISABLE_JIT else intrinsic(prefer_literal=True)(_stack)

# `lanes` and `block` for kernels: constants in compiled code.
lanes_of = lanes if config.DISABLE_JIT else intrinsic(_constant_of(VECTOR_BYTES))
block_of = block if config.DISABLE_JIT else intrinsic(_constant_of(64))
