"""What the zeros of a network are good for, on this machine, for a person.

All networks are timed in turn, so that none finds the caches as it left them.
"""

import functools
import importlib.util
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from flax import nnx

from experiments.analyses._files import Found, Rows
from experiments.analyses._show import Cells, Section
from experiments.analyses.options import Card
from experiments.analyses.timing import interleaved
from experiments.training.runs import Pair, find_pairs
from models.export.cost import cost
from models.export.shrink import shrink
from models.export.to_onnx import to_onnx
from optax_grda import sparsity_report
from optax_grda.packing import pack

Predict = Callable[[np.ndarray], Any]  # normalised images to logits
Row = dict[str, Any]
KEYS = {"rows": ("grda", "network", "runtime")}
NAMES = {"sgd": "SGD", "grda": "gRDA", "grda-shrunk": "gRDA, shrunk"}
ONNX = "ONNX Runtime"
BATCHES = (1, 32)  # whose latency is measured
LARGEST = 500  # images at once where accuracy is


def parts(options: Card) -> list[Callable[[Path], dict[str, Rows]]]:
    """One part, for the first pair."""
    pair = find_pairs(options.runs, options.data_dir)[0]
    return [functools.partial(measure, pair, options.rounds)]


def measure(pair: Pair, rounds: int, directory: Path) -> dict[str, Rows]:
    """A row a network and runtime; writes the networks' files to the directory.

    Without jax2onnx and onnxruntime, there are no rows of ONNX Runtime.
    """
    task = pair.grda.task
    images, labels = np.asarray(task.trainer.normalised(task.test[0])), task.test[1]
    dense, sparse = (
        task.trainer.network(state.params, state.batch_stats)
        for state in pair.states(pair.epochs[-1])
    )
    small = shrink(sparse, images.shape[1:])
    networks = {"sgd": dense, "grda": sparse, "grda-shrunk": small}
    rows, predicts = {}, {}
    for name, network in networks.items():
        rows[name, "JAX"] = sizes(network, images.shape[1:], directory / name)
        predicts[name, "JAX"] = in_jax(network)
    for name in ("sgd", "grda-shrunk"):  # zeros alone save nothing there
        if has_onnx():
            path = directory / f"{name}.onnx"
            predicts[name, ONNX] = in_onnx(networks[name], images.shape[1:], path)
            there = {"file_bytes": path.stat().st_size, "packed_bytes": None}
            rows[name, ONNX] = rows[name, "JAX"] | there
    logits = {key: in_batches(predict, images) for key, predict in predicts.items()}
    for (name, runtime), row in rows.items():
        found = logits[name, runtime]
        reference = logits["sgd" if name == "sgd" else "grda", "JAX"]
        row["test_accuracy"] = float(np.mean(found.argmax(1) == labels))
        row["largest_difference"] = float(np.abs(found - reference).max())
    for batch in BATCHES:
        some = np.resize(images, (batch, *images.shape[1:]))
        calls = {key: functools.partial(predicts[key], some) for key in predicts}
        for key, seconds in interleaved(calls, rounds).items():
            rows[key][f"seconds_{batch}"] = float(np.median(seconds))
    about = pair.describe()
    return {
        "rows": [
            about | {"network": name, "runtime": runtime} | row
            for (name, runtime), row in rows.items()
        ]
    }


def sizes(network: nnx.Module, image_shape: tuple[int, ...], path: Path) -> Row:
    """What a network weighs; writes it, BatchNorm's statistics too, packed to PATH."""
    params, batch_stats = (
        jax.device_get(nnx.to_pure_dict(nnx.state(network, kind)))
        for kind in (nnx.Param, nnx.BatchStat)
    )
    whole = {"params": params, "batch_stats": batch_stats}
    packed = path.with_suffix(".safetensors")
    pack(whole, packed)
    names = (leaf.path for leaf in sparsity_report(whole).leaves)
    arrays = dict(zip(names, jax.tree.leaves(whole), strict=True))
    report = sparsity_report(params)
    return {
        "parameters": report.total,
        "nonzeros": report.nonzero,
        "file_bytes": len(safetensors.numpy.save(arrays)),
        "packed_bytes": packed.stat().st_size,
        "multiply_adds": cost(network, image_shape).multiply_adds,
    }


def in_jax(network: nnx.Module) -> Predict:
    """The network as a compiled program, its weights on the device."""
    return functools.partial(_evaluate, *nnx.split(network))


def has_onnx() -> bool:
    """Whether the extra `onnx` is installed."""
    return all(map(importlib.util.find_spec, ("jax2onnx", "onnxruntime")))


def in_onnx(network: nnx.Module, image_shape: tuple[int, ...], path: Path) -> Predict:
    """Writes an ONNX file, and runs it on the CPU with as many threads as there are."""
    import onnxruntime

    to_onnx(network, path, image_shape)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["logits"], {"images": images})[0]


def in_batches(predict: Predict, images: np.ndarray) -> np.ndarray:
    """The logits of all images, (images, classes)."""
    starts = range(0, len(images), LARGEST)
    return np.concatenate([predict(images[i : i + LARGEST]) for i in starts])


def by_run(rows: Rows) -> list[tuple[str, Rows]]:
    """Whose each card is, and its rows."""
    cards: dict[tuple[str, str], Rows] = {}
    for row in rows:
        whose = f"{row['label']}, seed {row['seed']}"
        cards.setdefault((row["grda"], whose), []).append(row)
    return [(whose, rows) for (_, whose), rows in cards.items()]


def sentence(found: Found) -> str:
    """What the tables show."""
    cards = by_run(found["rows"])
    return " ".join(f"{whose}: {verdict(rows)}" for whose, rows in cards)


def sections(found: Found) -> Iterator[Section]:
    """A table a card."""
    for whose, rows in by_run(found["rows"]):
        yield Section(
            f"What the zeros are good for: {whose}",
            "Latencies are medians, of all networks taken in turn.",
            table=table(rows),
        )


def table(rows: Rows) -> Cells:
    """A column a network and runtime, in units for people."""
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

    def header(row):
        runtime = f", {row['runtime']}" * (row["runtime"] != "JAX")
        return NAMES[row["network"]] + runtime

    def cell(value, scale, form):
        return "" if value is None else form.format(scale * value)

    return [
        {"": label} | {header(row): cell(row[name], *form) for row in rows}
        for label, (name, *form) in units.items()
    ]


def verdict(rows: Rows) -> str:
    """What the table of a card shows, in two sentences."""
    found = {(row["network"], row["runtime"]): row for row in rows}
    dense, sparse, shrunk = (found[name, "JAX"] for name in NAMES)

    def ratio(before: float, after: float) -> str:
        # Of a network that died, nothing is left to multiply.
        return f"{before / after if after else math.inf:.1f}"

    def speedups(runtime: str) -> str:
        before, after = found["sgd", runtime], found["grda-shrunk", runtime]
        times = [f"seconds_{batch}" for batch in BATCHES]
        return " and ".join(ratio(before[time], after[time]) for time in times)

    there = f" ({speedups(ONNX)} times in {ONNX})" if ("sgd", ONNX) in found else ""
    return (
        f"{1 - sparse['nonzeros'] / sparse['parameters']:.1%} of the weights are zero, "
        f"at {sparse['test_accuracy']:.1%} test accuracy (SGD "
        f"{dense['test_accuracy']:.1%}), and the packed file is smaller by a factor of "
        f"{ratio(dense['file_bytes'], sparse['packed_bytes'])}. Without the units that "
        "cannot matter, parameters are fewer by a factor of "
        f"{ratio(dense['parameters'], shrunk['parameters'])}, multiply-adds by "
        f"{ratio(dense['multiply_adds'], shrunk['multiply_adds'])}, and the network is "
        f"{speedups('JAX')} times as fast at batch {' and '.join(map(str, BATCHES))}"
        f"{there}."
    )


@functools.partial(jax.jit, static_argnums=0)
def _evaluate(graph: nnx.GraphDef, state: nnx.State, images: jax.Array) -> jax.Array:
    return nnx.merge(graph, state)(images)
