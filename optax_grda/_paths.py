"""Names of a pytree's leaves: one spelling for reports, labels, files and errors.

A name is the keys on the way to a leaf, joined by "/": ``layers/0/kernel``. Keys of
dicts, fields of dataclasses and places in sequences are spelled as they print. Only the
boxes in which Flax keeps a parameter (``nnx.Variable``, ``nn.Partitioned``) add no key:
a parameter is called the same in a State, in pure dicts and unboxed.
"""

import numbers
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any
_Path = jax.tree_util.KeyPath


def named_leaves(tree: PyTree, argument: str = "params") -> list[tuple[str, Any]]:
    """Names and leaves, in the order of ``jax.tree.leaves``.

    Raises TypeError if a leaf is no array, number or ``jax.ShapeDtypeStruct``, and
    ValueError if two have one name, as those of ``{"a/b": 1, "a": {"b": 2}}`` have.
    """
    leaves: dict[str, Any] = {}
    paths: dict[str, _Path] = {}
    for path, leaf in _unboxed(tree):
        name = _name(path)
        if name in leaves:
            both = map(jax.tree_util.keystr, (paths[name], path))
            raise ValueError(
                f"{argument} must not hold two leaves named {name!r}: got one at "
                + " and one at ".join(both)
            )
        if not _is_array(leaf):
            raise TypeError(
                f"{argument} must hold nothing but arrays, got {type(leaf).__name__} "
                f"at {name or 'the root'}: leave it out, in Equinox with "
                "eqx.filter(model, eqx.is_inexact_array)"
            )
        leaves[name], paths[name] = leaf, path
    return list(leaves.items())


def weights_of(tree: PyTree, argument: str = "params") -> list[tuple[str, Any]]:
    """The named leaves of float and complex dtypes.

    The others are no weights, such as step counts and random keys in an NNX State.
    """
    return [
        (name, leaf)
        for name, leaf in named_leaves(tree, argument)
        if jnp.issubdtype(dtype_of(leaf), jnp.inexact)
    ]


def map_named(function: Callable[[str, Any], Any], tree: PyTree) -> PyTree:
    """The tree with function(name, leaf) in place of every leaf."""
    leaves = [function(name, leaf) for name, leaf in named_leaves(tree)]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def dtype_of(leaf: Any) -> Any:
    """The dtype of an array, be it one of random keys, or of a number."""
    return leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)


def structure_difference(expected: PyTree, tree: PyTree) -> str:
    """What sets a pytree's structure apart from another, in a few words; "" if equal.

    To stand behind a colon: "params must have the structure of updates: missing 'a/b'".
    """
    if jax.tree.structure(tree) == jax.tree.structure(expected):
        return ""
    wanted, found = ([_name(path) for path, _ in _unboxed(t)] for t in (expected, tree))
    return names_difference(wanted, found) or _node_difference(expected, tree)


def names_difference(expected: Iterable[str], names: Iterable[str]) -> str:
    """The names that are missing, and those that are too many; "" if there are none."""
    wanted, found = dict.fromkeys(expected), dict.fromkeys(names)
    missing = [name for name in wanted if name not in found]
    unexpected = [name for name in found if name not in wanted]
    parts = (("missing", missing), ("unexpected", unexpected))
    return ", ".join(f"{what} {_listed(some)}" for what, some in parts if some)


def _listed(names: list[str], limit: int = 5) -> str:
    shown = ", ".join(map(repr, names[:limit]))
    return shown + (f" and {len(names) - limit} more" if names[limit:] else "")


def _node_difference(expected: PyTree, tree: PyTree, path: _Path = ()) -> str:
    """The first node in which pytrees with leaves of the same names differ."""
    (children, wanted), (others, found) = map(_one_level, (expected, tree))
    if found != wanted:
        place, kinds = _name(path) or "the root", (_kind(tree), _kind(expected))
        if kinds[0] == kinds[1]:
            return f"other static fields of {kinds[0]} at {place}"
        return f"{kinds[0]} in place of {kinds[1]} at {place}"
    if not jax.tree_util.treedef_is_leaf(found):
        for (key, child), (_, other) in zip(children, others, strict=True):
            if difference := _node_difference(child, other, path + key):
                return difference
    return ""


def _kind(node: PyTree) -> str:
    return "leaf" if jax.tree_util.all_leaves((node,)) else type(node).__name__


def _unboxed(tree: PyTree, path: _Path = ()) -> Iterator[tuple[_Path, Any]]:
    """Key paths without the keys of boxes, and leaves."""
    for key, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_box):
        if _is_box(node):
            [(_, content)], _ = _one_level(node)
            yield from _unboxed(content, path + key)
        else:
            yield path + key, node


def _is_box(node: Any) -> bool:
    """Whether it is a node in which Flax, if it is in use, keeps one parameter."""
    boxes = tuple(
        getattr(sys.modules.get(module), name, ())
        for module, name in (
            ("flax.nnx", "Variable"),
            ("flax.core.meta", "AxisMetadata"),
        )
    )
    keys = [key for key, _ in _one_level(node)[0]] if isinstance(node, boxes) else []
    return len(keys) == 1 and keys != [()]  # a leaf is its own only child


def _one_level(node: PyTree) -> tuple[list[tuple[_Path, Any]], Any]:
    """The children of a node, each with its key, and the node without them."""
    return jax.tree_util.tree_flatten_with_path(
        node, is_leaf=lambda child: child is not node
    )


def _name(path: _Path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _is_array(leaf: Any) -> bool:
    array = hasattr(leaf, "shape") and hasattr(leaf, "dtype")
    return isinstance(leaf, numbers.Number) or (array and not isinstance(leaf, type))
