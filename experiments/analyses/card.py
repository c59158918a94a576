"""One table for a person: what the zeros of a network are good for, on this machine.

    python -m experiments.card RUN [RUN ...] [--output DIRECTORY]

For a run of gRDA (the first among the directories) and its SGD twin: the dense network,
the sparse one, and that without the units that cannot matter (models.shrink), in JAX
and, dense and shrunk, in ONNX Runtime on the CPU: test accuracy, sizes, multiply-adds
and latency. (All networks are timed in turn, so that none finds the caches as it left
them.) Writes card.json to a directory, and the networks themselves: packed safetensors
and ONNX files.
"""

import dataclasses
import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import safetensors.numpy
import tyro
from flax import nnx
from rich.console import Console

from experiments.analyses._files import begin, print_table
from experiments.analyses.timing import interleaved
from experiments.training.directory import write_json
from experiments.training.runs import Pair, find_pairs
from models.export.cost import cost
from models.export.shrink import shrink
from models.export.to_onnx import to_onnx
from optax_grda import sparsity_report
from optax_grda.packing import pack

Predict = Callable[[np.ndarray], Any]  # normalised images to logits
Row = dict[str, Any]
BATCHES = (1, 32)  # whose latency is measured
LARGEST = 500  # images at once where accuracy is


@dataclasses.dataclass(frozen=True)
class Options:
    """Measures what a sparse network saves."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run directories, or directories of them."""
    rounds: int = 200
    """Times that every latency is measured."""
    data_dir: Path | None = None
    """Where TFDS keeps its data sets; by default TFDS's own choice."""
    output: Path | None = None
    """Directory of the results; by default a new one under runs/."""

    def __post_init__(self):
        if self.rounds < 1:
            raise ValueError(f"rounds must be >= 1, got {self.rounds}")


def measure(pair: Pair, rounds: int, directory: Path) -> list[Row]:
    """A row a network; writes the networks' files to the directory.

    Without jax2onnx and onnxruntime, there are no rows of ONNX Runtime.
    """
    task, (sgd, grda) = pair.grda.task, pair.states(pair.epochs[-1])
    images, labels = np.asarray(task.trainer.normalised(task.test[0])), task.test[1]
    dense, sparse = (
        task.trainer.network(state.params, state.batch_stats) for state in (sgd, grda)
    )
    networks = {"SGD": dense, "gRDA": sparse, "gRDA, shrunk": shrink(sparse)}
    rows, predicts = {}, {}
    for name, network in networks.items():
        path = directory / name.lower().replace(", ", "-")
        rows[name] = sizes(network, images.shape[1:], path)
        predicts[name] = in_jax(network)
        if name == "gRDA" or not has_onnx():  # zeros save nothing there
            continue
        name_there = f"{name}, ONNX Runtime"
        rows[name_there], predicts[name_there] = in_onnx_runtime(
            network, images.shape[1:], path
        )
        rows[name_there] = rows[name] | rows[name_there]
    logits = {name: in_batches(predict, images) for name, predict in predicts.items()}
    for name, row in rows.items():
        reference = logits[name.split(",")[0]]
        row["test_accuracy"] = float(np.mean(logits[name].argmax(1) == labels))
        row["largest_difference"] = float(np.abs(logits[name] - reference).max())
    for batch in BATCHES:
        seconds = latencies(
            predicts, np.resize(images, (batch, *images.shape[1:])), rounds
        )
        for name, median in seconds.items():
            rows[name][f"seconds_{batch}"] = median
    return [pair.describe() | {"network": name} | row for name, row in rows.items()]


def sizes(network: nnx.Module, image_shape: tuple[int, ...], path: Path) -> Row:
    """What a network weighs; writes its weights, packed, to PATH.safetensors."""
    params = nnx.to_pure_dict(nnx.state(network, nnx.Param))
    packed = path.with_suffix(".safetensors")
    pack(params, packed)
    report = sparsity_report(params)
    leaves = zip(report.leaves, jax.tree.leaves(params), strict=True)
    dense = safetensors.numpy.save({leaf.path: np.asarray(x) for leaf, x in leaves})
    return {
        "parameters": report.total,
        "nonzeros": report.nonzero,
        "file_bytes": len(dense),
        "packed_bytes": packed.stat().st_size,
        "multiply_adds": cost(network, image_shape).multiply_adds,
    }


def in_jax(network: nnx.Module) -> Predict:
    """The network as a compiled program, its weights on the device."""
    graph, state = nnx.split(network)
    run = jax.jit(lambda state, images: nnx.merge(graph, state)(images))
    return lambda images: run(state, images)


def has_onnx() -> bool:
    """Whether the extra `onnx` is installed."""
    return all(map(importlib.util.find_spec, ("jax2onnx", "onnxruntime")))


def in_onnx_runtime(
    network: nnx.Module, image_shape: tuple[int, ...], path: Path
) -> tuple[Row, Predict]:
    """Writes PATH.onnx, and runs it on the CPU with as many threads as there are."""
    import onnxruntime

    path = path.with_suffix(".onnx")
    to_onnx(network, path, image_shape)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    row = {"file_bytes": path.stat().st_size, "packed_bytes": None}
    return row, lambda images: session.run(["logits"], {"images": images})[0]


def in_batches(predict: Predict, images: np.ndarray) -> np.ndarray:
    """The logits of all images, (images, classes)."""
    starts = range(0, len(images), LARGEST)
    return np.concatenate([predict(images[i : i + LARGEST]) for i in starts])


def latencies(
    predicts: dict[str, Predict], images: np.ndarray, rounds: int
) -> dict[str, float]:
    """Seconds from images to logits, the median of all rounds."""
    functions = {
        name: lambda predict=predict: predict(images)
        for name, predict in predicts.items()
    }
    seconds = interleaved(functions, rounds)
    return {name: float(np.median(mine)) for name, mine in seconds.items()}


def table(rows: list[Row]) -> list[dict[str, str]]:
    """A column a network, in units for people."""
    units = {
        "test accuracy, %": ("test_accuracy", 100, "{:.2f}"),
        "parameters": ("parameters", 1, "{:,}"),
        "nonzeros": ("nonzeros", 1, "{:,}"),
        "file, kB": ("file_bytes", 1e-3, "{:,.1f}"),
        "packed, kB": ("packed_bytes", 1e-3, "{:,.1f}"),
        "multiply-adds": ("multiply_adds", 1, "{:,}"),
        **{f"ms, batch {b}": (f"seconds_{b}", 1e3, "{:.3f}") for b in BATCHES},
        "logits differ by": ("largest_difference", 1, "{:.0e}"),
    }

    def cell(value, scale, form):
        return "" if value is None else form.format(scale * value)

    return [
        {"": label} | {row["network"]: cell(row[name], *form) for row in rows}
        for label, (name, *form) in units.items()
    ]


def verdict(rows: list[Row]) -> str:
    """What the table shows, in two sentences."""
    # sorted() is stable: SGD, gRDA, shrunk, and then those in ONNX Runtime.
    rows = sorted(rows, key=lambda row: "ONNX" in row["network"])
    dense, sparse, shrunk, *runtime = rows

    def factors(before: Row, after: Row, *names: str) -> str:
        # Of a network that died, nothing is left to multiply.
        ratios = (before[n] / after[n] if after[n] else math.inf for n in names)
        return " and ".join(f"{ratio:.1f}" for ratio in ratios)

    times = [f"seconds_{batch}" for batch in BATCHES]
    sizes = " and ".join(map(str, BATCHES))
    there = f" ({factors(*runtime, *times)} in ONNX Runtime)" if runtime else ""
    return (
        f"{1 - sparse['nonzeros'] / sparse['parameters']:.1%} of the weights are zero, "
        f"at {sparse['test_accuracy']:.1%} test accuracy (SGD "
        f"{dense['test_accuracy']:.1%}), and the packed file is smaller by a factor of "
        f"{dense['file_bytes'] / sparse['packed_bytes']:.1f}. Without the units that "
        "cannot matter, parameters are fewer by a factor of "
        f"{factors(dense, shrunk, 'parameters')}, multiply-adds by "
        f"{factors(dense, shrunk, 'multiply_adds')}, and latency at batch sizes "
        f"{sizes} is lower by {factors(dense, shrunk, *times)}{there}."
    )


def main(options: Options) -> Path:
    """Makes the card of the first pair, and returns the directory of the results."""
    pair = find_pairs(options.runs, options.data_dir)[0]
    directory, found = begin("card", options)
    found["rows"] = measure(pair, options.rounds, directory)
    write_json(directory / "card.json", found)
    print_table(f"The card of {pair.grda.directory}", table(found["rows"]), directory)
    Console().print(verdict(found["rows"]), highlight=False)
    return directory
