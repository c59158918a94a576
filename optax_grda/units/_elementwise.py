"""What primitives do with axes: those that run over the entries of arrays together."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn

from optax_grda.units import _values
from optax_grda.units._dims import Dim, unify
from optax_grda.units._values import Value
from optax_grda.units._walk import Array, Sources, Walk, rule

# Computed by NumPy where entries are known; the others by JAX.
_NUMPY = {
    "abs": np.abs,
    "add": np.add,
    "add_any": np.add,
    "and": np.bitwise_and,
    "ceil": np.ceil,
    "cos": np.cos,
    "div": lambda x, y: (
        x / y if x.dtype.kind != "i" else np.trunc(x / y).astype(x.dtype)
    ),
    "eq": np.equal,
    "exp": np.exp,
    "exp2": np.exp2,
    "expm1": np.expm1,
    "floor": np.floor,
    "ge": np.greater_equal,
    "gt": np.greater,
    "is_finite": np.isfinite,
    "le": np.less_equal,
    "log": np.log,
    "log1p": np.log1p,
    "logistic": lambda x: (1 / (1 + np.exp(-x))).astype(x.dtype),
    "lt": np.less,
    "max": np.maximum,
    "min": np.minimum,
    "ne": np.not_equal,
    "neg": np.negative,
    "not": np.invert,
    "or": np.bitwise_or,
    "rsqrt": lambda x: (1 / np.sqrt(x)).astype(x.dtype),
    "sign": np.sign,
    "sin": np.sin,
    "sqrt": np.sqrt,
    "square": np.square,
    "sub": np.subtract,
    "tanh": np.tanh,
    "xor": np.bitwise_xor,
}
_JAX = {
    *("acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "cbrt", "clamp"),
    *("complex", "conj", "cosh", "digamma", "erf", "erf_inv", "erfc", "imag"),
    *(
        "integer_pow",
        "lgamma",
        "log2",
        "nextafter",
        "one_minus_square",
        "population_count",
        "pow",
        "real",
        "rem",
    ),
    *("round", "shift_left", "shift_right_arithmetic", "shift_right_logical"),
    *("sinh", "tan"),
}
_IDENTITIES = {
    *(
        "copy",
        "copy_p",
        "device_put",
        "name",
        "optimization_barrier",
        "reduce_precision",
    ),
    *("reshard", "sharding_constraint", "stop_gradient"),
}


def unified(equation: JaxprEqn, inputs: Sequence[Array]) -> tuple[list[Dim], Sources]:
    """The axes of arrays that are run over together; scalars have none."""
    long = [array for array in inputs if array.dims]
    if not long:
        return [], ()
    dims = list(long[0].dims)
    for other in long[1:]:
        for axis, (x, y) in enumerate(zip(dims, other.dims, strict=True)):
            if x.size == y.size:
                unify(x, y, equation)
            elif x.size == 1:  # which is repeated
                dims[axis] = y
    sources = zip(*(array.sources for array in long), strict=True)
    return dims, tuple(frozenset().union(*axis) for axis in sources)


ELEMENTWISE = ("mul", "convert_element_type", "select_n", *_NUMPY, *_JAX)


@rule(*ELEMENTWISE)
def _elementwise(walk: Walk, equation: JaxprEqn, *inputs: Array) -> list[Array]:
    dims, sources = unified(equation, inputs)

    def value() -> Value:
        values: list[Any] = [array.value for array in inputs]
        name = equation.primitive.name
        if name == "mul":
            a, b = values
            return _values.times(a, b, len(dims))
        if name == "select_n":
            return _select(values, len(dims))
        function = _NUMPY.get(name)
        if name == "convert_element_type":
            dtype = equation.params["new_dtype"]
            function = lambda x: x.astype(dtype)  # noqa: E731
        result = _values.elementwise(function or _in_jax(equation), values, len(dims))
        return _values.where_known(result.array, result.known)

    return [walk.array(dims, inputs, value, sources)]


def _in_jax(equation: JaxprEqn) -> Any:
    def function(*arrays: np.ndarray) -> np.ndarray:
        shape = np.broadcast_shapes(*(array.shape for array in arrays))
        full = (jnp.asarray(np.broadcast_to(array, shape)) for array in arrays)
        return np.asarray(equation.primitive.bind(*full, **equation.params))

    return function


def _select(values: Sequence[Value], ndim: int) -> Value:
    """One of the cases: the one chosen where that is known, or what all are."""
    which, *cases = values
    if not which.known.all():
        return _values.joined(cases)

    def choose(which: np.ndarray, *cases: np.ndarray) -> np.ndarray:
        return np.choose(which.astype(np.int32), cases)

    def known(x: np.ndarray) -> Value:
        return _values.exactly(x)

    array, chosen = (
        _values.elementwise(choose, [which, *map(known, parts)], ndim).array
        for parts in ([c.array for c in cases], [c.known for c in cases])
    )
    return _values.where_known(array, chosen)


@rule(*_IDENTITIES)
def _identity(walk: Walk, equation: JaxprEqn, *inputs: Array) -> list[Array]:
    return [
        walk.array(a.dims, [a], lambda a=a: a.value, a.sources)  # pyright: ignore
        for a in inputs
    ]
