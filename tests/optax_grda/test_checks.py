"""What counts as a number, and what as an integer."""

import fractions
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_grda._checks import check_integer, check_number


def is_positive(x):
    return x > 0


INTEGERS = [3, np.int64(3), np.uint8(3), np.array(3), jnp.array(3)]
NUMBERS = [*INTEGERS, 0.5, np.float16(0.5), fractions.Fraction(1, 2), jnp.array(0.5)]
NEITHER = [
    True,
    np.True_,
    np.array(True),
    jnp.array(True),
    1j,
    jnp.array(1j),
    "3",
    None,
]


@pytest.mark.parametrize("value", NUMBERS)
def test_numbers_pass(value):
    check_number("c", value, "> 0", is_positive)


@pytest.mark.parametrize("value", NEITHER)
def test_bools_and_what_is_no_real_number_are_refused(value):
    message = re.escape(f"c must be a number or an array, got {value!r}")
    with pytest.raises(TypeError, match=message):
        check_number("c", value, "> 0", is_positive)
    with pytest.raises(TypeError, match="a number, an array or a schedule, got"):
        check_number("c", value, "> 0", is_positive, or_schedule=True)


def test_arrays_of_numpy_are_checked_as_its_numbers_are():
    for value in -1.0, np.float32(-1), np.array(-1.0):
        with pytest.raises(ValueError, match=r"c must be > 0, got -1\.0"):
            check_number("c", value, "> 0", is_positive)


@pytest.mark.parametrize("value", INTEGERS)
def test_integers_pass(value):
    check_integer("steps", value, "an integer > 0", is_positive)


@pytest.mark.parametrize("value", [*NEITHER, 0.5, 3.0, np.float32(3), jnp.array(3.0)])
def test_what_is_no_integer_is_refused(value):
    message = re.escape(f"steps must be an integer > 0, got {value!r}")
    with pytest.raises(TypeError, match=message):
        check_integer("steps", value, "an integer > 0", is_positive)


@pytest.mark.parametrize("value", [0, -1, np.int64(0)])
def test_integer_against_the_rule(value):
    with pytest.raises(ValueError, match=f"steps must be an integer > 0, got {value}"):
        check_integer("steps", value, "an integer > 0", is_positive)


def test_traced_bools_are_refused_and_traced_numbers_pass():
    @jax.jit
    def checked(value):
        check_number("c", value, "> 0", is_positive)
        return value

    assert checked(-1.0) == -1
    with pytest.raises(TypeError, match="c must be a number or an array"):
        checked(True)
