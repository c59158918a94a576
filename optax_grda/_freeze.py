"""A frozen support: zeros stay zero while the other weights train on."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

PyTree = Any


class FreezeZerosState(NamedTuple):
    """State of :func:`freeze_zeros`."""

    support: PyTree  # where params were not zero. shapes of params, dtype=bool
    inner_state: optax.OptState  # of the inner transformation


def freeze_zeros(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Trains on with any optimizer, on the weights that are not zero.

    For the last epochs of a run: :func:`grda`, which goes on raising its threshold,
    would go on removing weights that the network needs. On the digits network (5 seeds,
    60 epochs of :func:`target_sparsity`), 10 more epochs of SGD in this, at a tenth of
    the learning rate, brought the test accuracy from 97.8 to 98.2 % at 95 % sparsity,
    and from 96.8 to 97.5 % at 98 %. (So did 10 more of target_sparsity itself.)

    Args:
      inner: what trains the other weights. It sees gradients that are 0 where the zeros
        are, so that momenta and norms are those of the others.

    Returns:
      An :class:`optax.GradientTransformationExtraArgs` with a state of its own, a
      :class:`FreezeZerosState`: ``init`` takes the sparse params and remembers where
      they are zero. Extra arguments go to ``inner``.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from optax_grda import freeze_zeros
      >>> params = jnp.array([0.0, 0.5, 0.0])  # trained by grda, say
      >>> optimizer = freeze_zeros(optax.sgd(0.5))
      >>> state = optimizer.init(params)
      >>> gradients = jnp.array([1.0, 0.5, jnp.nan])
      >>> updates, state = optimizer.update(gradients, state, params)
      >>> print(optax.apply_updates(params, updates))
      [0.   0.25 0.  ]
    """
    inner = optax.with_extra_args_support(inner)

    def init_fn(params: optax.Params) -> FreezeZerosState:
        support = jax.tree.map(lambda p: jnp.asarray(p) != 0, params)
        return FreezeZerosState(support, inner.init(params))

    def update_fn(
        updates: optax.Updates,
        state: FreezeZerosState,
        params: optax.Params | None = None,
        **extra_args,
    ) -> tuple[optax.Updates, FreezeZerosState]:
        updates = _where(state.support, updates)
        updates, inner_state = inner.update(
            updates, state.inner_state, params, **extra_args
        )
        updates = _where(state.support, updates)
        return updates, FreezeZerosState(state.support, inner_state)

    # Optax's protocol has update take any state; ours takes what init makes.
    return optax.GradientTransformationExtraArgs(
        init_fn,
        update_fn,  # pyright: ignore[reportArgumentType]
    )


def _where(support: PyTree, updates: PyTree) -> PyTree:
    return jax.tree.map(lambda s, u: jnp.where(s, u, 0), support, updates)
