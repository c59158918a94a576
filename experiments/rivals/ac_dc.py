r"""Trains in turns with all weights and with the largest alone: AC/DC.

After a dense warm-up, compressed and decompressed phases alternate. At the start of a
compressed phase the mask is that of the largest weights, and stays till its end; in a
decompressed phase it holds all, of which the others start at 0:

.. math::

  \text{compression: } \theta \leftarrow T_k(\theta), \quad
  \theta \leftarrow \theta - \eta\, (\nabla f \odot M_\theta); \qquad
  \text{decompression: } \theta \leftarrow \theta - \eta\, \nabla f

with T_k the k largest moduli of all kernels together and M_theta their mask. The last
decompressed phase is longer, and a compressed one ends the run.

Source: Peste, Iofinova, Vladu and Alistarh, "AC/DC: Alternating Compressed/DeCompressed
Training of Deep Neural Networks", NeurIPS 2021 (arXiv 2106.12379). The phases are those
of ResNet-50's 100 epochs, an epoch being a 100th of the run here; the momentum restarts
at each decompression, as there.
"""

import jax.numpy as jnp
import optax

from experiments.rivals._magnitude import largest
from experiments.rivals._masked import masked
from experiments.rivals._task import Task

# Epochs of 100, before which a phase starts.
COMPRESS = (10, 20, 30, 40, 50, 60, 70, 85)
DECOMPRESS = (15, 25, 35, 45, 55, 65, 75)


def ac_dc(task: Task) -> optax.GradientTransformationExtraArgs:
    """AC/DC to task.sparsity, all kernels ranked together."""

    def starts(count, epochs):
        return jnp.any(
            count == jnp.array([epoch * task.steps // 100 for epoch in epochs])
        )

    def compresses(count):
        return starts(count, COMPRESS)

    def decompresses(count):  # in the shortest runs phases may coincide
        return starts(count, DECOMPRESS) & ~compresses(count)

    def change(count, weights, gradients, mask):
        # Sparsity 0 is the mask of all, also of zeros.
        return largest(weights, jnp.where(compresses(count), task.sparsity, 0.0))

    return masked(
        task,
        lambda count: compresses(count) | decompresses(count),
        change,
        restart=decompresses,
    )
