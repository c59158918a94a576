"""gRDA, generalized regularized dual averaging: SGD that trains a sparse network."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_grda._accumulator import (
    Proximal,
    check_options,
    check_trees,
    descend,
    init_accumulator,
    threshold_dtype,
    threshold_weights,
    updates_to,
    value_at,
)
from optax_grda._checks import check_number

# Without `from __future__ import annotations`: Optax's test suite compares the
# annotation of learning_rate with the ScalarOrSchedule object itself.


class GrdaState(NamedTuple):
    """State of :func:`grda`."""

    # n, steps taken. shape=(), dtype=jnp.int32. (Tuples have a method of that name.)
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    threshold: jax.Array  # L_n. shape=(), dtype=jnp.float32 (float64 if params are)
    compensation: jax.Array  # what rounding cut off L_n. shape and dtype of threshold
    accumulator: optax.Params  # v_n. shapes of params, dtypes of at least float32


def grda(
    learning_rate: optax.ScalarOrSchedule,
    c: jax.typing.ArrayLike = 0.005,
    mu: jax.typing.ArrayLike = 0.51,
    *,
    accumulator_dtype: jax.typing.DTypeLike | None = None,
    proximal: Proximal | None = None,
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

    Use it where plain SGD would stand, with SGD's learning rate, without momentum and
    without weight decay. Raise ``c`` (or ``mu``) for more zeros. It must come last in
    an :func:`optax.chain`: what it returns leads to weights of its own, and anything
    behind it would move them off zero.

    Args:
      learning_rate: :math:`\gamma`, a positive number, or a schedule that maps the
        count of steps already taken to a nonnegative number (0 during a warm-up is
        fine: neither v nor L moves).
      c: strength of the threshold, >= 0. With 0 this is plain SGD.
      mu: growth of the threshold, in (0, 1]. The paper uses 0.4 to 0.7; its theory
        asks for more than 0.5.
      accumulator_dtype: dtype of the accumulator. By default that of the parameter,
        but at least float32, since the accumulator is the master copy of the weights:
        in bfloat16 small steps would be lost. It must be complex exactly where the
        parameters are.
      proximal: what makes weights of the accumulator's pytree and the threshold, in
        place of the soft threshold of every entry: see :func:`group_proximal`.
        (:func:`optax.inject_hyperparams` takes it for a schedule unless it is among
        its ``static_args``.)

    Returns:
      An :class:`optax.GradientTransformationExtraArgs` whose state is a
      :class:`GrdaState`. ``update`` needs ``params`` and ignores extra arguments. It
      returns :math:`w_n` minus ``params``, in the dtypes of ``params``, so that
      :func:`optax.apply_updates` makes entries with :math:`|v_n| \le L_n` exactly zero
      in every dtype. Rounding in that sum does not accumulate: the next weights come
      from v again.

    Raises:
      ValueError: if ``c`` is a number below 0, ``mu`` one outside (0, 1] or
        ``learning_rate`` one that is not positive (traced arrays are not checked); if
        ``accumulator_dtype`` is not inexact, or real for complex parameters; in
        ``update``, if ``params`` is missing, or if updates or params differ in
        structure or shapes from the params at init.
      TypeError: if ``c`` or ``mu`` is not a number or array, or ``learning_rate``
        neither that nor a schedule; in ``init``, if a parameter is of integer or
        boolean dtype.

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

      Clipped, with a warm-up, on the direction of Adam, or on the kernels alone:

      >>> from optax_grda import label_by_rank
      >>> clipped = optax.chain(optax.clip_by_global_norm(1.0), grda(0.1))
      >>> warm = grda(optax.linear_schedule(0.0, 0.1, 1000))
      >>> adam = optax.chain(optax.scale_by_adam(), grda(1e-3))
      >>> kernels = optax.partition(
      ...     {"sparse": grda(0.1), "dense": optax.sgd(0.1)},
      ...     label_by_rank({0: "dense", 2: "sparse"}),
      ... )

      To change c, mu or the learning rate during training. (Without
      ``hyperparam_dtype``, bfloat16 parameters would round mu = 0.51 to 0.5.)

      >>> injected = optax.inject_hyperparams(grda, hyperparam_dtype=jnp.float32)
      >>> optimizer = injected(0.1, c=0.005, mu=0.51)
      >>> state = optimizer.init(params)
      >>> state.hyperparams["c"] = jnp.float32(0.001)

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
    check_options(learning_rate, accumulator_dtype)

    def init_fn(params: optax.Params) -> GrdaState:
        accumulator = init_accumulator(params, accumulator_dtype)
        dtype = threshold_dtype(accumulator)
        return GrdaState(  # every field in a buffer of its own: states can be donated
            count=jnp.zeros((), jnp.int32),
            threshold=jnp.zeros((), dtype),
            compensation=jnp.zeros((), dtype),
            accumulator=accumulator,
        )

    def update_fn(
        updates: optax.Updates,
        state: GrdaState,
        params: optax.Params | None = None,
        **extra_args,
    ) -> tuple[optax.Updates, GrdaState]:
        del extra_args
        check_trees(updates, state.accumulator, params)
        gamma = value_at(learning_rate, state.count, state.threshold.dtype)
        count = jnp.asarray(optax.safe_increment(state.count))
        increment = threshold_increment(count, gamma, c, mu)
        threshold, compensation = _add_compensated(
            state.threshold, increment, state.compensation
        )
        accumulator = descend(state.accumulator, updates, gamma)
        weights = threshold_weights(accumulator, threshold, params, proximal)
        state = GrdaState(count, threshold, compensation, accumulator)
        return updates_to(weights, params), state

    # Optax's protocol has update take any state; ours takes what init makes.
    return optax.GradientTransformationExtraArgs(
        init_fn,
        update_fn,  # pyright: ignore[reportArgumentType]
    )


def grda_params(
    state: optax.OptState, params: optax.Params, proximal: Proximal | None = None
) -> optax.Params:
    """The weights that a state of gRDA stands for, S(v, L), to the bit.

    So a checkpoint of a gRDA run need not hold the weights beside the state; and a
    training step that ends with this, in place of :func:`optax.apply_updates`, resumes
    from such a checkpoint with exactly the weights it would have had.

    Args:
      state: a :class:`GrdaState` or :class:`TargetSparsityState`, or the state of an
        optimizer around one, as of :func:`optax.chain` or :class:`optax.MultiSteps`,
        for all of the params.
      params: pytree of arrays or :class:`jax.ShapeDtypeStruct`. Only the structure and
        the dtypes count.
      proximal: the one given to the optimizer.

    Returns:
      Pytree like ``params``.

    Raises:
      ValueError: if state does not hold exactly one such state, or that one is for
        params of another structure.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_grda import grda, grda_params
      >>> params = {"kernel": jnp.ones((2, 2), jnp.bfloat16)}
      >>> grda_params(grda(0.1).init(params), params)["kernel"].dtype
      dtype(bfloat16)
    """

    def is_dual_average(node):
        return {"threshold", "accumulator"} <= set(getattr(node, "_fields", ()))

    nodes = jax.tree.leaves(state, is_leaf=is_dual_average)
    found = [node for node in nodes if is_dual_average(node)]
    if len(found) != 1:
        raise ValueError(
            f"state must hold one GrdaState or TargetSparsityState, got {len(found)}"
        )
    structure = jax.tree.structure(found[0].accumulator)
    if jax.tree.structure(params) != structure:
        raise ValueError(
            f"params must have the structure of the state's accumulator, {structure}: "
            f"got {jax.tree.structure(params)}"
        )
    return threshold_weights(found[0].accumulator, found[0].threshold, params, proximal)


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


def _add_compensated(
    total: jax.Array, term: jax.Array, compensation: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Kahan's sum: the new total, and by how much rounding made it too large."""
    term = term - compensation
    new_total = total + term
    return new_total, (new_total - total) - term
