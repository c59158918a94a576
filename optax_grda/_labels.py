"""Label functions for :func:`optax.partition`: which leaf gets which optimizer."""

import fnmatch
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from optax_grda._paths import map_named, named_leaves

PyTree = Any


def label_by_rank(labels: Mapping[int, str]) -> Callable[[PyTree], PyTree]:
    """Labels leaves by their number of axes.

    Kernels of dense and convolutional layers have two or more axes, biases and the
    parameters of normalisation layers have one: ``{0: "dense", 2: "sparse"}`` is
    "kernels only". Stacked layers, as of ``scan``, have one axis more, and embeddings
    have two: label those by path.

    Args:
      labels: maps the smallest rank to which a label applies to the label. A leaf gets
        the label of the largest key that is at most its rank.

    Returns:
      A function from a pytree of arrays to a pytree of labels.

    Raises:
      ValueError: if labels are empty or a key is negative; in the function returned,
        if the rank of a leaf is below all keys (the error names the leaf).
      TypeError: in the function returned, if a leaf is not an array.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from optax_grda import grda, label_by_rank
      >>> kernels_only = label_by_rank({0: "dense", 2: "sparse"})
      >>> kernels_only({"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)})
      {'bias': 'dense', 'kernel': 'sparse'}
      >>> optimizer = optax.partition(
      ...     {"sparse": grda(0.1, c=0.05), "dense": optax.sgd(0.1)}, kernels_only
      ... )
    """
    labels = dict(labels)
    if not labels or min(labels) < 0:
        raise ValueError(f"labels must map ranks >= 0 to labels, got {labels}")

    def label(name, leaf):
        reached = [rank for rank in labels if rank <= np.ndim(leaf)]
        if not reached:
            raise ValueError(
                f"labels must cover every rank: {name or 'the root'} has rank "
                f"{np.ndim(leaf)}, the smallest key is {min(labels)}"
            )
        return labels[max(reached)]

    return lambda params: map_named(label, params)


def label_by_path(labels: Mapping[str, str]) -> Callable[[PyTree], PyTree]:
    """Labels leaves by shell patterns of their paths; the first that matches counts.

    Paths are spelled as :func:`optax_grda.sparsity_report` prints them. ``*`` matches
    any characters, "/" included, ``?`` one, ``[ab]`` one of a set; case matters.

    Args:
      labels: maps patterns to labels, in the order in which they are tried.

    Returns:
      A function from a pytree of arrays to a pytree of labels.

    Raises:
      ValueError: if labels are empty; in the function returned, if no pattern matches
        a leaf, or a pattern matches none (the error names the leaf or the pattern),
        unless there are no leaves at all, as in the placeholders of
        :func:`optax.tree.map_params`.
      TypeError: in the function returned, if a leaf is not an array.

    Example:
      >>> import jax.numpy as jnp
      >>> from optax_grda import label_by_path
      >>> params = {
      ...     "hidden": {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)},
      ...     "head": {"kernel": jnp.ones((2, 2))},
      ... }
      >>> label_by_path({"head/*": "dense", "*/kernel": "sparse", "*": "dense"})(params)
      {'head': {'kernel': 'dense'}, 'hidden': {'bias': 'dense', 'kernel': 'sparse'}}
    """
    labels = dict(labels)
    if not labels:
        raise ValueError("labels must map at least one pattern to a label, got none")

    def label(name, _):
        for pattern in labels:
            if fnmatch.fnmatchcase(name, pattern):
                return labels[pattern]
        raise ValueError(
            f"labels must cover every leaf: none of {list(labels)} matches {name!r}"
        )

    def label_tree(params):
        names = [name for name, _ in named_leaves(params)]
        for pattern in labels:
            if names and not any(fnmatch.fnmatchcase(name, pattern) for name in names):
                raise ValueError(
                    f"labels must hold patterns that match a leaf: {pattern!r} matches "
                    f"none of {names}"
                )
        return map_named(label, params)

    return label_tree
