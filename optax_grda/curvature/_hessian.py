"""The Hessian of a mean loss and its Gauss-Newton part, as products with vectors."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optax_grda._arrays import replicated
from optax_grda._checks import check_integer
from optax_grda._loops import scan, stack_length

PyTree = Any

# Floats of the Jacobians that GaussNewton.diagonal holds at once, by default.
JACOBIAN_SIZE = 2**26


# Compared by identity, so that an operator is a function JAX can hash.
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Hessian:
    r"""The Hessian of a mean loss, as an operator that multiplies vectors.

    .. math:: v \mapsto H v, \qquad
      H = \frac{1}{B} \sum_{b=1}^B \nabla^2_w\, \mathrm{loss}(w, \mathrm{batch}_b)

    Products are taken forward over reverse, batch after batch, in the memory of one
    batch. A product costs about two gradients of the same mean loss.

    Called from Python, it loops over the batches there; called under :func:`jax.jit`,
    in one :func:`jax.lax.scan`. On a CPU call it from Python if the model has
    convolutions: they are some 20 times slower in a loop inside a program.

    Batches are stacked along a leading axis, so they have equal sizes. Those that do
    not fit in memory together are summed by the caller, as in the example. The loss is
    as in evaluation: dropout would make products noisy, and BatchNorm in training mode
    would make them those of another loss.

    It is itself a pytree: as an argument of a function under :func:`jax.jit`, neither
    its params nor its batches become constants of the program, and others of the same
    shapes run without compiling again. Both may be sharded; H v is sharded like params
    (over Auto axes, as the compiler chooses).

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

      The same where batches come one by one, from a disk say:

      >>> def matvec(vector):
      ...     total = jax.tree.map(jnp.zeros_like, params)
      ...     for batch in zip(*batches):
      ...         stack = jax.tree.map(lambda x: x[None], batch)
      ...         product = Hessian(loss_fn, params, stack)(vector)
      ...         total = jax.tree.map(lambda t, p: t + p / 2, total, product)
      ...     return total
      >>> print(matvec({"kernel": jnp.ones(2)}))
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

    def __call__(self, vector: PyTree) -> PyTree:
        """H v.

        Args:
          vector: v, pytree with the structure, shapes and dtypes of params.

        Returns:
          Pytree like vector.

        Raises:
          ValueError: if the leaves of batches differ in length or hold no batch.
        """
        return _mean_product(self, vector)

    def _product(self, batch: PyTree, vector: PyTree) -> PyTree:
        def gradient(params):
            return jax.grad(self.loss_fn)(params, batch)

        return jax.jvp(gradient, (self.params,), (vector,))[1]


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

    Everything else is as for :class:`Hessian`: the batches and the loop over them, the
    cost, the precision, and what becomes of it under ``jit``.

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

    def __call__(self, vector: PyTree) -> PyTree:
        """G v.

        Args:
          vector: v, pytree with the structure, shapes and dtypes of params.

        Returns:
          Pytree like vector.

        Raises:
          ValueError: if the leaves of batches differ in length or hold no batch.
        """
        return _mean_product(self, vector)

    def diagonal(self, *, chunk: int | None = None) -> PyTree:
        """The diagonal of G, exactly.

        For the price of about one gradient per output of every example. (Random probes,
        v * G v for random signs v, do not replace it: a thousand leave an error of half
        the diagonal's norm in a 64-128-64-10 network, too much to prune by.)

        It asks for more than a product does: the batches' second axis must run over
        examples, and the loss be the mean of the losses of single examples.

        Args:
          chunk: how many examples are taken at once, at the price of memory for chunk
            times outputs times parameters floats. By default as many as fit in 2^26
            floats (256 MB in float32), but at least one. Convolutions on a CPU are
            fastest one by one.

        Returns:
          Pytree with the structure, shapes and dtypes of params.

        Raises:
          ValueError: if the leaves of batches differ in length or hold no batch, or if
            those of a batch differ in length or hold no example; if chunk is below 1.
          TypeError: if chunk is not an integer.
        """
        number = stack_length("batches", self.batches)
        examples = stack_length(
            "batches", jax.eval_shape(lambda b: jax.tree.map(_first, b), self.batches)
        )
        if chunk is None:
            chunk = self._chunk()
        check_integer("chunk", chunk, "an integer >= 1", lambda n: n >= 1)
        starts = np.arange(0, examples, min(chunk, examples), dtype=np.int32)
        offsets = np.arange(min(chunk, examples), dtype=np.int32)
        stack = (
            np.repeat(np.arange(number, dtype=np.int32), len(starts)),
            np.tile(starts[:, None] + offsets, (number, 1)),
        )
        zeros = jax.tree.map(jnp.zeros_like, self.params)
        return scan(_add_diagonal, (self, number * examples), zeros, stack)[0]

    def _chunk(self) -> int:
        example = jax.tree.map(lambda x: x[:1], jax.tree.map(_first, self.batches))
        outputs = jax.eval_shape(self.model_fn, self.params, example).size
        parameters = sum(math.prod(jnp.shape(w)) for w in jax.tree.leaves(self.params))
        return max(1, JACOBIAN_SIZE // (outputs * parameters))

    def _product(self, batch: PyTree, vector: PyTree) -> PyTree:
        def model(params):
            return self.model_fn(params, batch)

        def gradient(outputs):
            return jax.grad(self.loss_fn)(outputs, batch)

        outputs, tangent = jax.jvp(model, (self.params,), (vector,))
        curved = jax.jvp(gradient, (outputs,), (tangent,))[1]
        return jax.vjp(model, self.params)[1](curved)[0]

    def _diagonal_of(self, example: PyTree) -> PyTree:
        """The diagonal of one example's Gauss-Newton matrix."""
        batch = jax.tree.map(lambda x: x[None], example)
        shape = jax.eval_shape(self.model_fn, self.params, batch).shape

        def model(params):
            return replicated(self.model_fn(params, batch)).ravel()

        def loss(outputs):
            return self.loss_fn(outputs.reshape(shape), batch)

        jacobian = jax.jacrev(model)(self.params)
        curvature = jax.hessian(loss)(model(self.params))
        return jax.tree.map(
            lambda j: jnp.sum(j * jnp.tensordot(curvature, j, 1), axis=0), jacobian
        )


def _mean_product(operator: Hessian | GaussNewton, vector: PyTree) -> PyTree:
    """The mean of an operator's products over its batches."""
    number = stack_length("batches", operator.batches)
    constants = (dataclasses.replace(operator, batches=None), vector, number)
    zeros = jax.tree.map(jnp.zeros_like, operator.params)
    return scan(_add_product, constants, zeros, operator.batches)[0]


def _add_product(constants: PyTree, total: PyTree, batch: PyTree):
    operator, vector, number = constants
    product = operator._product(batch, vector)
    return jax.tree.map(lambda t, p: t + p / number, total, product), None


def _add_diagonal(constants: PyTree, total: PyTree, where: tuple[jax.Array, jax.Array]):
    """Adds the terms of some examples of a batch; positions beyond the last count 0."""
    operator, number = constants
    batch, positions = where
    stacks = jax.tree.map(lambda x: replicated(x[batch]), operator.batches)
    last = len(jax.tree.leaves(stacks)[0]) - 1
    terms = jax.vmap(operator._diagonal_of)(
        jax.tree.map(lambda x: x[jnp.minimum(positions, last)], stacks)
    )

    def add(sum_, term):
        weights = jnp.where(positions <= last, 1 / number, 0).astype(term.dtype)
        return sum_ + jnp.tensordot(weights, term, 1)

    return jax.tree.map(add, total, terms), None


def _first(x: jax.Array) -> jax.Array:
    return x[0]
