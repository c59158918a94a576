"""gRDA, generalized regularized dual averaging: SGD that trains a sparse network."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_grda._checks import check_number
from optax_grda._dual_averaging import Law, dual_averaging, threshold_dtype
from optax_grda.proximal import Proximal

# Without `from __future__ import annotations`, for the reason given in
# _dual_averaging.py.


class GrdaLawState(NamedTuple):
    """What the law of :func:`grda` keeps between steps."""

    compensation: jax.Array  # what rounding cut off L_n. shape and dtype of threshold


def grda(
    learning_rate: optax.ScalarOrSchedule,
    c: jax.typing.ArrayLike = 0.005,
    mu: jax.typing.ArrayLike = 0.51,
    *,
    momentum: jax.typing.ArrayLike | None = None,
    nesterov: bool = False,
    proximal: Proximal | None = None,
    weight_decay: jax.typing.ArrayLike = 0.0,
    accumulator_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""SGD that drives weights to exact zero in directions where the loss is flat.

    Steps of plain SGD are summed in an accumulator :math:`v`; the weights :math:`w`
    are the accumulator, soft-thresholded by a slowly growing threshold :math:`L`:

    .. math::

      \begin{align*}
        v_n &= v_{n-1} - \gamma_n g_n, & v_0 &= w_0, \\
        L_n &= L_{n-1} + c\, \gamma_n^{\mu + 1/2} (n^\mu - (n-1)^\mu), & L_0 &= 0, \\
        w_n &= \mathrm{sign}(v_n) \max(|v_n| - L_n, 0)
      \end{align*}

    At a constant learning rate :math:`L_n = c\, \gamma^{1/2} (n \gamma)^\mu`. The paper
    shows that this asymptotically prunes SGD's solution along the flat directions of
    the training loss (Theorem 3.1), so that most weights become exactly zero at SGD's
    accuracy, without retraining and without a pruning schedule.

    Use it where plain SGD would stand. Raise ``c`` (or ``mu``) for more zeros. It must
    come last in an :func:`optax.chain`: what it returns leads to weights of its own,
    and anything behind it would move them off zero.

    .. warning::
      What comes before it in a chain must give a *direction*, as
      :func:`optax.scale_by_adam` does, not a step: :func:`optax.sgd` and
      :func:`optax.adam` have already turned the sign, and behind them the loss climbs.
      :func:`optax_grda.diagnostics.check_descent` finds this before training.

    Args:
      learning_rate: :math:`\gamma`, a positive number, or a schedule that maps the
        count of steps already taken to a nonnegative number (0 during a warm-up is
        fine: neither v nor L moves).
      c: strength of the threshold, >= 0. With 0 this is plain SGD.
      mu: growth of the threshold, in (0, 1]. The paper uses 0.4 to 0.7; its theory
        asks for more than 0.5.
      momentum, nesterov: as for :func:`dual_averaging`. With momentum the threshold
        grows as at the learning rate :math:`\gamma / (1 - \beta)`, so that c and mu
        mean what they mean without; the paper has none.
      proximal: what makes weights of the accumulator's pytree and the threshold, in
        place of the soft threshold of every entry: see :mod:`optax_grda.proximal`.
        (:func:`optax.inject_hyperparams` takes it for a schedule unless it is among
        its ``static_args``.)
      weight_decay: as for :func:`dual_averaging`, of the accumulator; the paper has
        none.
      accumulator_dtype: as for :func:`dual_averaging`.

    Returns:
      An :class:`optax.GradientTransformationExtraArgs` whose state is a
      :class:`DualAveragingState`. ``update`` needs ``params`` and ignores extra
      arguments. It returns :math:`w_n` minus ``params``, in the dtypes of ``params``,
      so that :func:`optax.apply_updates` makes entries with :math:`|v_n| \le L_n`
      exactly zero in every dtype. Rounding in that sum does not accumulate: the next
      weights come from v again.

    Raises:
      ValueError: if ``c`` is a number below 0 or ``mu`` one outside (0, 1] (JAX
        arrays are not checked); else as :func:`dual_averaging`.
      TypeError: if ``c`` or ``mu`` is not a number or array; else as
        :func:`dual_averaging`.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from optax_grda import grda
      >>> def loss(w):  # only the first entry matters, the others are flat
      ...     return jnp.square(w[0] - 1.0)
      >>> params = jnp.array([0.0, 0.5, -0.5])
      >>> optimizer = grda(learning_rate=0.1, c=0.5, mu=0.6)
      >>> state = optimizer.init(params)
      >>> @jax.jit
      ... def step(params, state):
      ...     updates, state = optimizer.update(jax.grad(loss)(params), state, params)
      ...     return optax.apply_updates(params, updates), state
      >>> for _ in range(200):
      ...     params, state = step(params, state)
      >>> print(f"{params[0]:.2f} {params[1:]} threshold {state.threshold:.2f}")
      0.99 [0. 0.] threshold 0.95

      With momentum, clipped, with a warm-up, or on the kernels alone:

      >>> from optax_grda import label_by_rank
      >>> heavy = grda(0.05, momentum=0.9, weight_decay=5e-4)
      >>> clipped = optax.chain(optax.clip_by_global_norm(1.0), grda(0.1))
      >>> warm = grda(optax.linear_schedule(0.0, 0.1, 1000))
      >>> kernels = optax.partition(
      ...     {"sparse": grda(0.1), "dense": optax.sgd(0.1)},
      ...     label_by_rank({0: "dense", 2: "sparse"}),
      ... )

      Adam's direction has entries of order one however small the gradients are. The
      threshold is summed beside its steps, so a c for gradients says nothing there, and
      the default makes next to no zeros at Adam's learning rates. Ask for a sparsity
      instead:

      >>> from optax_grda import sparsity_ramp, target_sparsity
      >>> adam = optax.chain(
      ...     optax.scale_by_adam(),
      ...     target_sparsity(1e-3, sparsity_ramp(0.8, 500), gain=0.1),
      ... )

      To change c, mu or the learning rate during training. (Without
      ``hyperparam_dtype``, bfloat16 parameters would round mu = 0.51 to 0.5.)

      >>> injected = optax.inject_hyperparams(grda, hyperparam_dtype=jnp.float32)
      >>> optimizer = injected(0.1, c=0.005, mu=0.51)
      >>> state = optimizer.init(params)
      >>> state.hyperparams["c"] = jnp.float32(0.001)

      What scales gradients before grda scales its steps, but not the growth of its
      threshold. A learning rate that follows the loss is therefore injected, not
      chained: with ``watch``, the state of :func:`optax.contrib.reduce_on_plateau`,
      ``state.hyperparams["learning_rate"] = 0.1 * watch.scale`` after each step.

    How this differs from the authors' PyTorch class:

    1. The threshold is summed with compensation from increments without cancellation,
       :math:`-n^\mu \mathrm{expm1}(\mu\, \mathrm{log1p}(-1/n))`: it is right to 1e-6
       after millions of steps, where sums of float32 differences drift.
    2. Threshold and accumulator are kept in at least float32 for narrower parameters.
    3. The learning rate may be a schedule, and c, mu and the learning rate traced
       arrays: under ``vmap``, a grid of (c, mu) trains in one program.

    With ``c = 0`` the accumulator follows :func:`optax.sgd` to the bit, as long as the
    compiler rounds ``v - gamma g`` alike in both programs. The parameters equal the
    accumulator to the bit where a step leaves an entry within a factor of two of
    itself, and otherwise to rounding of the larger of the two values (1e-6 for weights
    of order one in float32).

    .. warning::
      A NaN or infinite gradient stays in the accumulator for good. Wrap this in
      :func:`optax.apply_if_finite` where gradients may overflow.

    References:
      Chao et al., `Directional Pruning of Deep Neural Networks
      <https://arxiv.org/abs/2006.09358>`_, NeurIPS 2020, Algorithm 1.

      Chao and Cheng, `A generalization of regularized dual averaging and its dynamics
      <https://arxiv.org/abs/1909.10072>`_, 2019.
    """
    check_number("c", c, ">= 0", lambda x: x >= 0)
    check_number("mu", mu, "in (0, 1]", lambda x: 0 < x <= 1)
    return dual_averaging(
        learning_rate,
        _law(c, mu),
        momentum=momentum,
        nesterov=nesterov,
        proximal=proximal,
        weight_decay=weight_decay,
        accumulator_dtype=accumulator_dtype,
    )


def _law(c: jax.typing.ArrayLike, mu: jax.typing.ArrayLike) -> Law:
    """L_n = L_{n-1} + c gamma_n^(mu + 1/2) (n^mu - (n-1)^mu), summed by Kahan."""

    def init(accumulator: optax.Params) -> tuple[jax.Array, GrdaLawState]:
        dtype = threshold_dtype(accumulator)
        return jnp.zeros((), dtype), GrdaLawState(compensation=jnp.zeros((), dtype))

    def step(
        threshold: jax.Array,
        state: GrdaLawState,
        count: jax.Array,
        gamma: jax.Array,
        weights: optax.Params,
    ) -> tuple[jax.Array, GrdaLawState]:
        del weights
        term = threshold_increment(count, gamma, c, mu) - state.compensation
        total = threshold + term
        # By how much rounding made the total too large.
        return total, GrdaLawState(compensation=(total - threshold) - term)

    return Law(init, step)


def threshold_increment(
    count: jax.Array,
    learning_rate: jax.Array,
    c: jax.typing.ArrayLike,
    mu: jax.typing.ArrayLike,
) -> jax.Array:
    """c gamma^(mu + 1/2) (n^mu - (n-1)^mu), in the dtype of the learning rate."""
    dtype = learning_rate.dtype
    n = count.astype(dtype)
    c, mu = jnp.asarray(c).astype(dtype), jnp.asarray(mu).astype(dtype)
    # At n = 1 the logarithm is -inf: harmless here, but not in a derivative by mu.
    later = -(n**mu) * jnp.expm1(mu * jnp.log1p(-1 / jnp.maximum(n, 2)))
    growth = jnp.where(n > 1, later, 1)
    return c * learning_rate ** (mu + 0.5) * growth
