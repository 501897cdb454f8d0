"""Elementary functions of vectors: exp, log, tanh and its slope."""

import math

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from minimal_nn.cpu.machine.vectors import (
    VectorType,
    constant,
    fill,
    fma,
    maximum,
    multiply_add,
    power_of_two,
    round_down,
    where_beats,
    where_greater,
    where_positive,
    where_zero,
)

_LOG2_E = 1 / math.log(2)
# ln 2 in two parts: the first has so few digits that its product with an exponent is exact.
_LN2_HIGH = {types.float32: 0.693359375, types.float64: 0.693145751953125}
_LN2_LOW = {
    types.float32: -2.12194440054690583e-4,
    types.float64: 1.42860682030941723212e-6,
}
_TAYLOR = {
    dtype: tuple(1 / math.factorial(n) for n in range(degree, -1, -1))
    for dtype, degree in ((types.float32, 7), (types.float64, 13))
}
# Below this exp(x) is less than the smallest normal number, and 0 is returned.
_SMALLEST = {types.float32: -87.0, types.float64: -708.0}
_LARGEST = {types.float32: 88.0, types.float64: 709.0}


def _power_series(coefficients):
    """Make an intrinsic for a polynomial by Horner's scheme, with coefficients for each dtype, the
    highest power's first."""

    @intrinsic
    def polynomial(typing, x):
        first, *rest = coefficients[x.dtype]

        def generate(context, builder, signature, arguments):
            (x,) = arguments
            total = constant(x.type, first)
            for coefficient in rest:
                total = multiply_add(builder, total, x, constant(x.type, coefficient))
            return total

        return x(x), generate

    return polynomial


_taylor = _power_series(_TAYLOR)


def exponential(x):
    """exponential(v): e^x by its Taylor sum on |r| <= ln(2)/2, x = q ln 2 + r; about 1 ulp."""
    raise NotImplementedError("only inside compiled code")


@overload(exponential)
def _overload_exponential(x):
    if not isinstance(x, VectorType):
        return None
    high, low = _LN2_HIGH[x.dtype], _LN2_LOW[x.dtype]
    smallest, largest = _SMALLEST[x.dtype], _LARGEST[x.dtype]

    def evaluate(x):
        clamped = maximum(x, fill(x, smallest))
        clamped = where_greater(clamped, fill(x, largest), fill(x, largest), clamped)
        exponent = round_down(fma(clamped, fill(x, _LOG2_E), fill(x, 0.5)))
        r = fma(exponent, fill(x, -high), clamped)
        r = fma(exponent, fill(x, -low), r)
        value = _taylor(r) * power_of_two(exponent)
        # x - x is 0 unless x is NaN or infinite: keeps a NaN alive through the clamping.
        return where_positive(fill(x, smallest) - x, fill(x, 0.0), value)

    return evaluate


# log m = 2 atanh(s) = 2 s (1 + s^2/3 + s^4/5 + ...), s = (m - 1) / (m + 1)
_ATANH = {
    dtype: tuple(2.0 / (2 * n + 1) for n in range(terms, -1, -1))
    for dtype, terms in ((types.float32, 5), (types.float64, 10))
}


_atanh = _power_series(_ATANH)


@intrinsic
def _exponent_and_mantissa(typing, vector):
    """The integer e and the number m in [1, 2) with v = m 2^e, for normal positive v."""

    def generate(context, builder, signature, arguments):
        (value,) = arguments
        mantissa, bits = (23, 32) if value.type.element == ir.FloatType() else (52, 64)
        kind = ir.VectorType(ir.IntType(bits), value.type.count)
        one = ((1 << (bits - 2 - mantissa)) - 1) << mantissa
        pattern = builder.bitcast(value, kind)
        exponent = builder.ashr(builder.sub(pattern, constant(kind, one)), constant(kind, mantissa))
        fraction = builder.and_(pattern, constant(kind, (1 << mantissa) - 1))
        fraction = builder.bitcast(builder.or_(fraction, constant(kind, one)), value.type)
        return cgutils.pack_array(builder, [builder.sitofp(exponent, value.type), fraction])

    return types.UniTuple(vector, 2)(vector), generate


def logarithm(x):
    """logarithm(v): ln v for normal positive v, by the series of atanh; about 2 ulp."""
    raise NotImplementedError("only inside compiled code")


@overload(logarithm)
def _overload_logarithm(x):
    if not isinstance(x, VectorType):
        return None
    high, low = _LN2_HIGH[x.dtype], _LN2_LOW[x.dtype]

    def evaluate(x):
        exponent, m = _exponent_and_mantissa(x)
        one = fill(x, 1.0)
        root = fill(x, math.sqrt(2))
        exponent = where_greater(m, root, exponent + one, exponent)
        m = where_greater(m, root, m * fill(x, 0.5), m)
        s = (m - one) / (m + one)
        z = s * s
        value = fma(exponent, fill(x, high), fma(exponent, fill(x, low), s * _atanh(z)))
        return where_beats(x, x, x, value)  # NaN stays NaN

    return evaluate


def hyperbolic_tangent(x):
    """hyperbolic_tangent(v): a rational function for |x| < 0.625, else (1 - e) / (1 + e) with
    e = exp(-2|x|)."""
    raise NotImplementedError("only inside compiled code")


# Moshier, Cephes mathematical library (1989), tanh.c: tanh x = x + x^3 P(x^2) / Q(x^2).
_TANH_P = (-9.64399179425052238628e-1, -9.92877231001918586564e1, -1.61468768441708447952e3)
_TANH_Q = (1.12811678491632931402e2, 2.23548839060100448583e3, 4.84406305325125486048e3)


@overload(hyperbolic_tangent)
def _overload_tangent(x):
    if not isinstance(x, VectorType):
        return None
    p0, p1, p2 = _TANH_P
    q0, q1, q2 = _TANH_Q

    def evaluate(x):
        zero = fill(x, 0.0)
        one = fill(x, 1.0)
        size = where_positive(x, x, zero - x)
        e = exponential(fill(x, -2.0) * size)
        far = (one - e) / (one + e)
        far = where_positive(x, far, zero - far)
        z = x * x
        numerator = fma(fma(fill(x, p0), z, fill(x, p1)), z, fill(x, p2))
        denominator = fma(fma(z + fill(x, q0), z, fill(x, q1)), z, fill(x, q2))
        near = where_zero(x, x, fma(x * z, numerator / denominator, x))  # the sum would lose -0
        return where_greater(size, fill(x, 0.625), far, near)

    return evaluate


def tangent_slope(x):
    """tangent_slope(v): 1 / cosh^2 x = 4 e / (1 + e)^2, e = exp(-2|x|); to 4 ulp for all x."""
    raise NotImplementedError("only inside compiled code")


@overload(tangent_slope)
def _overload_slope(x):
    if not isinstance(x, VectorType):
        return None

    def evaluate(x):
        size = where_positive(x, x, fill(x, 0.0) - x)
        e = exponential(fill(x, -2.0) * size)
        one_more = fill(x, 1.0) + e
        return (fill(x, 4.0) * e) / (one_more * one_more)

    return evaluate
