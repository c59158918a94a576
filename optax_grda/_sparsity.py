"""How many weights are exactly zero: as a scalar under jit, and leaf by leaf."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any


def sparsity(params: PyTree) -> jax.Array:
    """The fraction of entries that are exactly zero, over all leaves.

    Pure and jittable: log it from inside a training step.

    Args:
      params: pytree of arrays of any shapes and dtypes.

    Returns:
      Scalar float32 array in [0, 1]. Zeros are counted as integers, so that the
      fraction is right to float32 rounding for any number of parameters.

    Raises:
      ValueError: if params hold no entry.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_grda import sparsity
      >>> print(sparsity({"kernel": jnp.eye(4), "bias": jnp.zeros(4)}))
      0.8
    """
    leaves = jax.tree.leaves(params)
    total = _total(math.prod(jnp.shape(leaf)) for leaf in leaves)
    zeros = sum(jnp.sum(_row_zeros(leaf).astype(jnp.float32)) for leaf in leaves)
    # A Python integer beyond int32 could not enter a traced program.
    return jnp.asarray(zeros / float(total), jnp.float32)


@dataclasses.dataclass(frozen=True)
class LeafSparsity:
    """Counts of one leaf of a pytree of parameters."""

    path: str  # names on the way to the leaf, joined by "/"
    shape: tuple[int, ...]
    size: int  # number of entries
    nonzero: int  # number of entries that are not exactly zero

    @property
    def sparsity(self) -> float:
        """The fraction of entries that are exactly zero; 0 for an empty leaf."""
        return 1 - self.nonzero / self.size if self.size else 0.0


@dataclasses.dataclass(frozen=True)
class SparsityReport:
    """Counts of a pytree of parameters. ``print`` shows an aligned table."""

    leaves: tuple[LeafSparsity, ...]  # in the order of jax.tree.leaves

    @property
    def total(self) -> int:
        """Number of entries."""
        return sum(leaf.size for leaf in self.leaves)

    @property
    def nonzero(self) -> int:
        """Number of entries that are not exactly zero."""
        return sum(leaf.nonzero for leaf in self.leaves)

    @property
    def sparsity(self) -> float:
        """The fraction of entries that are exactly zero."""
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
    """Counts nonzero entries leaf by leaf, exactly.

    Counts are made where the arrays are, and only counts come to the host. Not for use
    under ``jit``; :func:`sparsity` is.

    Args:
      params: pytree of concrete arrays of any shapes and dtypes. Where several
        processes share them, each array must be replicated in the processes.

    Returns:
      A :class:`SparsityReport`.

    Raises:
      ValueError: if params hold no entry.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_grda import sparsity_report
      >>> print(sparsity_report({"kernel": jnp.eye(4), "bias": jnp.zeros(4)}))
      leaf    shape  size  nonzero  sparsity
      bias    4         4        0   100.00%
      kernel  4 x 4    16        4    75.00%
      total            20        4    80.00%
    """
    report = SparsityReport(
        tuple(
            LeafSparsity(
                path=leaf_name(path),
                shape=tuple(jnp.shape(leaf)),
                size=(size := math.prod(jnp.shape(leaf))),
                nonzero=size - int(np.asarray(_row_zeros(leaf)).sum(dtype=np.int64)),
            )
            for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        )
    )
    _total(leaf.size for leaf in report.leaves)
    return report


def leaf_name(path: jax.tree_util.KeyPath) -> str:
    """The path's keys joined by "/", as in ``layers/0/kernel``."""
    # Flax boxes its arrays in an attribute of this name, which tells nothing.
    if len(path) > 1 and path[-1] == jax.tree_util.GetAttrKey("value"):
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _row_zeros(leaf: jax.typing.ArrayLike) -> Any:
    """Zeros along the last axis, int32: one count of a whole leaf could overflow."""
    xp = np if isinstance(leaf, np.ndarray) else jnp  # NumPy need not compile
    return xp.sum(xp.logical_not(xp.atleast_1d(leaf)), axis=-1, dtype=xp.int32)


def _total(sizes) -> int:
    total = sum(sizes)
    if not total:
        raise ValueError("params must hold at least one entry, got none")
    return total
