"""Whether a network is being thresholded to death, in time to do something about it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optax_grda._checks import check_number
from optax_grda._paths import weights_of
from optax_grda._sparsity import sparsity

PyTree = Any


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
      params: pytree of arrays.

    Returns:
      A :class:`Health`. Its ``kernels`` are the leaves of two or more axes: a layer
      whose kernel is zero passes nothing on, while a bias of zeros is no illness.

    Raises:
      ValueError: if params hold no entry.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optax_grda import health, health_warnings
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
      >>> from optax_grda import health, health_warnings
      >>> before, after = jnp.eye(2), jnp.zeros((2, 2)).at[0, 0].set(1.0)
      >>> health_warnings(health({"head": after}), health({"head": before}), jump=0.2)
      ['head went from 50.0% to 75.0% zeros: lower c or mu of grda, or what \
target_sparsity asks for, or let it rise more slowly']
    """
    check_number("jump", jump, "in (0, 1]", lambda x: 0 < x <= 1)
    if previous is None:
        previous = Health(jnp.array(True), record.sparsity, {})
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
    return warnings
