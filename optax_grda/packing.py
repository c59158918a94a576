"""Sparse files: the nonzero entries of a pytree, and one bit for every entry.

A file is a safetensors file. Where that is smaller, a leaf is kept as two tensors:
its nonzero values in order, under the leaf's path, and under the path + ``":mask"`` one
bit for every entry, as :func:`numpy.packbits` lays them out. The other leaves are kept
as they are. Paths are spelled as :func:`optax_grda.sparsity_report` prints them: a file
of an NNX State is one of the pure dicts with the same arrays.

The metadata hold ``format``, and ``leaves``: a JSON table of the dtype and shape of
every packed leaf, and of every leaf of a dtype that safetensors does not know (complex,
8-bit floats, ...), whose values are kept as unsigned integers.

Everything is exact to the bit: an entry is a zero if all its bits are, so that -0.0 and
the payloads of NaNs come back as they were. (gRDA makes no -0.0. Masks that multiply
do, and -0.0 takes the room of a value: add 0.0 before packing.)

This module needs NumPy and safetensors (the ``safetensors`` extra), and JAX only to
take pytrees apart. To read a file on a machine without JAX, copy this one source file
there.
"""

import json
import math
import os
import pathlib
import secrets
from typing import Any

import numpy as np

PyTree = Any

_FORMAT = "optax_grda.packing/1"
_MASK = ":mask"
# What a packed leaf adds to header and table at most, apart from its path.
_HEADER_BYTES = 256
# The dtypes that every safetensors from 0.5 on writes and reads.
_KNOWN = {"bool", "float16", "float32", "float64", "bfloat16"} | {
    f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)
}


class PackingError(ValueError):
    """A file is damaged, or was not written by :func:`pack`."""


def pack(params: PyTree, path: str | os.PathLike[str]) -> None:
    """Writes a pytree of arrays to a file that is the smaller, the sparser they are.

    In float32 it is 32 / (1 + 32 density) times smaller than a dense file: 7.6 times at
    90 % zeros, 12.3 times at 95 %. It is never more than 80 bytes larger, and as many
    for each leaf of a dtype that safetensors does not know.

    Args:
      params: pytree of arrays or numbers, of bool, integer, float or complex dtypes,
        those of ml_dtypes, such as bfloat16, included. Arrays may be split over the
        devices of one process. Where several processes share them, each array must be
        replicated in the processes.
      path: of the file. One that exists is replaced as a whole, once the new one is
        complete on disk.

    Raises:
      TypeError: if a leaf is of another dtype, or no array.
      ValueError: if the paths of two leaves are the same once joined by "/", or one is
        a name that the file needs for itself. Nothing is written then.
      ImportError: if safetensors is not installed.

    Example:
      >>> import os, tempfile
      >>> import jax.numpy as jnp
      >>> from optax_grda.packing import pack, unpack
      >>> params = {"layer": {"kernel": jnp.eye(512), "bias": jnp.ones(512)}}
      >>> path = os.path.join(tempfile.mkdtemp(), "params.safetensors")
      >>> pack(params, path)
      >>> f"{512 * 513 * 4:,} bytes in memory, {os.path.getsize(path):,} on disk"
      '1,050,624 bytes in memory, 37,200 on disk'
      >>> kernel = unpack(path)["layer"]["kernel"]
      >>> kernel.shape, kernel.dtype, bool((kernel == params["layer"]["kernel"]).all())
      ((512, 512), dtype('float32'), True)
    """
    safetensors = _safetensors()
    leaves = _named_leaves(params, "params")
    tensors, table = {}, {}
    for name, leaf in leaves.items():
        for reserved in (name + _MASK, "__metadata__"):
            if reserved in leaves:
                raise ValueError(
                    f"params must not hold a leaf {reserved!r}: files need that name"
                )
        array = _checked(name, leaf)
        encoded = _encode(name, array)
        if encoded[name] is not array:
            table[name] = (array.dtype.name, array.shape)
        tensors |= encoded
    metadata = {"format": _FORMAT, "leaves": json.dumps(table, separators=(",", ":"))}
    _replace(pathlib.Path(path), safetensors.numpy.save(tensors, metadata))


def unpack(path: str | os.PathLike[str], like: PyTree | None = None) -> PyTree:
    """Reads what :func:`pack` wrote.

    Args:
      path: of the file.
      like: a pytree with the paths, shapes and dtypes of params, of arrays or of
        :class:`jax.ShapeDtypeStruct`.

    Returns:
      A pytree of NumPy arrays: in the structure of ``like``, or else in nested dicts,
      whose keys are the parts of the paths between "/", as they were if params were
      nested dicts. (If params were one array, it is that array.)

    Raises:
      PackingError: if the file is damaged or was not written by :func:`pack`.
      OSError: if it cannot be opened; FileNotFoundError if there is none.
      ValueError: if ``like`` differs from the file; without it, if a leaf's path goes
        through another leaf.
      ImportError: if safetensors is not installed, or ml_dtypes is not and a leaf is of
        one of its dtypes.

    Example:
      >>> import os, tempfile
      >>> import jax, jax.numpy as jnp
      >>> from optax_grda.packing import pack, unpack
      >>> params = (jnp.zeros((2, 3)), {"bias": jnp.ones(3, jnp.bfloat16)})
      >>> path = os.path.join(tempfile.mkdtemp(), "params.safetensors")
      >>> pack(params, path)
      >>> sorted(unpack(path))
      ['0', '1']
      >>> jax.tree.structure(unpack(path, like=params)) == jax.tree.structure(params)
      True
    """
    safetensors = _safetensors()
    path = os.fspath(path)
    with open(path, "rb"):  # what cannot be opened is told from what is damaged
        pass
    try:
        with safetensors.safe_open(path, framework="np") as file:
            leaves = _read(file)
    except (safetensors.SafetensorError, *_CONFUSED) as error:
        raise PackingError(f"{path} is damaged, or no packed file: {error}") from error
    return _nest(leaves) if like is None else _arrange(leaves, like)


# What is raised over parts that do not fit together, and over what is no plain file.
_CONFUSED = (
    AttributeError,
    KeyError,
    OSError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
)


def _encode(name: str, array: np.ndarray) -> dict[str, np.ndarray]:
    """Nonzero values and mask, or where that takes no less, the array or its bytes."""
    known = array.dtype.name in _KNOWN
    values = array.reshape(-1)
    words = values[:, None].view(f"u{min(array.itemsize, 8)}")
    mask = words.T.any(axis=0)  # along the short axis, which is faster than axis 1
    if not known:
        values = values[:, None].view(np.uint8)
    packed = np.packbits(mask)
    saved = (mask.size - np.count_nonzero(mask)) * array.itemsize - packed.nbytes
    if saved > _HEADER_BYTES + 4 * len(name.encode()):
        return {name: values[mask], name + _MASK: packed}
    return {name: array if known else values}


def _read(file) -> dict[str, np.ndarray]:
    """All leaves by path."""
    metadata = file.metadata() or {}
    if metadata.get("format") != _FORMAT:
        raise ValueError(f"the format is not {_FORMAT} but {metadata.get('format')}")
    table = json.loads(metadata["leaves"])
    names = file.keys()
    leaves = {name: _tensor(file, name) for name in names}
    for name, (dtype, shape) in table.items():
        mask = leaves.pop(name + _MASK, None)
        leaves[name] = _decode(name, leaves[name], mask, dtype, shape)
    return leaves


def _decode(name, values, packed, dtype, shape) -> np.ndarray:
    """The inverse of _encode."""
    size = math.prod(shape)
    if packed is not None:
        if packed.size != math.ceil(size / 8):
            raise ValueError(f"the mask of {name} does not fit its shape")
        mask = np.unpackbits(packed, count=size).view(bool)
        entries = np.zeros((size, *values.shape[1:]), values.dtype)
        entries[mask] = values
        values = entries
    return values.view(_dtype(name, dtype)).reshape(shape)


def _tensor(file, name: str) -> np.ndarray:
    if file.get_slice(name).get_dtype() == "BF16":
        _dtype(name, "bfloat16")
    return file.get_tensor(name)


def _dtype(name: str, dtype: str) -> np.dtype:
    """The dtype of that name, from NumPy or from ml_dtypes."""
    try:
        found = np.dtype(dtype)
    except TypeError:
        try:
            import ml_dtypes
        except ImportError as error:
            raise ImportError(
                f"{name} is of dtype {dtype}: install ml_dtypes to unpack it"
            ) from error
        found = np.dtype(getattr(ml_dtypes, dtype))
    if not _is_numeric(found):
        raise ValueError(f"{name} is of dtype {dtype}")
    return found


def _checked(name: str, leaf) -> np.ndarray:
    """The leaf as a contiguous array in this machine's byte order."""
    dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
    if not _is_numeric(dtype):
        raise TypeError(
            f"params must be of bool, integer, float or complex dtypes, got {dtype} at "
            f"{name or 'the root'}: leave it out, or pack a key's jax.random.key_data"
        )
    array = np.asarray(leaf, order="C")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _is_numeric(dtype) -> bool:
    """Whether leaves may be of it: keys of JAX, strings and objects may not."""
    if not isinstance(dtype, np.dtype):
        return False
    custom = dtype.type.__module__ == "ml_dtypes"
    return custom or (dtype.kind in "biufc" and dtype.itemsize <= 16)


def _named_leaves(tree: PyTree, argument: str) -> dict[str, Any]:
    """The leaves by path. Needs JAX, which reading a file does not."""
    from optax_grda._paths import named_leaves

    return dict(named_leaves(tree, argument))


def _nest(leaves: dict[str, np.ndarray]) -> PyTree:
    """Dicts in dicts, from paths."""
    if leaves.keys() == {""}:
        return leaves[""]
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                break
        if not isinstance(node, dict) or last in node:
            raise ValueError(f"like must be given: {name} goes through another leaf")
        node[last] = leaf
    return tree


def _arrange(leaves: dict[str, np.ndarray], like: PyTree) -> PyTree:
    """The leaves in the structure of a template that they match."""
    import jax

    from optax_grda._paths import names_difference

    templates = _named_leaves(like, "like")
    if difference := names_difference(leaves, templates):
        raise ValueError(f"like must have the leaves of the file: {difference}")
    for name, template in templates.items():
        if not hasattr(template, "dtype"):
            template = np.asarray(template)
        wanted = (template.dtype, tuple(template.shape))
        found = (leaves[name].dtype, leaves[name].shape)
        if wanted != found:
            raise ValueError(
                f"like must have the dtypes and shapes of the file, {found} at {name}: "
                f"got {wanted}"
            )
    return jax.tree.unflatten(
        jax.tree.structure(like), [leaves[name] for name in templates]
    )


def _replace(path: pathlib.Path, content: bytes) -> None:
    """Writes beside the file, then renames: whoever looks sees all of it or none."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _safetensors():
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            "packing needs safetensors: pip install 'optax-grda[safetensors]'"
        ) from error
    return safetensors
