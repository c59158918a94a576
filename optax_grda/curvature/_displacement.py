"""Where gRDA went from SGD's solution: along steep directions? As the theory says?"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optax_grda._points import check_points
from optax_grda._trees import dot, norm, subtract, total, widen

PyTree = Any


def projection_fraction(delta: PyTree, eigenvectors: PyTree) -> jax.Array:
    r"""The share of a displacement's squared length that lies in an eigenspace.

    .. math:: \frac{\sum_{i=1}^k (v_i \cdot \delta)^2}{|\delta|^2}

    With :math:`\delta = w_\mathrm{gRDA} - w_\mathrm{SGD}` and the top eigenvectors
    of SGD's Hessian it is small if gRDA left SGD's solution in flat directions only. A
    random direction has k over the number of parameters on average. (The figure of
    the paper shows the square root of this, divided by a further :math:`\sqrt{10}`.)

    Pure and jittable.

    Args:
      delta: pytree of real float arrays.
      eigenvectors: the same with a leading axis of k: orthonormal vectors, as in
        :class:`Eigenpairs`.

    Returns:
      Scalar array in [0, 1] up to rounding; NaN if delta is zero.

    Raises:
      ValueError: if eigenvectors are not as stated.
      TypeError: if a leaf is not of a real float dtype.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_grda.curvature import projection_fraction
      >>> first_axis = jnp.array([[1.0, 0.0]])
      >>> print(projection_fraction(jnp.array([3.0, 4.0]), first_axis).round(3))
      0.36
    """
    return _projection_fraction(delta, eigenvectors)


@jax.jit
def _projection_fraction(delta: PyTree, eigenvectors: PyTree) -> jax.Array:
    check_points(delta=delta, eigenvectors=jax.tree.map(lambda v: v[0], eigenvectors))
    delta, eigenvectors = widen(delta), widen(eigenvectors)
    components = jax.vmap(dot, in_axes=(0, None))(eigenvectors, delta)
    return jnp.sum(jnp.square(components)) / dot(delta, delta)


class Agreement(NamedTuple):
    """What :func:`agreement` returns."""

    cosine: jax.Array  # between the two displacements, in [-1, 1]. shape=()
    overlap: jax.Array  # share of gRDA's zeros that the definition has. shape=()


def agreement(sgd: PyTree, grda: PyTree, definition: PyTree) -> Agreement:
    r"""How far gRDA's solution agrees with directional pruning by its definition.

    The paper's theorem is that gRDA tends to directional pruning of SGD's solution, at
    the strength :math:`\lambda = c\, \gamma^{1/2} (n \gamma)^\mu`. Where all three are
    at hand, their displacements from SGD's solution can be compared.

    Every method that shrinks weights agrees with gRDA to some degree. Compare with a
    control: the definition with all scores 1, say, which is a plain soft threshold.

    Pure and jittable.

    Args:
      sgd: SGD's solution, pytree of real float arrays.
      grda: gRDA's, from the same initial weights, learning rate and batches.
      definition: ``directional_pruning(sgd, scores, state.threshold)``, with the scores
        at SGD's solution and the state of gRDA.

    Returns:
      :class:`Agreement`. The cosine is that of ``grda - sgd`` and ``definition - sgd``,
      NaN if either is 0. The overlap is NaN if gRDA has no zeros; zeros at random
      places would overlap by the sparsity of ``definition``.

    Raises:
      ValueError: if the three differ in structure, shapes or dtypes.
      TypeError: if a leaf is not of a real float dtype.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_grda.curvature import agreement
      >>> sgd, grda = jnp.array([1.0, 1.0, 4.0]), jnp.array([0.0, 0.0, 4.0])
      >>> result = agreement(sgd, grda, definition=jnp.array([0.0, 1.0, 4.0]))
      >>> print(result.cosine.round(2), result.overlap)
      0.71 0.5

    References:
      Chao et al., `Directional Pruning of Deep Neural Networks
      <https://arxiv.org/abs/2006.09358>`_, NeurIPS 2020, Theorem 3.1.
    """
    check_points(sgd=sgd, grda=grda, definition=definition)
    return _agreement(sgd, grda, definition)


@jax.jit
def _agreement(sgd: PyTree, grda: PyTree, definition: PyTree) -> Agreement:
    found, defined = subtract(grda, sgd), subtract(definition, sgd)
    zeros = jax.tree.map(lambda x: x == 0, grda)
    shared = jax.tree.map(lambda x, zero: (x == 0) & zero, definition, zeros)
    return Agreement(
        cosine=dot(found, defined) / (norm(found) * norm(defined)),
        overlap=total(shared) / total(zeros),
    )
