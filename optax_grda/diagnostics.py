"""What a setting will do, before training; and what goes wrong, during it.

Before: :func:`check_descent`, :func:`predicted_threshold`, :func:`c_for_sparsity`.
During: :func:`health`, :func:`health_warnings`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_grda._checks import check_integer, check_number
from optax_grda._dual_averaging import dual_averages
from optax_grda._paths import weights_of
from optax_grda._sparsity import sparsity

PyTree = Any

MOVES = 32  # steps in which an optimizer moves, if it does


class Health(NamedTuple):
    """What :func:`health` sees. A pytree of scalars, so it may leave a jitted step."""

    finite: jax.Array  # no entry is NaN or infinite. shape=(), dtype=bool
    sparsity: jax.Array  # over all leaves. shape=(), dtype=jnp.float32
    kernels: dict[str, jax.Array]  # sparsity by path. shape=(), dtype=jnp.float32


def health(params: PyTree) -> Health:
    """A record of what goes wrong under a threshold that is too high. Jittable.

    The weights tell all: they are NaN or infinite where the accumulator is, and zero
    where the threshold has passed it.

    Args:
      params: pytree of arrays; those that are no weights, such as random keys in an
        NNX State, are passed over.

    Returns:
      A :class:`Health`. Its ``kernels`` are the leaves of two or more axes: a layer
      whose kernel is zero passes nothing on, while a bias of zeros is no illness.

    Raises:
      ValueError: if params hold no entry.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optax_grda.diagnostics import health, health_warnings
      >>> params = {"hidden": {"kernel": jnp.zeros((3, 2)), "bias": jnp.ones(2)}}
      >>> record = jax.jit(health)(params)
      >>> print(record.finite, record.sparsity, record.kernels["hidden/kernel"])
      True 0.75 1.0
      >>> [warning] = health_warnings(record)
      >>> print(warning.partition(":")[0])
      hidden/kernel is all zero, so that nothing passes
    """
    leaves = weights_of(params)
    return Health(
        finite=jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for _, leaf in leaves])),
        sparsity=sparsity(params),
        kernels={
            name: sparsity(leaf)
            for name, leaf in leaves
            if jnp.ndim(leaf) >= 2 and jnp.size(leaf)
        },
    )


def health_warnings(
    record: Health, previous: Health | None = None, *, jump: float = 0.1
) -> list[str]:
    """What is wrong, and what to lower: for the host, outside ``jit``.

    Args:
      record: a :class:`Health` of concrete scalars.
      previous: one from some steps before, so that what it already showed is not said
        again, and jumps are seen.
      jump: the rise of a kernel's sparsity since ``previous`` that is worth a warning,
        in (0, 1].

    Returns:
      A sentence for each finding; none for a network in good health.

    Raises:
      ValueError: if ``jump`` is outside (0, 1], or the records are of different params.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_grda.diagnostics import health, health_warnings
      >>> before, after = jnp.eye(2), jnp.zeros((2, 2)).at[0, 0].set(1.0)
      >>> health_warnings(health({"head": after}), health({"head": before}), jump=0.2)
      ['head went from 50.0% to 75.0% zeros: lower c or mu of grda, or what \
target_sparsity asks for, or let it rise more slowly']
    """
    check_number("jump", jump, "in (0, 1]", lambda x: 0 < x <= 1)
    if previous is None:
        previous = Health(jnp.array(True), jnp.zeros(()), {})
    elif previous.kernels.keys() != record.kernels.keys():
        raise ValueError(
            f"previous must be of the params of record, {sorted(record.kernels)}: got "
            f"{sorted(previous.kernels)}"
        )
    if not record.finite:
        if not previous.finite:
            return []
        return [
            "the weights are not finite, and the accumulator will keep them so: lower "
            "the learning rate, or wrap the optimizer in optax.apply_if_finite"
        ]
    remedy = "lower c or mu of grda, or what target_sparsity asks for"
    warnings = []
    for name, now in record.kernels.items():
        before = previous.kernels.get(name, jnp.minimum(now, 1 - jump))
        if now == 1 and before < 1:
            warnings.append(
                f"{name} is all zero, so that nothing passes: {remedy}, or keep it out "
                "with optax.partition"
            )
        elif now - before > jump:
            warnings.append(
                f"{name} went from {before:.1%} to {now:.1%} zeros: {remedy}, or let "
                "it rise more slowly"
            )
    if not record.kernels and record.sparsity == 1 and previous.sparsity < 1:
        warnings.append(f"all weights are zero: {remedy}")
    return warnings


def check_descent(
    optimizer: optax.GradientTransformation, params: optax.Params, **extra_args
) -> None:
    """Raises if what comes before gRDA in a chain makes it climb.

    :func:`optax_grda.grda` and its relatives take a direction, such as a gradient or
    what :func:`optax.scale_by_adam` makes of it, and go against it.
    :func:`optax.sgd`, :func:`optax.adam` and all other whole optimizers have turned
    the sign and scaled it: chained before gRDA, they make the loss climb, without a
    word. Steps from the same start, under gradients of ones and of minus ones, tell:
    take them once, before training.

    Args:
      optimizer: an Optax optimizer with :func:`optax_grda.grda` or another
        :func:`optax_grda.dual_averaging` somewhere in it.
      params: pytree of concrete arrays. They are not changed.
      **extra_args: what ``optimizer.update`` needs besides, such as ``value``.

    Raises:
      ValueError: if the accumulator moves along the gradient; if there is none; or if
        it has not moved after 32 steps, be it that the steps are lost in rounding, or
        that a warm-up or :class:`optax.MultiSteps` takes longer.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from optax_grda import grda
      >>> from optax_grda.diagnostics import check_descent
      >>> params = {"kernel": jnp.ones((3, 2))}
      >>> check_descent(optax.chain(optax.trace(0.9), grda(0.1)), params)
      >>> try:
      ...     check_descent(optax.chain(optax.sgd(0.1), grda(0.1)), params)
      ... except ValueError as error:
      ...     print(str(error).partition(":")[0])
      optimizer must give gRDA a direction, not a step
    """
    optimizer = optax.with_extra_args_support(optimizer)
    if not dual_averages(optimizer.init(params)):
        raise ValueError("optimizer must hold grda or another dual averaging")

    @jax.jit
    def step(sign: float, weights: optax.Params, state: optax.OptState):
        gradient = jax.tree.map(lambda p: jnp.full_like(p, sign), params)
        updates, state = optimizer.update(gradient, state, weights, **extra_args)
        return optax.apply_updates(weights, updates), state

    def accumulators(state: optax.OptState) -> list[jax.Array]:
        return jax.tree.leaves([node.accumulator for node in dual_averages(state)])

    up = down = params, optimizer.init(params)
    for _ in range(MOVES):
        up, down = step(1.0, *up), step(-1.0, *down)
        pairs = zip(accumulators(up[1]), accumulators(down[1]), strict=True)
        apart = float(sum(jnp.sum(jnp.real(v - w)) for v, w in pairs))
        if apart > 0:
            raise ValueError(
                "optimizer must give gRDA a direction, not a step: what comes before "
                "it in the chain has turned the sign, as optax.sgd and optax.adam do, "
                "so that the loss would climb. Chain optax.trace or "
                "optax.scale_by_adam instead"
            )
        if apart < 0:
            return
    raise ValueError(
        f"optimizer must move the accumulator within {MOVES} steps to be checked, and "
        "did not"
    )


def predicted_threshold(
    learning_rate: optax.ScalarOrSchedule,
    c: float,
    mu: float,
    steps: int,
    *,
    momentum: float | None = None,
) -> float:
    r"""The threshold that :func:`~optax_grda.grda` reaches after so many steps.

    At a constant learning rate :math:`L_n = c\, \gamma^{1/2} (n \gamma)^\mu`, with
    :math:`\gamma / (1 - \beta)` in place of :math:`\gamma` under momentum; for a
    schedule the increments are summed, in float64, on the host.

    Args:
      learning_rate, c, mu: as for :func:`~optax_grda.grda`, not traced.
      steps: n >= 0.
      momentum: as for :func:`~optax_grda.grda`, not traced.

    Returns:
      The threshold. Weights within it are zero: compare it with the moduli that SGD's
      weights have.

    Raises:
      ValueError: if an argument is outside the range that :func:`~optax_grda.grda`
        asks for, or ``steps`` is negative.
      TypeError: if ``steps`` is no integer.

    Example:
      >>> import optax
      >>> from optax_grda.diagnostics import predicted_threshold
      >>> print(f"{predicted_threshold(0.1, c=0.005, mu=0.51, steps=10_000):.4f}")
      0.0536
      >>> schedule = optax.linear_schedule(0.1, 0.0, 10_000)
      >>> print(f"{predicted_threshold(schedule, c=0.005, mu=0.51, steps=10_000):.4f}")
      0.0354
    """
    check_number(
        "learning_rate", learning_rate, "> 0", lambda x: x > 0, or_schedule=True
    )
    check_number("c", c, ">= 0", lambda x: x >= 0)
    check_number("mu", mu, "in (0, 1]", lambda x: 0 < x <= 1)
    check_integer("steps", steps, "an integer >= 0", lambda x: x >= 0)
    if momentum is not None:
        check_number("momentum", momentum, "in [0, 1)", lambda x: 0 <= x < 1)
    slower = 1 - (momentum or 0.0)
    if not callable(learning_rate):
        gamma = learning_rate / slower
        return float(c * gamma**0.5 * (steps * gamma) ** mu)
    counts = jnp.arange(steps, dtype=jnp.int32)
    gamma = np.asarray(jax.vmap(learning_rate)(counts), np.float64) / slower
    powers = np.arange(steps + 1, dtype=np.float64) ** mu
    return float(c * np.sum(gamma ** (mu + 0.5) * np.diff(powers)))


def c_for_sparsity(
    accumulator: PyTree,
    sparsity: float,
    learning_rate: optax.ScalarOrSchedule,
    mu: float,
    steps: int,
    *,
    momentum: float | None = None,
) -> float:
    """The c with which gRDA ends at a sparsity, if the accumulator stays as it is.

    It is the c whose threshold after ``steps`` steps is the quantile of the moduli in
    the accumulator. It does not stay as it is. On networks such as that of digits
    weights that matter grow with the threshold, so c comes out low, and the less so
    the longer the run was that the accumulator comes from; where SGD shrinks weights
    that do not matter, c comes out high. For 80 / 90 / 95 % on the digits network over
    60 epochs (mean of 5 seeds; mu 0.6, learning rate 0.1), training with the c found
    gave

    - 70 / 80 / 85 %, from one epoch of plain SGD,
    - 77 / 87 / 92 %, from 15 epochs of the dial, ramp included,
    - 79 / 89 / 94 %, from 30,
    - 80 / 90 / 95 %, from 60.

    So one epoch gives a first guess, and a short run of the dial,
    :func:`~optax_grda.target_sparsity`, a better one; to get the sparsity itself, train
    with that.

    Args:
      accumulator: ``state.accumulator`` of a run of :func:`~optax_grda.grda` or
        :func:`~optax_grda.target_sparsity`; for SGD, its weights.
      sparsity: the fraction of zeros wanted, in [0, 1).
      learning_rate, mu, steps, momentum: of the run that c is for; steps > 0.

    Returns:
      c.

    Raises:
      ValueError: if an argument is out of its range, or the accumulator is empty.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_grda.diagnostics import c_for_sparsity, predicted_threshold
      >>> accumulator = {"kernel": jnp.array([0.1, -0.2, 0.3, -0.4, 0.5])}
      >>> c = c_for_sparsity(accumulator, 0.6, learning_rate=0.1, mu=0.6, steps=1000)
      >>> print(f"{predicted_threshold(0.1, c, mu=0.6, steps=1000):.2f}")
      0.30
    """
    check_number("sparsity", sparsity, "in [0, 1)", lambda x: 0 <= x < 1)
    check_integer("steps", steps, "an integer > 0", lambda x: x > 0)
    moduli = [np.abs(np.asarray(v)).ravel() for v in jax.tree.leaves(accumulator)]
    moduli = np.concatenate([np.zeros(0), *moduli])
    if not moduli.size:
        raise ValueError("accumulator must hold at least one entry, got none")
    zeros = round(sparsity * moduli.size)
    threshold = np.partition(moduli, zeros - 1)[zeros - 1] if zeros else 0.0
    reached = predicted_threshold(learning_rate, 1.0, mu, steps, momentum=momentum)
    if reached == 0:
        raise ValueError(
            f"learning_rate must be > 0 at some of the {steps} steps, got 0 at all"
        )
    return float(threshold / reached)
