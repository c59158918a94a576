"""Sparsities of single layers that together make the one that is wanted."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any


def erdos_renyi_kernel(params: PyTree, sparsity: jax.typing.ArrayLike) -> PyTree:
    r"""Sparsities by the Erdős–Rényi-Kernel rule: large layers are the sparser ones.

    The density of a layer is proportional to the sum of its kernel's dimensions over
    their product, and at most 1:

    .. math::

      d_l = \min\left(1, \epsilon\, \frac{n_\text{in} + n_\text{out} + w + h}
          {n_\text{in}\, n_\text{out}\, w\, h}\right), \qquad
      \sum_l d_l N_l = (1 - s) \sum_l N_l

    The sum is piecewise linear in epsilon, with a knot where a layer becomes dense: so
    epsilon is found by interpolation between the knots, exactly, also for a traced s.

    Args:
      params: kernels of any ranks.
      sparsity: s, in [0, 1), over all of them. It may be traced.

    Returns:
      A sparsity for every leaf. shape=(), dtype=jnp.float32.

    References:
      Evci, Gale, Menick, Castro and Elsen, "Rigging the Lottery: Making All Tickets
      Winners", ICML 2020 (arXiv 1911.11134); for dense layers, Mocanu et al. 2018.
    """
    kernels, structure = jax.tree.flatten(params)
    share = np.array([x.size for x in kernels]) / sum(x.size for x in kernels)
    ratio = np.array([sum(x.shape) / x.size for x in kernels])
    knots = np.append(0.0, np.unique(1 / ratio))
    densities = np.minimum(1, knots[:, None] * ratio) @ share
    epsilon = jnp.interp(
        jnp.float32(1 - sparsity), densities.astype("f4"), knots.astype("f4")
    )
    return structure.unflatten([1 - jnp.minimum(1, epsilon * float(r)) for r in ratio])
