"""A loop over stacked entries: in Python where it can be, in a program under jit."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

PyTree = Any


def stack_length(name: str, stack: PyTree) -> int:
    """How many entries a pytree of stacked arrays holds; an error if unclear."""
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(stack)]
    lengths = {shape[:1] for shape in shapes}
    if len(lengths) != 1 or lengths <= {(), (0,)}:
        raise ValueError(
            f"{name} must have leaves with a leading axis of one length >= 1, "
            f"got shapes {shapes}"
        )
    ((length,),) = lengths
    return length


def scan(
    step: Callable[[PyTree, PyTree, PyTree], tuple[PyTree, PyTree]],
    constants: PyTree,
    carry: PyTree,
    stack: PyTree,
) -> tuple[PyTree, PyTree]:
    """Carries ``step(constants, carry, entry)`` through the entries of a stack.

    As :func:`jax.lax.scan` if anything is traced. Otherwise one call of a jitted step
    after another, which compiles once a step function, and once a set of shapes: on a
    CPU, gradients of convolutions are some 20 times slower inside a loop (JAX issue
    12868), also in one of a single round.
    """
    length = stack_length("stack", stack)
    if any(isinstance(x, Tracer) for x in jax.tree.leaves((constants, carry, stack))):
        if length > 1:
            return jax.lax.scan(functools.partial(step, constants), carry, stack)
        carry, result = step(constants, carry, jax.tree.map(lambda x: x[0], stack))
        return carry, jax.tree.map(lambda x: x[None], result)
    results = []
    for index in range(length):
        carry, result = _step_at(step, constants, carry, stack, index)
        # Steps that several CPU devices take together must not overtake each other.
        jax.block_until_ready(carry)
        results.append(result)
    return carry, jax.tree.map(lambda *entries: jnp.stack(entries), *results)


@functools.partial(jax.jit, static_argnums=0)
def _step_at(step, constants, carry, stack, index):
    return step(constants, carry, jax.tree.map(lambda x: x[index], stack))
