"""Networks made smaller: units without influence are cut out."""

import fnmatch
import itertools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optax_grda._paths import dtype_of, named_leaves
from optax_grda.units import _values
from optax_grda.units._check import check_same, takes
from optax_grda.units._dims import Dim, freeze, kept
from optax_grda.units._find import finish, leaf_array, trace
from optax_grda.units._needs import Needed, find_needed
from optax_grda.units._sinks import find_sinks, fold, readers_of
from optax_grda.units._values import Value
from optax_grda.units._walk import Array, Walk

PyTree = Any


def shrink(
    fn: Callable[..., Any], params: PyTree, *args: Any, keep: Sequence[str] = ()
) -> PyTree:
    """Cuts out of the parameters the units that have no influence on the outputs.

    A unit (see :func:`find_units`) has none if everything that sums over it does so
    with weights of zero, or if it is zero itself, on its way there: as all its incoming
    weights are, its bias, and what an activation makes of zero. If it is another
    constant, that times the weights is added to the bias behind, or taken off the
    running mean of a BatchNorm behind, and the unit goes: but it stays where there is
    neither, where they have other uses, and before a convolution that pads its input,
    whose border sees zeros in place of the constant. What a loop carries must be zero
    from the first turn on: a unit of a GRU is, from a state of zeros, if the weights
    and biases of its candidate are, whatever its gates. Units that nothing but such
    units read go as well; shrinking again would find nothing more.

    Nothing is trained or compressed here: outputs stay, to rounding. ``fn`` is traced
    and its units are found as :func:`find_units` finds them; what is known of zeros and
    constants is found on the way through its primitives, in NumPy. Then ``fn`` is run
    on random inputs, with the parameters and with the smaller ones.

    Args:
      fn: as for :func:`find_units`. It must take its widths from the parameters: if it
        fixes them, as modules of Linen do, it must be built anew.
      params: pytree of arrays.
      *args: other arguments of fn, arrays or ``jax.ShapeDtypeStruct`` in pytrees. The
        comparison draws random numbers in place of floats, and takes other arrays as
        they are (zeros in place of those without values). Few examples suffice.
      keep: patterns of paths, as of :func:`optax_grda.label_by_path`: leaves that keep
        their shapes, and so do others what they share with them. For heads, whose
        number modules fix: ``keep=["*attention*"]``.

    Returns:
      params with smaller arrays, of width 0 where nothing is left (or, if fn can't be
      run like that, of width 1). Leaves that fn does not use have length 0 along their
      last axis.

    Raises:
      ValueError: if fn fixes a width itself, so that it does not take the smaller
        parameters or computes something else with them; the message names the place.
      TypeError: if params has leaves that are no arrays.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from optax_grda.units import shrink
      >>> def apply(params, x):
      ...     hidden = jax.nn.relu(x @ params["in"]) @ params["out"]
      ...     return hidden + params["bias"]
      >>> params = {
      ...     "in": jnp.ones((4, 8)).at[:, :3].set(0),  # are zero
      ...     "out": jnp.ones((8, 1)).at[6:].set(0),  # are not read
      ...     "bias": jnp.ones((1, 1)),
      ... }
      >>> small = shrink(apply, params, jnp.ones((1, 4)))
      >>> small["in"].shape, small["out"].shape
      ((4, 3), (3, 1))
    """
    names, given = zip(*named_leaves(params), strict=True)
    arrays = [_host(leaf) for leaf in given]
    walk, program = Walk(values=True), trace(fn, params, args)
    leaves = [
        leaf_array(number, leaf, _value(leaf, array))
        for number, (leaf, array) in enumerate(zip(given, arrays, strict=True))
    ]
    _keep(keep, names, leaves)
    outputs = finish(walk, program, leaves, args)
    readers = readers_of(walk.nodes, outputs)
    sinks = find_sinks(walk, leaves, readers)
    # What may lose all its units, and if fn doesn't take that, all but one.
    for least in (0, 1):
        needed = find_needed(walk, leaves, outputs, sinks, least)
        folded = list(arrays)
        for some in walk.contractions:
            fold(some, sinks[id(some)], needed, folded)
        small = [
            _cut(leaf, array, array is not before, start.dims, needed)
            if id(start) in readers or not start.dims
            else leaf[..., :0]
            for leaf, before, array, start in zip(
                given, arrays, folded, leaves, strict=True
            )
        ]
        if all(map(operator.is_, small, given)):
            return params
        result = jax.tree.unflatten(jax.tree.structure(params), small)
        if least or takes(fn, result, args):
            break
    check_same(fn, params, result, args, walk.nodes, needed)
    return result


def _keep(keep: Sequence[str], names: Sequence[str], leaves: Sequence[Array]) -> None:
    """Freezes the leaves that are to keep their shapes."""
    for pattern in keep:
        matching = [fnmatch.fnmatchcase(name, pattern) for name in names]
        if not any(matching):
            raise ValueError(
                f"keep must hold patterns that match a leaf: {pattern!r} matches none "
                f"of {list(names)}"
            )
        for leaf in itertools.compress(leaves, matching):
            for dim in leaf.dims:
                freeze(dim, "keep")


def _host(leaf: Any) -> Any:
    """The leaf as an array of NumPy; random keys as they are."""
    extended = jnp.issubdtype(dtype_of(leaf), jax.dtypes.extended)
    return leaf if extended else np.asarray(jax.device_get(leaf))


def _value(leaf: Any, array: Any) -> Value:
    if isinstance(array, np.ndarray):
        return _values.exactly(array)
    return _values.unknown(len(leaf.shape), leaf.dtype)


def _cut(
    given: Any, array: Any, folded: bool, dims: Sequence[Dim], needed: Needed
) -> Any:
    """A leaf without the units that are not needed."""
    places = [np.flatnonzero(kept(dim, needed)) for dim in dims]
    if all(len(p) == dim.size for p, dim in zip(places, dims, strict=True)):
        return jnp.asarray(array) if folded else given
    return jnp.asarray(array[np.ix_(*places)])
