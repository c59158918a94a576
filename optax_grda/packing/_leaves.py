"""Leaves by path, from files and into files, one at a time."""

import contextlib
import functools
import json
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import BinaryIO

import numpy as np

from optax_grda.packing._encoding import MASK, decode, encode, host_array
from optax_grda.packing._safetensors import (
    CODES,
    Loader,
    open_tensors,
    replacing,
    write_tensors,
)

_FORMAT = "optax_grda.packing/1"
# What is raised over parts that do not fit together, and over what is no plain file.
_CONFUSED = (
    AttributeError,
    KeyError,
    OSError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)


class PackingError(ValueError):
    """A file is damaged, or was not written by :func:`pack`."""


@contextlib.contextmanager
def open_leaves(
    path: str | os.PathLike[str], packed: bool | None = True
) -> Iterator[dict[str, Loader]]:
    """What reads each leaf of a file, by path: of a packed one, a dense one or any."""
    kind = {True: "packed", False: "dense .safetensors or .npz", None: "such"}[packed]
    damage = functools.partial(_damage, f"{path} is damaged, or no {kind} file")
    with open(path, "rb") as file:
        with damage():
            leaves, is_packed = _loaders(file)
            if packed not in (None, is_packed):
                raise ValueError("it is packed" if is_packed else "it is not packed")
        yield {name: damage()(load) for name, load in leaves.items()}


def _loaders(file: BinaryIO) -> tuple[dict[str, Loader], bool]:
    """What reads each leaf, and whether the file is packed."""
    archive = file.read(4) in (b"PK\3\4", b"PK\5\6")
    file.seek(0)
    if archive:
        arrays = np.load(file)
        return {n: functools.partial(arrays.__getitem__, n) for n in arrays}, False
    leaves, metadata = open_tensors(file)
    if metadata.get("format") != _FORMAT:
        return leaves, False
    for name, (dtype, shape) in json.loads(metadata["leaves"]).items():
        values, mask = leaves[name], leaves.pop(name + MASK, None)
        leaves[name] = functools.partial(_decode, name, values, mask, dtype, shape)
    return leaves, True


def _decode(name: str, values: Loader, mask: Loader | None, dtype, shape) -> np.ndarray:
    return decode(name, values(), mask and mask(), dtype, shape)


def pack_leaves(leaves: Mapping[str, Loader], path: str | os.PathLike[str]) -> None:
    """Writes a packed file."""
    for name in leaves:
        for reserved in (name + MASK, "__metadata__"):
            if reserved in leaves:
                raise ValueError(
                    f"params must not hold a leaf {reserved!r}: files need that name"
                )
    table, metadata = {}, {"format": _FORMAT}

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        for name, load in leaves.items():
            array = host_array(name, load())
            encoded = encode(name, array)
            if encoded[name] is not array:
                table[name] = (array.dtype.name, array.shape)
            yield from encoded.items()
        metadata["leaves"] = json.dumps(table, separators=(",", ":"))

    write_tensors(path, tensors(), metadata)


def write_safetensors(leaves: Mapping[str, Loader], path: os.PathLike[str]) -> None:
    """Writes a dense safetensors file."""

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        for name, load in leaves.items():
            array = load()
            if array.dtype.name not in CODES:
                raise TypeError(
                    "OUTPUT must be an .npz file, for safetensors files do not hold "
                    f"{array.dtype} at {name}: got {path}"
                )
            yield name, array

    write_tensors(path, tensors(), {})


def write_npz(leaves: Mapping[str, Loader], path: os.PathLike[str]) -> None:
    """Writes a dense .npz file, as :func:`numpy.savez` does."""
    with replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
        for name, load in leaves.items():
            array = load()
            if array.dtype.type.__module__ == "ml_dtypes":
                raise TypeError(
                    "OUTPUT must be a .safetensors file, for .npz files do not hold "
                    f"{array.dtype} at {name}: got {path}"
                )
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


@contextlib.contextmanager
def _damage(message: str) -> Iterator[None]:
    """Makes a PackingError of whatever a damaged file leads to."""
    try:
        yield
    except _CONFUSED as error:
        raise PackingError(f"{message}: {error}") from error
