"""The hard concrete distribution of gates: mostly exactly 0 or exactly 1.

    z = min(1, max(0, gamma + (zeta - gamma) sigmoid((logit(u) + log alpha) / beta)))
    P(z > 0) = sigmoid(log alpha - beta log(-gamma / zeta)),   u uniform in (0, 1)

Source: Louizos, Welling and Kingma, "Learning Sparse Neural Networks through L0
Regularization", ICLR 2018 (arXiv 1712.01312).
"""

import functools
import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

PyTree = Any

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1


def stretched(x: jax.Array) -> jax.Array:
    """The gate of a logit: exactly 0 below -2.4, exactly 1 above 2.4."""
    return jnp.clip(GAMMA + (ZETA - GAMMA) * jax.nn.sigmoid(x), 0, 1)


def drawn(log_alphas: PyTree, key: jax.Array) -> PyTree:
    """Gates drawn at random, float32, of the shapes of log alpha."""
    flat, unravel = ravel_pytree(log_alphas)  # one draw: less to compile
    logits = jax.random.logistic(key, flat.shape)
    return unravel(stretched((logits + flat) / BETA))


def expected_weights(log_alphas: PyTree, params: PyTree) -> jax.Array:
    """The expected number of weights whose gate is not 0; a gate may have several."""

    def leaf(log_alpha, weight):
        open_ = jax.nn.sigmoid(log_alpha - BETA * math.log(-GAMMA / ZETA))
        return jnp.sum(open_) * (weight.size // log_alpha.size)

    counts = jax.tree.leaves(jax.tree.map(leaf, log_alphas, params))
    return functools.reduce(operator.add, counts)
