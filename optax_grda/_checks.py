"""The checks of numbers that a user gives."""

import math
import numbers
import operator
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np


def check_number(
    name: str,
    value,
    rule: str,
    holds: Callable[[float], bool],
    *,
    or_schedule: bool = False,
) -> None:
    """Raises unless value is a finite real number for which the rule holds.

    JAX's arrays without axes pass, since they may be traced, or still be computed; and
    schedules where they may be.
    """
    # NumPy's arrays without axes are as concrete as its numbers.
    number = value[()] if isinstance(value, np.ndarray) and not value.ndim else value
    if isinstance(number, numbers.Real) and not isinstance(number, bool):
        if not (math.isfinite(number) and holds(float(number))):
            raise ValueError(f"{name} must be {rule}, got {value}")
    elif getattr(value, "ndim", 0):
        raise ValueError(f"{name} must be a scalar, got shape {value.shape}")
    elif not (_is_real_array(value) or (or_schedule and callable(value))):
        kinds = "a number or an array"
        if or_schedule:
            kinds = "a number, an array or a schedule"
        raise TypeError(f"{name} must be {kinds}, got {value!r}")


def check_integer(name: str, value, rule: str, holds: Callable[[int], bool]) -> None:
    """Raises unless value is an integer for which the rule holds, "an integer > 0" say.

    Integers of NumPy pass, and concrete ones of JAX; 3.0 and True do not.
    """
    try:
        integer = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        integer = None
    if integer is None:
        raise TypeError(f"{name} must be {rule}, got {value!r}")
    if not holds(integer):
        raise ValueError(f"{name} must be {rule}, got {integer}")


def _is_real_array(value) -> bool:
    dtype = getattr(value, "dtype", bool)
    return jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.floating)
