"""Multiplies weights by random gates that learn to close: L0 regularisation.

    w = theta z,   z ~ hard concrete(log alpha)   (_hard_concrete.py)
    penalty:     minimise  loss + lambda sum_j P(z_j > 0)
    constraint:  min over theta, alpha, max over lambda >= 0  of
                 loss + lambda (mean_j P(z_j > 0) - (1 - sparsity)),
                 lambda <- 0 as soon as the constraint holds (dual restart)
    at last:     z = stretched sigmoid(log alpha)         (penalty)
                 z = stretched sigmoid(log alpha / beta)  (constraint: the median)

Sources: Louizos, Welling and Kingma, "Learning Sparse Neural Networks through L0
Regularization", ICLR 2018 (arXiv 1712.01312): the penalty. Gallego-Posada et al.,
"Controlled Sparsity via Constrained Optimization or: How I Learned to Stop Tuning
Penalties and Love Constraints", NeurIPS 2022 (arXiv 2208.04425): the constraint.

Left open by the papers / changed here:

- Gates move by Adam (both papers' choice on MNIST, at 1e-3 and 7e-4), at a rate that
  times the steps is GATES; the multiplier's rate times the steps is DUAL.
- Gates start closed with probability about DROP, weights divided by 1 - DROP.
- log alpha is not clipped: their clip at -log(100) keeps 4.7 % expected open.
- Gates are drawn by step, not by example; decay is of theta, not times P(z > 0).
"""

import math

import jax
import jax.numpy as jnp
import optax

from experiments.rivals._hard_concrete import (
    BETA,
    drawn,
    expected_weights,
    stretched,
)
from experiments.rivals._reparametrised import reparametrised
from experiments.rivals._task import Task

DROP = 0.3  # probability of closed gates at the start
GATES = 60.0  # rate of the gates times steps (theirs: 66)
DUAL = 500.0  # rate of the multiplier times steps (theirs: 9 to 96)


def hard_concrete_penalty(task: Task) -> optax.GradientTransformationExtraArgs:
    """Gates by weight; uses task.strength: lambda (theirs: 2e-6 for MNIST)."""
    return _gated(task, _by_weight, 1.0, task.strength, optax.set_to_zero())


def hard_concrete_constraint(task: Task) -> optax.GradientTransformationExtraArgs:
    """Gates by weight, as many open as asked for; uses task.sparsity."""
    return _gated(task, _by_weight, BETA, 0.0, ascent(DUAL / task.steps))


def hard_concrete_units(task: Task) -> optax.GradientTransformationExtraArgs:
    """Gates by output unit, as many weights left as asked for; uses task.sparsity."""
    return _gated(task, _by_unit, BETA, 0.0, ascent(DUAL / task.steps))


def ascent(rate: float) -> optax.GradientTransformation:
    """Of a multiplier along its violation, back to 0 as soon as there is none."""
    return optax.stateless(
        lambda violation, multiplier: jnp.where(
            violation > 0, rate * violation, -multiplier
        )
    )


def _by_weight(weight):
    return weight.shape


def _by_unit(weight):
    return (1,) * (weight.ndim - 1) + weight.shape[-1:]


def _gated(task, shape, temperature, by_one, multiplier):
    def hidden(params):
        start = math.log((1 - DROP) / DROP)
        return {
            "weights": jax.tree.map(lambda w: w / (1 - DROP), params),
            "gates": jax.tree.map(lambda w: jnp.full(shape(w), start), params),
            "multiplier": jnp.asarray(by_one * _size(params), jnp.float32),
        }

    def weights(variables, count):
        gates = variables["gates"]
        random = drawn(gates, jax.random.fold_in(task.key, count))
        sure = jax.tree.map(lambda a: stretched(a / temperature), gates)
        last = count == task.steps
        return jax.tree.map(
            lambda w, z, sure: w * jnp.where(last, sure, z),
            variables["weights"],
            random,
            sure,
        )

    def penalty(variables, count):
        expected = expected_weights(variables["gates"], variables["weights"])
        violation = expected / _size(variables["weights"]) - (1 - task.sparsity)
        return variables["multiplier"] * violation

    descents = {
        "weights": task.descent(),
        "gates": optax.adam(GATES / task.steps),
        "multiplier": multiplier,
    }
    return reparametrised(hidden, weights, descents, penalty)


def _size(tree):
    return sum(x.size for x in jax.tree.leaves(tree))
