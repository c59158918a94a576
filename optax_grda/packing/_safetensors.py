"""Safetensors files, written and read tensor by tensor."""

import contextlib
import functools
import json
import math
import os
import pathlib
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import BinaryIO

import ml_dtypes
import numpy as np

Loader = Callable[[], np.ndarray]

# The dtypes that every release of safetensors from 0.5 on writes and reads.
CODES = {"bool": "BOOL", "float16": "F16", "bfloat16": "BF16", "float32": "F32"}
CODES |= {"int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64"}
CODES |= {"uint8": "U8", "uint16": "U16", "uint32": "U32", "uint64": "U64"}
CODES |= {"float64": "F64"}
_DTYPES = {code: np.dtype(getattr(ml_dtypes, n, n)) for n, code in CODES.items()}


def open_tensors(file: BinaryIO) -> tuple[dict[str, Loader], dict[str, str]]:
    """What reads each tensor of an open file, by name, and the metadata.

    Whatever does not fit together is an error of some kind, here or when it is read.
    """
    size = os.fstat(file.fileno()).st_size
    start = 8 + int.from_bytes(file.read(8), "little")
    if start > size:
        raise ValueError(f"the header ends at byte {start}, the file at {size}")
    entries = json.loads(file.read(start - 8))
    metadata = entries.pop("__metadata__", {})
    loaders = {}
    for name, entry in entries.items():
        dtype, shape = _DTYPES[entry["dtype"]], entry["shape"]
        begin, end = (start + offset for offset in entry["data_offsets"])
        if (
            not start
            <= begin
            <= begin + math.prod(shape) * dtype.itemsize
            == end
            <= size
        ):
            raise ValueError(f"{name} does not fit its place")
        loaders[name] = functools.partial(_read, file, begin, end, dtype, shape)
    return loaders, metadata


def _read(file, begin, end, dtype, shape) -> np.ndarray:
    file.seek(begin)
    return np.fromfile(file, np.uint8, end - begin).view(dtype).reshape(shape)


def write_tensors(
    path: str | os.PathLike[str],
    tensors: Iterable[tuple[str, np.ndarray]],
    metadata: Mapping[str, str],
) -> None:
    """Writes tensors that come one by one, and keeps none of them in memory.

    The header stands first and is known last, and the tensors are sorted by the size of
    their entries, which aligns them: until then, each size has a file of its own.
    Metadata are read after the last tensor.
    """
    with contextlib.ExitStack() as stack:
        spools: dict[int, BinaryIO] = {}
        entries = []
        for name, array in tensors:
            size = array.itemsize
            if size not in spools:
                spools[size] = stack.enter_context(
                    tempfile.TemporaryFile(dir=pathlib.Path(path).parent)
                )
            begin = spools[size].tell()
            array.tofile(spools[size])
            entries.append((name, array.dtype.name, array.shape, size, begin))
        starts, end = {}, 0
        for size in sorted(spools, reverse=True):
            starts[size], end = end, end + spools[size].tell()
        header: dict = {"__metadata__": dict(metadata)}
        for name, dtype, shape, size, begin in entries:
            first = starts[size] + begin
            offsets = (first, first + math.prod(shape) * size)
            header[name] = {"dtype": CODES[dtype], "shape": shape}
            header[name]["data_offsets"] = offsets
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        with replacing(path) as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for size in starts:
                spools[size].seek(0)
                shutil.copyfileobj(spools[size], file)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file beside the path, which takes its place once it is complete on disk.

    Whoever looks there sees all of it or none.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
