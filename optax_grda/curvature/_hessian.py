"""The Hessian of a mean loss and its Gauss-Newton part, as products with vectors."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_grda._loops import scan

PyTree = Any


# Compared by identity, so that an operator is a function JAX can hash.
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Hessian:
    r"""The Hessian of a mean loss, as an operator that multiplies vectors.

    .. math:: v \mapsto H v, \qquad
      H = \frac{1}{B} \sum_{b=1}^B \nabla^2_w\, \mathrm{loss}(w, \mathrm{batch}_b)

    Products are taken forward over reverse, batch after batch in one
    :func:`jax.lax.scan`, in the memory of one batch. A product costs about two
    gradients of the same mean loss. (On a CPU, convolutions are some 20 times slower in
    such a loop: stack one batch there, which needs none.)

    Batches are stacked along a leading axis, so they have equal sizes. The loss is as
    in evaluation: dropout would make products noisy, and BatchNorm in training mode
    would make them those of another loss.

    It is itself a pytree: as an argument of a function under :func:`jax.jit`, neither
    its params nor its batches become constants of the program, and others of the same
    shapes run without compiling again. Both may be sharded; H v is sharded like params.

    .. note::
      GPUs and TPUs round float32 products to about three digits, unless asked for more
      by ``jax.default_matmul_precision("highest")`` around the calls.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optax_grda.curvature import Hessian
      >>> def loss_fn(params, batch):
      ...     images, targets = batch
      ...     return jnp.mean(jnp.square(images @ params["kernel"] - targets)) / 2
      >>> params = {"kernel": jnp.zeros(2)}
      >>> images, targets = jnp.array([[1.0, 0.0], [0.0, 2.0]]), jnp.zeros(2)
      >>> batches = jax.tree.map(  # two batches of one image
      ...     lambda x: x.reshape(2, -1, *x.shape[1:]), (images, targets)
      ... )
      >>> hessian = Hessian(loss_fn, params, batches)
      >>> print(hessian({"kernel": jnp.ones(2)}))
      {'kernel': Array([0.5, 2. ], dtype=float32)}

    References:
      Pearlmutter, `Fast exact multiplication by the Hessian
      <https://doi.org/10.1162/neco.1994.6.1.147>`_, Neural Computation, 1994.
    """

    # (params, batch) -> mean loss over the batch, a scalar
    loss_fn: Callable[[PyTree, PyTree], jax.Array] = dataclasses.field(
        metadata={"static": True}
    )
    params: PyTree  # w, leaves of float32 or float64
    batches: PyTree  # arrays with a leading axis of B >= 1 batches

    @jax.jit
    def __call__(self, vector: PyTree) -> PyTree:
        """H v.

        Args:
          vector: v, pytree with the structure, shapes and dtypes of params.

        Returns:
          Pytree like vector.

        Raises:
          ValueError: if the leaves of batches differ in length or hold no batch.
        """

        def product(batch):
            def gradient(params):
                return jax.grad(self.loss_fn)(params, batch)

            return jax.jvp(gradient, (self.params,), (vector,))[1]

        return _mean(product, self.batches, like=self.params)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class GaussNewton:
    r"""The Gauss-Newton matrix of a mean loss, as an operator that multiplies vectors.

    .. math:: v \mapsto G v, \qquad
      G = \frac{1}{B} \sum_{b=1}^B J_b^\top \Lambda_b J_b

    with :math:`J_b` the Jacobian of the model's outputs with respect to the params, and
    :math:`\Lambda_b` the Hessian of the loss with respect to the outputs. It is the
    :class:`Hessian` without the curvature of the model, which vanishes as the model
    comes to fit the data. Unlike the Hessian it is positive semidefinite at any params,
    if the loss is convex in the outputs, as cross-entropy and squares are.

    Everything else is as for :class:`Hessian`: the batches, the cost, the precision,
    and what becomes of it under ``jit``.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_grda.curvature import GaussNewton
      >>> def model_fn(params, batch):
      ...     return batch["images"] @ params
      >>> def loss_fn(outputs, batch):
      ...     return jnp.mean(jnp.square(outputs - batch["targets"])) / 2
      >>> batches = {  # two batches of one image
      ...     "images": jnp.array([[[1.0, 0.0]], [[0.0, 2.0]]]),
      ...     "targets": jnp.zeros((2, 1)),
      ... }
      >>> gauss_newton = GaussNewton(model_fn, loss_fn, jnp.zeros(2), batches)
      >>> print(gauss_newton(jnp.ones(2)), gauss_newton.diagonal())
      [0.5 2. ] [0.5 2. ]

    References:
      Schraudolph, `Fast curvature matrix-vector products for second-order gradient
      descent <https://doi.org/10.1162/08997660260028683>`_, Neural Computation, 2002.
    """

    # (params, batch) -> outputs, an array such as logits
    model_fn: Callable[[PyTree, PyTree], jax.Array] = dataclasses.field(
        metadata={"static": True}
    )
    # (outputs, batch) -> mean loss over the batch, a scalar
    loss_fn: Callable[[jax.Array, PyTree], jax.Array] = dataclasses.field(
        metadata={"static": True}
    )
    params: PyTree  # w, leaves of float32 or float64
    batches: PyTree  # arrays with a leading axis of B >= 1 batches

    @jax.jit
    def __call__(self, vector: PyTree) -> PyTree:
        """G v.

        Args:
          vector: v, pytree with the structure, shapes and dtypes of params.

        Returns:
          Pytree like vector.

        Raises:
          ValueError: if the leaves of batches differ in length or hold no batch.
        """

        def product(batch):
            def model(params):
                return self.model_fn(params, batch)

            def gradient(outputs):
                return jax.grad(self.loss_fn)(outputs, batch)

            outputs, tangent = jax.jvp(model, (self.params,), (vector,))
            curved = jax.jvp(gradient, (outputs,), (tangent,))[1]
            return jax.vjp(model, self.params)[1](curved)[0]

        return _mean(product, self.batches, like=self.params)

    @jax.jit
    def diagonal(self) -> PyTree:
        """The diagonal of G, exactly.

        One example at a time, for the price of about one gradient per output and in the
        memory of one example's Jacobian. (Random probes, v * G v for random signs v,
        do not replace it: a thousand leave an error of half the diagonal's norm in a
        64-128-64-10 network, too much to prune by.)

        It asks for more than a product does: the batches' second axis must run over
        examples, and the loss be the mean of the losses of single examples.

        Returns:
          Pytree with the structure, shapes and dtypes of params.

        Raises:
          ValueError: if the leaves of batches differ in length or hold no batch, or if
            those of a batch differ in length or hold no example.
        """

        def term(example):
            batch = jax.tree.map(lambda x: x[None], example)

            outputs = self.model_fn(self.params, batch)

            def model(params):
                return jnp.ravel(self.model_fn(params, batch))

            def loss(flat_outputs):
                return self.loss_fn(flat_outputs.reshape(outputs.shape), batch)

            jacobian = jax.jacrev(model)(self.params)
            curvature = jax.hessian(loss)(jnp.ravel(outputs))
            return jax.tree.map(
                lambda j: jnp.sum(j * jnp.tensordot(curvature, j, 1), axis=0), jacobian
            )

        def mean_term(batch):
            return _mean(term, batch, like=self.params)

        return _mean(mean_term, self.batches, like=self.params)


def _mean(term: Callable[[PyTree], PyTree], stack: PyTree, like: PyTree) -> PyTree:
    """The mean of term(x) over the entries x of a stack, one after another."""
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(stack)]
    lengths = {shape[:1] for shape in shapes}
    if len(lengths) != 1 or lengths <= {(), (0,)}:
        raise ValueError(
            "batches must have leaves with a leading axis of one length >= 1, "
            f"got shapes {shapes}"
        )
    ((length,),) = lengths

    def add(total, x):
        return optax.tree.add(total, term(x)), None

    total, _ = scan(add, optax.tree.zeros_like(like), stack)
    return optax.tree.scale(1 / length, total)
