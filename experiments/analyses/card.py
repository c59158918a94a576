"""What the zeros of a network are good for, on this machine, for a person.

All networks are timed in turn, in all runtimes, so that none finds the caches as it
left them.
"""

import functools
import gzip
import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors.numpy
from flax import nnx

from experiments.analyses._files import Found, Rows
from experiments.analyses._show import Cells, Section, listed
from experiments.analyses.options import Card
from experiments.analyses.timing import interleaved
from experiments.training import data
from experiments.training.config import Config, Sgd
from experiments.training.errors import UserError
from experiments.training.runs import Run
from experiments.training.trainer import make_trainer
from models.export.cost import cost, nonzero_multiply_adds
from models.export.shrink import shrink
from models.export.to_mnn import load_mnn, to_mnn
from models.export.to_onnx import to_onnx
from optax_grda import sparsity_report
from optax_grda.packing import pack, unpack

Predict = Callable[[np.ndarray], Any]  # normalised images to logits
Row = dict[str, Any]
KEYS = {
    "sizes": ("run", "network"),
    "latencies": ("run", "network", "runtime", "threads", "batch"),
}
NETWORKS = ("dense", "sparse", "shrunk")
JAX, ONNX, MNN = "JAX", "ONNX Runtime", "MNN"
BATCHES = (1, 32)  # whose latency is measured
THREADS = (1, 2)  # of ONNX Runtime and MNN; JAX takes all that there are
LARGEST = 500  # images at once where accuracy is
COMPARED = 64  # images whose logits are compared


class Subject(NamedTuple):
    """A network with its weights, and images to test it on."""

    about: Row  # what rows say of it
    network: nnx.Module
    images: np.ndarray  # normalised, (n, height, width, channels)
    labels: np.ndarray  # (n,)


def parts(options: Card) -> list[Callable[[Path], dict[str, Rows]]]:
    """One part."""
    return [functools.partial(measure, options)]


def measure(options: Card, directory: Path) -> dict[str, Rows]:
    """What each network weighs and takes; writes their files to the directory.

    Without jax2onnx and onnxruntime there are no rows of ONNX Runtime and MNN, without
    MNN none of that.
    """
    sparse = subject(options.run, options)
    image_shape = sparse.images.shape[1:]
    networks = {
        "dense": filled(sparse.network),
        "sparse": sparse.network,
        "shrunk": shrink(sparse.network, image_shape),
    }
    if options.dense is not None:
        networks["dense"] = subject(options.dense, options).network
    predicts: dict[tuple[str, str, int], Predict] = {}
    sizes = []
    for name, network in networks.items():
        # A network with its zeros filled is wrong, and shrinking changes no logits.
        tested = name == "sparse" or (name == "dense" and options.dense is not None)
        predict = predicts[name, JAX, os.cpu_count() or 1] = in_jax(network)
        row = weigh(network, image_shape, directory / name)
        row["test_accuracy"] = accuracy(predict, sparse) if tested else None
        sizes.append(sparse.about | {"network": name} | row)
        for runtime, threads, found in exported(network, image_shape, directory / name):
            predicts[name, runtime, threads] = found
    return {"sizes": sizes, "latencies": latencies(sparse, predicts, options.rounds)}


def subject(path: Path, options: Card) -> Subject:
    """The network of a run directory, or of a file.

    Raises:
      UserError: if it is a file, and options do not say of which network and data set.
    """
    if path.is_dir():
        run = Run(path, options.data_dir)
        state, trainer, test = run.state(), run.task.trainer, run.task.test
        whole = {"params": state.params, "batch_stats": state.batch_stats}
        model, label = run.config.model, f"{run.config.method.label}, seed "
        dataset, label = run.config.dataset, f"{label}{run.config.seed}"
    else:
        if not options.network or not options.dataset:
            raise UserError(
                "network and dataset must be given where run is a file, got "
                f"{options.network!r} and {options.dataset!r} for {path}"
            )
        model, dataset, label = options.network, options.dataset, path.name
        loaded = data.load(dataset, options.data_dir)
        config = Config(model=model, dataset=dataset, method=Sgd())
        trainer = make_trainer(config, loaded.num_classes, loaded.num_examples)
        test = jax.device_put((loaded.test_inputs, loaded.test_labels))
        shapes = jax.eval_shape(trainer.init, 0)
        whole = {"params": shapes.params, "batch_stats": shapes.batch_stats}
        try:
            if "params" in unpack(path):
                whole = unpack(path, like=whole)
            else:  # of the parameters alone
                whole["params"] = unpack(path, like=whole["params"])
        except ValueError as error:
            raise UserError(f"run must be a file of {model}: {error}") from error
        if not all(isinstance(x, np.ndarray) for x in jax.tree.leaves(whole)):
            raise UserError(f"run must hold BatchNorm's statistics too: {path}")
    if test[0].ndim == 2:
        raise UserError(f"run must be of images, got {path}, which is of text")
    return Subject(
        {
            "run": str(path.resolve()),
            "label": label,
            "model": model,
            "dataset": Path(dataset).stem,
        },
        trainer.network(whole["params"], whole["batch_stats"]),
        np.asarray(trainer.normalised(test[0])),
        np.asarray(test[1]),
    )


def filled(network: nnx.Module) -> nnx.Module:
    """The network with small random numbers where its weights are zero."""
    graph, state = nnx.split(network)
    rng = np.random.default_rng(0)

    def fill(weight):
        noise = 1e-3 * rng.standard_normal(weight.shape, np.float32)
        return jax.numpy.where(weight == 0, noise.astype(weight.dtype), weight)

    return nnx.merge(graph, jax.tree.map(fill, state))


def weigh(network: nnx.Module, image_shape: tuple[int, ...], path: Path) -> Row:
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
        "compressed_bytes": len(gzip.compress(packed.read_bytes())),
        "multiply_adds": cost(network, image_shape).multiply_adds,
        "nonzero_multiply_adds": nonzero_multiply_adds(network, image_shape),
    }


def exported(
    network: nnx.Module, image_shape: tuple[int, ...], path: Path
) -> Iterator[tuple[str, int, Predict]]:
    """Writes PATH.onnx and PATH.mnn, and yields what runs them with some threads."""
    if not all(map(importlib.util.find_spec, ("jax2onnx", "onnxruntime"))):
        return
    onnx, mnn = path.with_suffix(".onnx"), path.with_suffix(".mnn")
    to_onnx(network, onnx, image_shape)
    has_mnn = importlib.util.find_spec("MNN") is not None
    if has_mnn:
        to_mnn(onnx, mnn)
    for threads in THREADS:
        yield ONNX, threads, in_onnx(onnx, threads)
        if has_mnn:
            yield MNN, threads, load_mnn(mnn, threads)


def in_jax(network: nnx.Module) -> Predict:
    """The network as a compiled program, its weights on the device."""
    return functools.partial(_evaluate, *nnx.split(network))


def in_onnx(path: Path, threads: int) -> Predict:
    """An ONNX file on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        path, options, providers=["CPUExecutionProvider"]
    )
    return lambda images: session.run(["logits"], {"images": images})[0]


def accuracy(predict: Predict, subject: Subject) -> float:
    """On all test images."""
    starts = range(0, len(subject.images), LARGEST)
    logits = [predict(subject.images[i : i + LARGEST]) for i in starts]
    return float(np.mean(np.concatenate(logits).argmax(1) == subject.labels))


def latencies(
    subject: Subject, predicts: dict[tuple[str, str, int], Predict], rounds: int
) -> Rows:
    """The time of each network in each runtime, all in turn, and how logits differ."""
    some = subject.images[:COMPARED]
    logits = {key: np.asarray(predict(some)) for key, predict in predicts.items()}
    exact = {name: x for (name, runtime, _), x in logits.items() if runtime == JAX}
    rows = []
    for batch in BATCHES:
        images = np.resize(some, (batch, *some.shape[1:]))
        calls = {key: functools.partial(predicts[key], images) for key in predicts}
        for key, seconds in interleaved(calls, rounds).items():
            name, runtime, threads = key
            # Shrinking must not change logits either.
            reference = exact["sparse" if name == "shrunk" else name]
            rows.append(
                subject.about
                | {
                    "network": name,
                    "runtime": runtime,
                    "threads": threads,
                    "batch": batch,
                    "seconds_min": float(seconds.min()),
                    "seconds_median": float(np.median(seconds)),
                    "largest_difference": float(np.abs(logits[key] - reference).max()),
                }
            )
    return rows


def by_run(found: Found) -> list[tuple[str, Rows, Rows]]:
    """Whose each card is, and its rows."""
    runs = dict.fromkeys((row["run"], row["label"]) for row in found["sizes"])
    return [
        (label, *([r for r in found[kind] if r["run"] == run] for kind in KEYS))
        for run, label in runs
    ]


def sentence(found: Found) -> str:
    """What the tables show."""
    return " ".join(
        f"{label}: {verdict(sizes, times)}" for label, sizes, times in by_run(found)
    )


def sections(found: Found) -> Iterator[Section]:
    """A table of sizes and one of latencies a card."""
    for label, sizes, times in by_run(found):
        yield Section(
            f"What the zeros are good for: {label}",
            "Shrunk is the network without the units that cannot matter. Where no "
            "dense run was given, dense is the network with its zeros filled.",
            table=size_table(sizes),
        )
        yield Section(
            f"Latency: {label}",
            "Milliseconds, minimum/median, of all networks taken in turn, and by how "
            "much the sparse network's logits differ from JAX's. JAX and ONNX Runtime "
            "multiply by zeros; MNN's sparse kernels skip them.",
            table=latency_table(times),
        )


def size_table(rows: Rows) -> Cells:
    """A column a network, in units for people."""
    units = {
        "test accuracy, %": ("test_accuracy", 100, "{:.2f}"),
        "parameters": ("parameters", 1, "{:,}"),
        "nonzeros": ("nonzeros", 1, "{:,}"),
        "file, kB": ("file_bytes", 1e-3, "{:,.1f}"),
        "packed, kB": ("packed_bytes", 1e-3, "{:,.1f}"),
        "packed and compressed, kB": ("compressed_bytes", 1e-3, "{:,.1f}"),
        "multiply-adds": ("multiply_adds", 1, "{:,}"),
        "of nonzeros": ("nonzero_multiply_adds", 1, "{:,}"),
    }

    def cell(value, scale, form):
        return "" if value is None else form.format(scale * value)

    return [
        {"": label} | {row["network"]: cell(row[name], *form) for row in rows}
        for label, (name, *form) in units.items()
    ]


def latency_table(rows: Rows) -> Cells:
    """A row a runtime, number of threads and batch; a column a network."""
    cells: dict[tuple, dict[str, str]] = {}
    for row in rows:
        place = (row["batch"], row["runtime"], row["threads"])
        heads = {"batch": str(row["batch"])}
        heads |= {"runtime, threads": f"{row['runtime']}, {row['threads']}"}
        low, median = 1e3 * row["seconds_min"], 1e3 * row["seconds_median"]
        mine = cells.setdefault(place, heads)
        mine[row["network"]] = f"{low:.3f}/{median:.3f}"
        if row["network"] == "sparse":
            mine["differ by"] = f"{row['largest_difference']:.0e}"
    # As the last of the columns.
    return [mine | {"differ by": mine.pop("differ by")} for mine in cells.values()]


def verdict(sizes: Rows, times: Rows) -> str:
    """What the tables of a card show."""
    dense, sparse, shrunk = (
        next(row for row in sizes if row["network"] == name) for name in NETWORKS
    )
    there = ""
    if dense["test_accuracy"] is not None:
        there = f" (dense {dense['test_accuracy']:.1%})"
    factors = [
        _factor(dense["file_bytes"], sparse[name])
        for name in ("packed_bytes", "compressed_bytes")
    ]
    text = (
        f"{1 - sparse['nonzeros'] / sparse['parameters']:.1%} of the weights are zero, "
        f"at {sparse['test_accuracy']:.1%} test accuracy{there}. The packed file is "
        f"smaller by a factor of {factors[0]}, compressed by {factors[1]}; "
        "without the units that cannot matter, parameters are fewer by a factor of "
        f"{_factor(dense['parameters'], shrunk['parameters'])}, multiply-adds by "
        f"{_factor(dense['multiply_adds'], shrunk['multiply_adds'])}."
    )
    clauses = []
    for batch in BATCHES:
        alone = [r for r in times if r["batch"] == batch and r["threads"] == THREADS[0]]
        before = [r["seconds_median"] for r in alone if r["network"] == "dense"]
        after = [r["seconds_median"] for r in alone if r["network"] != "dense"]
        if MNN in {r["runtime"] for r in alone}:
            clauses.append(f"{_factor(min(before), min(after))} at batch {batch}")
    if clauses:
        text += (
            " On one thread, the best time of the sparse network is shorter than that "
            f"of the dense one by a factor of {listed(clauses)}."
        )
    return text


def _factor(before: float, after: float) -> str:
    # Of a network that died, nothing is left to multiply.
    return f"{before / after:.1f}" if after else "inf"


@functools.partial(jax.jit, static_argnums=0)
def _evaluate(graph: nnx.GraphDef, state: nnx.State, images: jax.Array) -> jax.Array:
    return nnx.merge(graph, state)(images)
