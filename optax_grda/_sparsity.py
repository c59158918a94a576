"""How many weights are exactly zero: as a scalar under jit, and leaf by leaf."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optax_grda._paths import weights_of

PyTree = Any


def sparsity(params: PyTree) -> jax.Array:
    """The fraction of weights that are exactly zero, over all leaves.

    Pure and jittable: log it from inside a training step.

    Args:
      params: pytree of arrays of any shapes. Leaves of float and complex dtypes are
        weights. The others are not counted: integers, booleans and random keys, which
        ``nnx.state(model)`` holds too (and statistics of BatchNorm, which are floats:
        ``nnx.state(model, nnx.Param)`` leaves them out).

    Returns:
      Scalar float32 array in [0, 1]. Zeros are counted as integers, so that the
      fraction is right to float32 rounding for any number of parameters.

    Raises:
      ValueError: if params hold no weight, or two leaves of the same path.
      TypeError: if a leaf is not an array, such as an activation function in an
        Equinox module (the error names the leaf, and the remedy).

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_grda import sparsity
      >>> print(sparsity({"kernel": jnp.eye(4), "bias": jnp.zeros(4)}))
      0.8
    """
    weights = [leaf for _, leaf in weights_of(params)]
    total = _total(math.prod(np.shape(leaf)) for leaf in weights)
    # Small numbers of NumPy's float64 must not become zeros on their way to a device.
    weights = [w if isinstance(w, jax.Array) else np.not_equal(w, 0) for w in weights]
    # A Python integer beyond int32 could not enter a traced program.
    return _zeros(weights) / float(total)


@dataclasses.dataclass(frozen=True)
class LeafSparsity:
    """Counts of one leaf of a pytree of parameters."""

    path: str  # names on the way to the leaf, joined by "/"
    shape: tuple[int, ...]
    size: int  # number of weights
    nonzero: int  # number of weights that are not exactly zero

    @property
    def sparsity(self) -> float:
        """The fraction of weights that are exactly zero; 0 for an empty leaf."""
        return 1 - self.nonzero / self.size if self.size else 0.0


@dataclasses.dataclass(frozen=True)
class SparsityReport:
    """Counts of a pytree of parameters. ``print`` shows an aligned table."""

    leaves: tuple[LeafSparsity, ...]  # in the order of jax.tree.leaves

    @property
    def total(self) -> int:
        """Number of weights."""
        return sum(leaf.size for leaf in self.leaves)

    @property
    def nonzero(self) -> int:
        """Number of weights that are not exactly zero."""
        return sum(leaf.nonzero for leaf in self.leaves)

    @property
    def sparsity(self) -> float:
        """The fraction of weights that are exactly zero."""
        return 1 - self.nonzero / self.total

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers, ready for ``json.dumps``."""
        return {
            "total": self.total,
            "nonzero": self.nonzero,
            "sparsity": self.sparsity,
            "leaves": [
                dataclasses.asdict(leaf)
                | {"shape": list(leaf.shape), "sparsity": leaf.sparsity}
                for leaf in self.leaves
            ],
        }

    def __str__(self) -> str:
        rows = [("leaf", "shape", "size", "nonzero", "sparsity")]
        rows += [
            (
                leaf.path,
                " x ".join(map(str, leaf.shape)) or "scalar",
                f"{leaf.size:,}",
                f"{leaf.nonzero:,}",
                f"{leaf.sparsity:.2%}",
            )
            for leaf in self.leaves
        ]
        rows += [
            (
                "total",
                "",
                f"{self.total:,}",
                f"{self.nonzero:,}",
                f"{self.sparsity:.2%}",
            )
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if column < 2 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        )


def sparsity_report(params: PyTree) -> SparsityReport:
    """Counts nonzero weights leaf by leaf, exactly.

    Counts are made where the arrays are, and only counts come to the host. Not for use
    under ``jit``; :func:`sparsity` is.

    Args:
      params: pytree of concrete arrays, of which :func:`sparsity` says what counts.
        Where several processes share them, each array must be replicated in the
        processes.

    Returns:
      A :class:`SparsityReport`. It names a leaf by the keys on the way to it, joined
      by "/", without the boxes in which Flax keeps a parameter; so do
      :func:`label_by_path` and :mod:`optax_grda.packing`.

    Raises:
      ValueError, TypeError: as :func:`sparsity`.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_grda import sparsity_report
      >>> print(sparsity_report({"kernel": jnp.eye(4), "bias": jnp.zeros(4)}))
      leaf    shape  size  nonzero  sparsity
      bias    4         4        0   100.00%
      kernel  4 x 4    16        4    75.00%
      total            20        4    80.00%
    """
    leaves = tuple(
        LeafSparsity(name, np.shape(leaf), math.prod(np.shape(leaf)), _nonzero(leaf))
        for name, leaf in weights_of(params)
    )
    _total(leaf.size for leaf in leaves)
    return SparsityReport(leaves)


def _nonzero(leaf: jax.typing.ArrayLike) -> int:
    if not isinstance(leaf, jax.Array):
        return int(np.count_nonzero(leaf))
    return leaf.size - int(np.asarray(_row_zeros(leaf)).sum(dtype=np.int64))


@jax.jit
def _zeros(leaves: list[jax.Array]) -> jax.Array:
    counts = [jnp.sum(_row_zeros(leaf).astype(jnp.float32)) for leaf in leaves]
    return jnp.sum(jnp.stack(counts))


@jax.jit
def _row_zeros(leaf: jax.Array) -> jax.Array:
    """Zeros along the last axis, int32: one count of a whole leaf could overflow."""
    return jnp.sum(jnp.logical_not(jnp.atleast_1d(leaf)), axis=-1, dtype=jnp.int32)


def _total(sizes: Iterable[int]) -> int:
    total = sum(sizes)
    if not total:
        raise ValueError(
            "params must hold at least one float or complex entry, got none"
        )
    return total
