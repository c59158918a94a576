"""What the landscape's functions ask of their scalars."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from optax_grda._checks import check_integer


def check_scalar(name: str, value: jax.typing.ArrayLike) -> None:
    """Raises ValueError unless value has no axes."""
    if jnp.ndim(value) != 0:
        raise ValueError(f"{name} must be a scalar, got shape {jnp.shape(value)}")


def check_vector(name: str, value: jax.typing.ArrayLike) -> None:
    """Raises ValueError unless value has one axis."""
    if jnp.ndim(value) != 1:
        raise ValueError(f"{name} must have one axis, got shape {jnp.shape(value)}")


def check_unit_interval(name: str, value: jax.typing.ArrayLike) -> None:
    """Raises ValueError unless value is in [0, 1]. Traced values pass."""
    if isinstance(value, Tracer):
        return
    value = np.asarray(value)
    if not ((value >= 0) & (value <= 1)).all():  # NaN is neither
        raise ValueError(f"{name} must be in [0, 1], got {value}")


def check_batch_size(batch_size: int | None) -> None:
    """Raises unless batch_size is None or an integer of at least 1."""
    if batch_size is not None:
        rule = "None or an integer >= 1"
        check_integer("batch_size", batch_size, rule, lambda n: n >= 1)
