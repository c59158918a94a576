"""What JAX knows of an array without looking into it: its width, and where it lies."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec


def at_least_float32(dtype: jax.typing.DTypeLike) -> jnp.dtype:
    """The dtype itself, or float32 if its real part has fewer than 32 bits."""
    return jnp.dtype(dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32)


def real_dtype(dtype: jax.typing.DTypeLike) -> jnp.dtype:
    """The dtype of the real part: float32 for float32 and for complex64."""
    return jnp.finfo(dtype).dtype


def replicated(x: jax.Array) -> jax.Array:
    """The array on every device of its mesh, so that it fits any other's layout.

    Only where shardings are part of types (Explicit axes, JAX's default) is there
    anything to do: elsewhere the compiler finds layouts that fit.
    """
    sharding = jax.typeof(x).sharding
    if all(part is None for part in sharding.spec):
        return x
    everywhere = NamedSharding(sharding.mesh, PartitionSpec())
    return jax.sharding.reshard(x, everywhere)


def count_zeros(x: jax.Array) -> jax.Array:
    """How many entries are exactly zero, float32; NaN where an entry is NaN.

    Sums of ones are exact in float32 up to 2^24, in any order. Larger arrays are summed
    row by row. (XLA's CPU compiler sums squares of signs as it reads the entries; for a
    sum of comparisons it first writes them all down, and takes six times as long.)
    """
    sign = jnp.sign(jnp.abs(x) if jnp.iscomplexobj(x) else x)
    alive = jnp.square(sign)
    if x.size > 2**24:
        alive = jnp.sum(alive, axis=-1, dtype=jnp.float32)
    return float(x.size) - jnp.sum(alive, dtype=jnp.float32)
