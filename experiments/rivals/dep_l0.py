"""Multiplies output units by random gates that a small network makes: Dep-L0.

    x_0 = (1, ..., 1),   x_l = log(100) tanh(W_l x_{l-1} + b_l) = log alpha of layer l
    w_l = theta_l z_l,   z_l ~ hard concrete(x_l)  by output unit
    minimise  loss + lambda sum_l (weights into a unit of l) sum_u P(z_lu > 0)

So the gates of a layer depend on those of the layer before. At the end they are
stretched sigmoid(log alpha).

Source: Li and Ji, "Dep-L0: Improving L0-based Network Sparsification via Dependency
Modeling", ECML 2021 (arXiv 2107.00070): the MLP, forward, as in their code.

Left open by the paper / changed here:

- Layers follow one another in the order of the pytree.
- task.strength is lambda (theirs: 1e-6 for VGG16 on CIFAR-10); a unit counts all its
  weights, not only those from units expected to be left.
- W starts uniform in +- 1 / sqrt(inputs), b at 3: which closes some units at once, and
  tanh is so flat there that even a large lambda leaves many open in a short run.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from experiments.rivals._hard_concrete import drawn, expected_weights, stretched
from experiments.rivals._reparametrised import reparametrised
from experiments.rivals._task import Task

LIMIT = math.log(100)  # of |log alpha|
INPUTS = 64  # of the generator, all ones
OPEN = 3.0  # b at the start
GENERATOR = 1e-3  # rate of Adam, theirs


def dep_l0(task: Task) -> optax.GradientTransformationExtraArgs:
    """Gates by output unit; uses task.strength: lambda."""

    def hidden(params):
        widths = [INPUTS] + [w.shape[-1] for w in jax.tree.leaves(params)]
        matrices = [jnp.zeros(shape) for shape in itertools.pairwise(widths)]
        flat, unravel = ravel_pytree(matrices)
        uniform = unravel(jax.random.uniform(task.key, flat.shape, minval=-1, maxval=1))
        generator = [
            {"W": W / math.sqrt(W.shape[0]), "b": jnp.full(W.shape[1], OPEN)}
            for W in uniform
        ]
        return {"weights": params, "generator": generator}

    def weights(variables, count):
        gates = log_alphas(variables)
        random = drawn(gates, jax.random.fold_in(task.key, count))
        last = count == task.steps
        return jax.tree.map(
            lambda w, z, a: w * jnp.where(last, stretched(a), z),
            variables["weights"],
            random,
            gates,
        )

    def penalty(variables, count):
        expected = expected_weights(log_alphas(variables), variables["weights"])
        return task.strength * expected

    descents = {"weights": task.descent(), "generator": optax.adam(GENERATOR)}
    return reparametrised(hidden, weights, descents, penalty)


def log_alphas(variables):
    """What the generator makes: for every kernel an array (1, ..., 1, outputs)."""
    kernels, structure = jax.tree.flatten(variables["weights"])
    x = jnp.ones(INPUTS)
    made = []
    for kernel, layer in zip(kernels, variables["generator"], strict=True):
        x = LIMIT * jnp.tanh(x @ layer["W"] + layer["b"])
        made.append(x.reshape((1,) * (kernel.ndim - 1) + (-1,)))
    return structure.unflatten(made)
