"""Multiplies output units by gates that part into zeros and ones: GDP.

    w_u = theta_u phi(g_u),   phi(g) = g^2 / (g^2 + eps_n)
    minimise  loss + strength sum_u (weights into u) phi(g_u) / (number of weights)

As eps falls, phi becomes 1 for g != 0 and stays 0 at g = 0: a smoothed L0 norm. Its
slope draws small gates to 0 and leaves large ones alone: polarisation.

Source: Guo et al., "GDP: Stabilized Neural Network Pruning via Gates with
Differentiable Polarization", ICCV 2021 (arXiv 2109.02220).

Left open by the paper / changed here:

- eps falls geometrically from EPS to LAST along the run.
- A gate that would become negative is 0, and stays so; at the end all with phi < 1/2
  are 0, and the others are multiplied into the kernel.
- Gates are of a kernel's output units and start at 1; they take the weights' rate,
  without decay. Weights count, not operations, each layer on its own.
"""

import functools
import operator

import jax
import jax.numpy as jnp
import optax

from experiments.rivals._reparametrised import reparametrised
from experiments.rivals._task import Task

EPS, LAST = 0.1, 1e-4  # at the first and the last step


def gdp(task: Task) -> optax.GradientTransformationExtraArgs:
    """Polarised gates by output unit; uses task.strength, of the share left."""

    def hidden(params):
        def ones(w):
            return jnp.ones((1,) * (w.ndim - 1) + w.shape[-1:])

        return {"weights": params, "gates": jax.tree.map(ones, params)}

    def smoothed(gates, count):
        eps = EPS * (LAST / EPS) ** (count / task.steps)
        return jax.tree.map(lambda g: g**2 / (g**2 + eps), gates)

    def weights(variables, count):
        last = count == task.steps

        def leaf(w, phi):
            return w * jnp.where(last & (phi < 0.5), 0, phi)

        phi = smoothed(variables["gates"], count)
        return jax.tree.map(leaf, variables["weights"], phi)

    def penalty(variables, count):
        kernels = jax.tree.leaves(variables["weights"])
        phis = jax.tree.leaves(smoothed(variables["gates"], count))
        left = [
            jnp.sum(phi) * (w.size // phi.size)
            for w, phi in zip(kernels, phis, strict=True)
        ]
        size = sum(w.size for w in kernels)
        return task.strength * functools.reduce(operator.add, left) / size

    def repair(variables):
        gates = jax.tree.map(lambda g: jnp.maximum(g, 0), variables["gates"])
        return variables | {"gates": gates}

    descents = {
        "weights": task.descent(),
        "gates": task._replace(weight_decay=0.0).descent(),
    }
    return reparametrised(hidden, weights, descents, penalty, repair)
