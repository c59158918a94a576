"""Size of a packed sparse network, and the time to write and to read it.

    python -m benchmarks.packing

The parameter shapes of VGG16, soft-thresholded normal numbers at several fractions of
zeros, written by optax_grda.packing, as dense safetensors and by np.savez_compressed. A
file has reached the disk when its time ends; it is read while the system still has it
in memory. Goal: at least 7.5 times smaller than dense at 90 % zeros and 12 times at
95 %, and written faster than by np.savez_compressed.
"""

import dataclasses
import functools
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors.numpy
from flax import nnx

import models
from benchmarks.measure import markdown, ratio, write_result
from experiments.analyses.timing import interleaved
from experiments.command_line import run_command
from optax_grda import packing
from optax_grda.proximal import soft_threshold

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Options:
    """Writes and reads sparse parameters."""

    network: str = "vgg16"
    """Network whose parameter shapes are used."""
    sparsities: tuple[float, ...] = (0.0, 0.5, 0.9, 0.95, 0.98)
    """Fractions of zeros."""
    rounds: int = 7
    """Times that every format is written and read."""


class Format(NamedTuple):
    """A kind of file."""

    write: Callable[[Arrays, Path], None]
    read: Callable[[Path], Arrays]


def write_safetensors(arrays: Arrays, path: Path) -> None:
    """Dense, and on disk when it returns, as packing.pack is."""
    with path.open("wb") as file:
        file.write(safetensors.numpy.save(arrays))
        sync(file)


def write_npz(arrays: Arrays, path: Path) -> None:
    """Deflated, and on disk when it returns."""
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)
        sync(file)


def sync(file) -> None:
    """Returns when a file's content is on disk."""
    file.flush()
    os.fsync(file.fileno())


def read_npz(path: Path) -> Arrays:
    """All arrays."""
    with np.load(path) as file:
        return dict(file)


FORMATS = {
    "packed": Format(packing.pack, packing.unpack),
    "safetensors": Format(write_safetensors, safetensors.numpy.load_file),
    "savez_compressed": Format(write_npz, read_npz),
}


def sparse_arrays(network: str, sparsity: float) -> Arrays:
    """Arrays by path: normal numbers, soft-thresholded as gRDA's weights are."""
    model = nnx.eval_shape(
        lambda: models.create(network, num_classes=10, rngs=nnx.Rngs(0))
    )
    threshold = statistics.NormalDist().inv_cdf((1 + sparsity) / 2)
    rng = np.random.default_rng(0)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(
            soft_threshold(rng.standard_normal(leaf.shape, np.float32), threshold)
        )
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }


def measure(network: str, sparsity: float, rounds: int) -> list[dict[str, Any]]:
    """Rows of the table: one a format."""
    arrays = sparse_arrays(network, sparsity)
    zeros = 1 - sum(map(np.count_nonzero, arrays.values())) / sum(
        array.size for array in arrays.values()
    )
    with tempfile.TemporaryDirectory() as directory:
        paths = {name: Path(directory, name) for name in FORMATS}
        functions = {}
        for name, (write, read) in FORMATS.items():
            write(arrays, paths[name])  # or the first to be read would be missing
            functions[f"write {name}"] = functools.partial(write, arrays, paths[name])
            functions[f"read {name}"] = functools.partial(read, paths[name])
        seconds = interleaved(functions, rounds)
        sizes = {name: path.stat().st_size for name, path in paths.items()}
    return [
        {
            "network": network,
            "zeros": f"{zeros:.2%}",
            "format": name,
            "MB": f"{sizes[name] / 1e6:.3f}",
            "times smaller than dense": f"{sizes['safetensors'] / sizes[name]:.2f}",
        }
        | timing("write", name, seconds)
        | timing("read", name, seconds)
        for name in FORMATS
    ]


def timing(verb: str, name: str, seconds: dict[str, np.ndarray]) -> dict[str, str]:
    """Columns of one row."""
    taken, reference = (seconds[f"{verb} {n}"] for n in (name, "savez_compressed"))
    return {
        f"{verb} ms, median": f"{1e3 * np.median(taken):.1f}",
        f"{verb}, ratio to savez_compressed (quartiles)": ratio(taken, reference),
    }


def main(options: Options) -> None:
    """Measures and writes the table."""
    rows = [
        row
        for sparsity in options.sparsities
        for row in measure(options.network, sparsity, options.rounds)
    ]
    write_result("packing", markdown(rows))


if __name__ == "__main__":
    run_command(main, Options, __doc__)
