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

From a shell, without a program::

    python -m optax_grda.packing pack FILE [OUTPUT]     a dense safetensors or .npz file
    python -m optax_grda.packing unpack FILE [OUTPUT]   a packed file
    python -m optax_grda.packing show FILE              either: a line for each leaf
"""

from optax_grda.packing._leaves import PackingError as PackingError
from optax_grda.packing._pytrees import pack as pack
from optax_grda.packing._pytrees import unpack as unpack
