"""One array as its nonzero values and a mask of bits, and back."""

import math
from typing import Any

import jax
import ml_dtypes
import numpy as np

from optax_grda.packing._safetensors import CODES

MASK = ":mask"
# What a packed leaf adds to header and table at most, apart from its path.
_HEADER_BYTES = 256


def encode(name: str, array: np.ndarray) -> dict[str, np.ndarray]:
    """Nonzero values and mask, or where that takes no less, the array or its bytes."""
    known = array.dtype.name in CODES
    values, mask = array.reshape(-1), nonzero(array)
    if not known:
        values = values[:, None].view(np.uint8)
    packed = np.packbits(mask)
    saved = (mask.size - np.count_nonzero(mask)) * array.itemsize - packed.nbytes
    if saved > _HEADER_BYTES + 4 * len(name.encode()):
        return {name: values[mask], name + MASK: packed}
    return {name: array if known else values}


def nonzero(array: np.ndarray) -> np.ndarray:
    """Whether entries have any bit set, flat."""
    words = array.reshape(-1, 1).view(f"u{min(array.itemsize, 8)}")
    return np.any(words.T, axis=0)  # along the short axis, which is faster than axis 1


def decode(name, values, packed, dtype, shape) -> np.ndarray:
    """The inverse of encode."""
    size = math.prod(shape)
    if packed is not None:
        if packed.size != math.ceil(size / 8):
            raise ValueError(f"the mask of {name} does not fit its shape")
        mask = np.unpackbits(packed, count=size).view(bool)
        entries = np.zeros((size, *values.shape[1:]), values.dtype)
        entries[mask] = values
        values = entries
    return values.view(_dtype(name, dtype)).reshape(shape)


def host_array(name: str, leaf: Any) -> np.ndarray:
    """The leaf as a contiguous array in this machine's byte order.

    Of a JAX array it is a copy that goes with what is returned: NumPy's conversion
    would keep it for as long as the JAX array lives.
    """
    dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
    if not _is_numeric(dtype):
        raise TypeError(
            f"params must be of bool, integer, float or complex dtypes, got {dtype} at "
            f"{name or 'the root'}: leave it out, or pack a key's jax.random.key_data"
        )
    if isinstance(leaf, jax.Array):
        shards = [shard.data for shard in leaf.addressable_shards]
        leaf = jax.make_array_from_single_device_arrays(
            leaf.shape, leaf.sharding, shards
        )
    array = np.asarray(leaf, order="C")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _dtype(name: str, dtype: str) -> np.dtype:
    """The dtype of that name, from NumPy or from ml_dtypes."""
    found = np.dtype(getattr(ml_dtypes, dtype, dtype))
    if not _is_numeric(found):
        raise ValueError(f"{name} is of dtype {dtype}")
    return found


def _is_numeric(dtype) -> bool:
    """Whether leaves may be of it: keys of JAX, strings and objects may not."""
    if not isinstance(dtype, np.dtype):
        return False
    custom = dtype.type.__module__ == "ml_dtypes"
    return custom or (dtype.kind in "biufc" and dtype.itemsize <= 16)
