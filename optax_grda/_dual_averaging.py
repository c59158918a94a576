"""Dual averaging: SGD summed in an accumulator, of which a threshold makes weights.

The one transformation of this library. Its parts are a law, which says how the
threshold grows, and a proximal map, which makes weights of accumulator and threshold.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_grda._arrays import at_least_float32
from optax_grda._checks import check_number
from optax_grda._paths import map_named, named_leaves, structure_difference
from optax_grda.proximal import Proximal, soft

# Without `from __future__ import annotations`: Optax's test suite compares the
# annotation of learning_rate with the ScalarOrSchedule object itself.

PyTree = Any


class Law(NamedTuple):
    """How the threshold grows: pure functions, as of a GradientTransformation.

    A law may keep arrays of its own between steps, in any pytree: its ``law_state``.
    """

    # accumulator at init -> (threshold L_0 >= 0, law_state). Whatever its dtype, the
    # threshold becomes float32, or float64 where a parameter is.
    init: Callable[[PyTree], tuple[jax.Array, PyTree]]
    # (L_{n-1}, law_state, n, gamma, weights w_{n-1}) -> (L_n, law_state), in the same
    # dtypes. gamma is the learning rate gamma_n, with momentum gamma_n / (1 - beta):
    # that of plain SGD at the same pace.
    step: Callable[
        [jax.Array, PyTree, jax.Array, jax.Array, PyTree], tuple[jax.Array, PyTree]
    ]


class DualAveragingState(NamedTuple):
    """State of :func:`dual_averaging`, and so of all that is made of it."""

    # n, steps taken. shape=(), dtype=jnp.int32. (Tuples have a method of that name.)
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    threshold: jax.Array  # L_n. shape=(), dtype=jnp.float32 (float64 if params are)
    law_state: Any  # what the law keeps between steps: see grda and target_sparsity
    accumulator: optax.Params  # v_n. shapes of params, dtypes of at least float32
    trace: Any  # m_n, as the accumulator; None without momentum


def dual_averaging(
    learning_rate: optax.ScalarOrSchedule,
    law: Law,
    *,
    momentum: jax.typing.ArrayLike | None = None,
    nesterov: bool = False,
    proximal: Proximal | None = None,
    weight_decay: jax.typing.ArrayLike = 0.0,
    accumulator_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Sums steps in an accumulator, of which a proximal map makes sparse weights.

    .. math::

      \begin{align*}
        m_n &= \beta m_{n-1} + d_n, & m_0 &= 0, \\
        v_n &= (1 - \gamma'_n \lambda)\, v_{n-1} - \gamma_n m_n, & v_0 &= w_0, \\
        w_n &= P(v_n, L_n), & \gamma'_n &= \gamma_n / (1 - \beta)
      \end{align*}

    with :math:`d_n` the updates that come in: gradients, or what the chain before made
    of them. :func:`optax_grda.grda` and :func:`optax_grda.target_sparsity` are this,
    each with a law of its own for the threshold :math:`L_n`; use those, or give a law.

    **Momentum.** Under a constant direction :math:`d` the trace :math:`m` tends to
    :math:`d / (1 - \beta)`, so that the accumulator travels as that of SGD at the rate
    :math:`\gamma' = \gamma / (1 - \beta)`: ten times as far at 0.9. What goes with the
    travel goes at that rate: the threshold, whose law is given :math:`\gamma'`, and the
    decay, which is thereby as strong as the same number is in SGD with momentum and
    decayed gradients. So c, mu and weight_decay mean with momentum what they mean
    without; the learning rate means what it does in :func:`optax.sgd`. (Chained before
    this transformation, :func:`optax.trace` would move the weights at :math:`\gamma'`
    and the threshold at :math:`\gamma`.)

    Args:
      learning_rate: :math:`\gamma`, a positive number, or a schedule that maps the
        count of steps already taken to a nonnegative number.
      law: how the threshold grows.
      momentum: :math:`\beta` in [0, 1), as that of :func:`optax.sgd`; None for none,
        which saves a copy of the parameters.
      nesterov: whether :math:`\beta m_n + d_n` takes the place of :math:`m_n` in the
        step, as in :func:`optax.sgd`.
      proximal: P, a function of :mod:`optax_grda.proximal` or one of your own: from
        the accumulator's pytree and the threshold to weights of the same structure,
        shapes and dtypes. None is :func:`optax_grda.proximal.soft`.
        (:func:`optax.inject_hyperparams` takes a function for a schedule unless it is
        among its ``static_args``.)
      weight_decay: :math:`\lambda \ge 0`, decoupled from the direction. It shrinks the
        accumulator, so that it reaches weights that are zero now. (A chained
        :func:`optax.add_decayed_weights` sees the weights, and spares the zeros.)
      accumulator_dtype: dtype of the accumulator. By default that of the parameter,
        but at least float32, since the accumulator is the master copy of the weights:
        in bfloat16 small steps would be lost. It must be complex exactly where the
        parameters are.

    Returns:
      An :class:`optax.GradientTransformationExtraArgs` whose state is a
      :class:`DualAveragingState`. ``update`` needs ``params`` and ignores extra
      arguments. It returns :math:`w_n` minus ``params``, in the dtypes of ``params``,
      so that :func:`optax.apply_updates` makes zeros exact in every dtype. Rounding in
      that sum does not accumulate: the next weights come from v again. It must come
      last in a chain.

    Raises:
      ValueError: if ``learning_rate`` is a number that is not positive, ``momentum``
        one outside [0, 1) or ``weight_decay`` one below 0 (JAX arrays are not
        checked); if ``nesterov`` is set without ``momentum``; if
        ``accumulator_dtype`` is not inexact, or real for complex parameters; in
        ``update``, if ``params`` is missing, or if updates or params differ in
        structure or shapes from the params at init.
      TypeError: if a number is expected and another type comes; in ``init``, if a
        parameter is of integer or boolean dtype.

    Example:
      A threshold that does not move:

      >>> import jax.numpy as jnp, optax
      >>> from optax_grda import Law, dual_averaging, proximal
      >>> still = Law(
      ...     init=lambda accumulator: (jnp.float32(0.3), ()),
      ...     step=lambda threshold, law_state, *_: (threshold, law_state),
      ... )
      >>> optimizer = dual_averaging(0.1, still, proximal=proximal.hard)
      >>> params = jnp.array([1.0, 0.5, 0.1])
      >>> updates, state = optimizer.update(params, optimizer.init(params), params)
      >>> print(optax.apply_updates(params, updates), state.threshold)
      [0.9  0.45 0.  ] 0.3
    """
    check_number(
        "learning_rate", learning_rate, "> 0", lambda x: x > 0, or_schedule=True
    )
    if momentum is not None:
        check_number("momentum", momentum, "in [0, 1)", lambda x: 0 <= x < 1)
    elif nesterov:
        raise ValueError("momentum must be given with nesterov, got None")
    check_number("weight_decay", weight_decay, ">= 0", lambda x: x >= 0)
    if accumulator_dtype is not None and not jnp.issubdtype(
        accumulator_dtype, jnp.inexact
    ):
        raise ValueError(
            f"accumulator_dtype must be float or complex, got {accumulator_dtype}"
        )
    proximal = soft if proximal is None else proximal

    def pace(gamma: jax.Array) -> jax.Array:
        """gamma'_n."""
        if momentum is None:
            return gamma
        return gamma / (1 - jnp.asarray(momentum).astype(gamma.dtype))

    def init_fn(params: optax.Params) -> DualAveragingState:
        accumulator = _copy_to_accumulator(params, accumulator_dtype)
        threshold, law_state = law.init(accumulator)
        check_number("law.init's threshold", threshold, ">= 0", lambda x: x >= 0)
        threshold = jnp.asarray(threshold, threshold_dtype(accumulator))
        # In the types that a step will give them: inside shard_map, of what differs
        # between devices as soon as c or the learning rate does.
        count = jnp.zeros((), jnp.int32)
        rate = pace(value_at(learning_rate, count, threshold.dtype))
        stepped = law.step(threshold, law_state, count + 1, rate, params)
        threshold, law_state = jax.tree.map(
            lambda start, after: jnp.where(True, start, after),
            (threshold, law_state),
            stepped,
        )
        trace = None if momentum is None else optax.tree.zeros_like(accumulator)
        return DualAveragingState(count, threshold, law_state, accumulator, trace)

    def update_fn(
        updates: optax.Updates,
        state: DualAveragingState,
        params: optax.Params | None = None,
        **extra_args,
    ) -> tuple[optax.Updates, DualAveragingState]:
        del extra_args
        _check_trees(updates, state.accumulator, params)
        gamma = value_at(learning_rate, state.count, state.threshold.dtype)
        rate = pace(gamma)
        count = jnp.asarray(optax.safe_increment(state.count))
        threshold, law_state = law.step(
            state.threshold, state.law_state, count, rate, params
        )
        direction, trace = updates, state.trace
        if momentum is not None:
            trace = _add(trace, momentum, updates)
            direction = _add(trace, momentum, updates) if nesterov else trace
        accumulator = _descend(state.accumulator, direction, gamma, rate, weight_decay)
        weights = weights_at(accumulator, threshold, params, proximal)
        state = DualAveragingState(count, threshold, law_state, accumulator, trace)
        return jax.tree.map(lambda w, p: w - jnp.asarray(p), weights, params), state

    # Optax's protocol has update take any state; ours takes what init makes.
    return optax.GradientTransformationExtraArgs(
        init_fn,
        update_fn,  # pyright: ignore[reportArgumentType]
    )


def grda_params(
    state: optax.OptState, params: optax.Params, proximal: Proximal | None
) -> optax.Params:
    """The weights that a state stands for, P(v, L), to the bit.

    So a checkpoint of a run need not hold the weights beside the state; and a training
    step that ends with this, in place of :func:`optax.apply_updates`, resumes from such
    a checkpoint with exactly the weights it would have had.

    Args:
      state: a :class:`DualAveragingState`, or the state of an optimizer around one, as
        of :func:`optax.chain`, :class:`optax.MultiSteps` or ``nnx.Optimizer``, for all
        of the params.
      params: pytree of arrays or :class:`jax.ShapeDtypeStruct`. Only the structure and
        the dtypes count.
      proximal: the one given to the optimizer, None if none was. With another one,
        these would be other weights.

    Returns:
      Pytree like ``params``.

    Raises:
      ValueError: if state does not hold exactly one such state, or that one is for
        params with other paths or shapes.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_grda import grda, grda_params
      >>> params = {"kernel": jnp.ones((2, 2), jnp.bfloat16)}
      >>> state = grda(0.1).init(params)
      >>> grda_params(state, params, proximal=None)["kernel"].dtype
      dtype(bfloat16)
    """

    found = dual_averages(state)
    if len(found) != 1:
        raise ValueError(f"state must hold one DualAveragingState, got {len(found)}")
    # Flax boxes the arrays of a state in variables of its own.
    threshold, *_ = jax.tree.leaves(found[0].threshold)
    accumulator = _in_structure_of(params, found[0].accumulator)
    proximal = soft if proximal is None else proximal
    return weights_at(accumulator, threshold, params, proximal)


def dual_averages(state: optax.OptState) -> list[DualAveragingState]:
    """Those in the state of an optimizer around them, in its order."""

    def is_one(node: Any) -> bool:
        return isinstance(node, DualAveragingState)

    return [node for node in jax.tree.leaves(state, is_leaf=is_one) if is_one(node)]


def weights_at(
    accumulator: PyTree, threshold: jax.Array, params: PyTree, proximal: Proximal
) -> PyTree:
    """P(v, L), in the dtypes of params."""
    weights = proximal(accumulator, threshold)
    return jax.tree.map(lambda w, p: w.astype(jnp.result_type(p)), weights, params)


def value_at(
    scalar_or_schedule: optax.ScalarOrSchedule, count: jax.Array, dtype: jnp.dtype
) -> jax.Array:
    """The number, or the schedule's value at the count, in the dtype."""
    value = scalar_or_schedule
    value = value(count) if callable(value) else value
    return jnp.asarray(value).astype(dtype)


def threshold_dtype(accumulator: PyTree) -> jnp.dtype:
    """float32, or float64 where an accumulator's real part is float64."""
    wide = any(jnp.finfo(v.dtype).bits > 32 for v in jax.tree.leaves(accumulator))
    return jnp.dtype(jnp.float64 if wide else jnp.float32)


def _copy_to_accumulator(params: PyTree, dtype: jax.typing.DTypeLike | None) -> PyTree:
    """v_0 = w_0, in at least float32 unless a dtype is given, in buffers of its own."""

    def copy(name, leaf):
        leaf = jnp.asarray(leaf)
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise TypeError(
                "params must have float or complex leaves, "
                f"got {leaf.dtype} at {name or 'the root'}"
            )
        wanted = at_least_float32(leaf.dtype) if dtype is None else jnp.dtype(dtype)
        if jnp.iscomplexobj(leaf) != jnp.issubdtype(wanted, jnp.complexfloating):
            raise ValueError(
                "accumulator_dtype must be complex where params are complex and real "
                f"where they are real, got {wanted} for {leaf.dtype} at "
                f"{name or 'the root'}"
            )
        return jnp.array(leaf, dtype=wanted, copy=True)

    return map_named(copy, params)


def _descend(
    accumulator: PyTree,
    updates: PyTree,
    gamma: jax.Array,
    pace: jax.Array,
    weight_decay: jax.typing.ArrayLike,
) -> PyTree:
    """v_n = (1 - gamma'_n lambda) v_{n-1} - gamma_n m_n, in the dtypes of v."""
    without_decay = isinstance(weight_decay, (int, float)) and weight_decay == 0

    def step(v, m):
        if not without_decay:
            decay = pace * jnp.asarray(weight_decay).astype(pace.dtype)
            v = (1 - decay.astype(v.dtype)) * v
        return v - gamma.astype(v.dtype) * jnp.asarray(m, v.dtype)

    return jax.tree.map(step, accumulator, updates)


def _add(trace: PyTree, momentum: jax.typing.ArrayLike, updates: PyTree) -> PyTree:
    """beta m + d, in the dtypes of m."""

    def add(m, d):
        return jnp.asarray(momentum).astype(m.dtype) * m + jnp.asarray(d, m.dtype)

    return jax.tree.map(add, trace, updates)


def _check_trees(updates: PyTree, accumulator: PyTree, params: PyTree) -> None:
    """Raises ValueError unless all three have the same structure and shapes."""
    if params is None:
        raise ValueError(
            "params must be given to update, as in "
            "`optimizer.update(gradients, state, params)`: got None"
        )
    for argument, tree in (("updates", updates), ("params", params)):
        if difference := structure_difference(accumulator, tree):
            raise ValueError(
                f"{argument} must have the structure of the params given to init: "
                f"{difference}"
            )
        shapes = map(jnp.shape, jax.tree.leaves(tree))
        for (name, v), shape in zip(named_leaves(accumulator), shapes, strict=True):
            if shape != v.shape:
                raise ValueError(
                    f"{argument} must have the shapes of the params given to init, "
                    f"{v.shape} at {name or 'the root'}: got {shape}"
                )


def _in_structure_of(params: PyTree, accumulator: PyTree) -> PyTree:
    """The accumulator's leaves in the structure of params of the same names."""
    mine, theirs = (
        [(name, jnp.shape(leaf)) for name, leaf in named_leaves(tree)]
        for tree in (params, accumulator)
    )
    if mine != theirs:
        lacking = dict(leaf for leaf in theirs if leaf not in mine)
        unknown = dict(leaf for leaf in mine if leaf not in theirs)
        raise ValueError(
            "params must have the names and shapes of those given to init (under "
            f"optax.partition, those of the label): lacks {lacking}, and has {unknown}"
        )
    return jax.tree.unflatten(jax.tree.structure(params), jax.tree.leaves(accumulator))
