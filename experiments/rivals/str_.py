"""Learns a soft threshold for every layer, driven up by its own decay: STR.

    w = sign(v) (|v| - sigmoid(s_l))_+   for layer l
    minimise  loss(w) + strength / 2 sum_l s_l^2

s starts well below 0, where the threshold is nearly 0; decay raises it, and the loss
pushes back where weights are pruned: dl/ds = -sigmoid'(s) sum_kept sign(w_j) dl/dw_j.

Source: Kusupati et al., "Soft Threshold Weight Reparameterization for Learnable
Sparsity", ICML 2020 (arXiv 2002.03231).

Left open by the paper / changed here:

- task.strength is the decay of s alone (theirs is the weights' too, about 2e-5 to 9e-5
  on ImageNet). What it does goes with strength x (sum of rates) / (1 - momentum): about
  10 to 45 for theirs; 2 to 30 makes 40 to 95 % zeros of digits, more may make all.
- s starts at -5 (their code for 90 % of ResNet-50: -3200, from where in a short run
  decay would bring s up too fast for the loss to answer).
"""

import jax
import jax.numpy as jnp
import optax

from experiments.rivals._layer_thresholds import learned_by_layer
from experiments.rivals._task import Task


def str_(task: Task) -> optax.GradientTransformationExtraArgs:
    """STR with a threshold by layer; uses task.strength: the weight decay of s."""

    def weight(v, above, count):
        return jnp.sign(v) * jax.nn.relu(above)

    return learned_by_layer(task, weight)
