"""Whole units: what a network is worth once they are cut out, and how fast it is.

Beside the controls that such results have to stand: the narrow network trained from
scratch (Liu et al., "Rethinking the Value of Network Pruning", ICLR 2019), and a dense
network whose smallest units are pruned, and which is fine-tuned for as long.
"""

import dataclasses
import functools
import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
from flax import nnx
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

import models
from experiments.analyses._files import Found, Rows
from experiments.analyses._narrow import drawn_anew, train, without_smallest
from experiments.analyses._plots import figure_of, note, panels
from experiments.analyses._show import Cells, Section, listed
from experiments.analyses.card import MNN, ONNX, exported
from experiments.analyses.options import Units
from experiments.analyses.timing import interleaved
from experiments.training import data
from experiments.training.config import Config, Groups, Target, dense_twin
from experiments.training.errors import UserError
from experiments.training.optimizer import network_units
from experiments.training.presets import PRESETS
from models.export.cost import cost
from models.export.shrink import shrink
from optax_grda import sparsity_report

KEYS = {"rows": ("model", "dataset", "way", "from_scratch", "asked", "seed")}
DENSE, PRUNED = "dense", "pruned"
GROUPS = get_args(Groups)
LABELS = {
    DENSE: "nothing",
    "none": "single weights",
    "units": "units",
    "units-and-weights": "units and weights",
    PRUNED: "smallest units of the dense network",
}  # by what became zero: the ways to a network
RUNTIMES = {ONNX: "onnx_seconds", MNN: "mnn_seconds"}  # and the fields of their times
ROUNDS = 200  # times that every latency is measured


class Made(NamedTuple):
    """A network without the units that cannot matter, and what rows say of it."""

    network: nnx.Module
    about: dict[str, Any]


def parts(options: Units) -> list[Callable[[Path], dict[str, Rows]]]:
    """A part a seed."""
    config = PRESETS[options.preset]
    config = dataclasses.replace(
        config,
        dataset=options.dataset or config.dataset,
        method=Target(momentum=0.9, weight_decay=5e-4),
        schedule="cosine",
        learning_rate=options.learning_rate or config.learning_rate,
        epochs=options.epochs or config.epochs,
    )
    dataset = data.load(config.dataset, options.data_dir)
    expected = models.spec(config.model).input_shape
    if dataset.input_shape != expected:
        raise UserError(
            f"dataset must hold images of shape {expected} for {options.preset}, got "
            f"{dataset.input_shape} of {config.dataset}"
        )
    return [
        functools.partial(
            measure, dataclasses.replace(config, seed=seed), dataset, options.sparsities
        )
        for seed in range(options.seeds)
    ]


def measure(
    config: Config, dataset: data.Dataset, sparsities: Sequence[float], _: Path
) -> dict[str, Rows]:
    """A row a network; all are timed in turn."""
    made, shape = list(networks(config, dataset, sparsities)), dataset.input_shape
    rows = []
    for some, seconds in zip(made, latencies(made, shape), strict=True):
        size = cost(some.network, shape)
        report = sparsity_report(nnx.to_pure_dict(nnx.state(some.network, nnx.Param)))
        rows.append(
            {"model": config.model, "dataset": Path(config.dataset).stem}
            | {"seed": config.seed, **some.about}
            | {"parameters": size.parameters, "nonzeros": report.nonzero}
            | {"multiply_adds": size.multiply_adds, **seconds}
        )
    return {"rows": rows}


def networks(
    config: Config, dataset: data.Dataset, sparsities: Sequence[float]
) -> Iterator[Made]:
    """Trains one seed's networks: by the dial, and the controls."""
    dense, shape = dense_twin(config), dataset.input_shape

    def made(network, accuracy, way, asked, from_scratch=False):
        about = {"way": way, "asked": asked, "from_scratch": from_scratch}
        return Made(network, about | {"test_accuracy": accuracy})

    wide, accuracy = train(dense, dataset, DENSE)
    yield made(wide, accuracy, DENSE, 0.0)
    fresh = models.create(
        config.model, num_classes=dataset.num_classes, rngs=nnx.Rngs(config.seed)
    )
    for asked in sparsities:
        cut = without_smallest(wide, network_units(config.model), asked)
        name = f"{LABELS[PRUNED]}, {asked:.0%}"
        yield made(*train(dense, dataset, name, shrink(cut, shape)), PRUNED, asked)
    for groups, asked in itertools.product(GROUPS, sparsities):
        method = dataclasses.replace(config.method, sparsity=asked, groups=groups)
        name = f"{LABELS[groups]}, {asked:.0%}"
        sparse = dataclasses.replace(config, method=method)
        network, accuracy = train(sparse, dataset, name)
        network = shrink(network, shape)
        yield made(network, accuracy, groups, asked)
        if cost(network, shape).multiply_adds:  # else it is dead: nothing to train
            start = drawn_anew(network, fresh)
            control = train(dense, dataset, f"{name}, from scratch", start)
            yield made(*control, groups, asked, from_scratch=True)


def latencies(
    made: Sequence[Made], image_shape: tuple[int, ...]
) -> list[dict[str, float]]:
    """Median seconds of each network, of one image on one thread, by RUNTIMES' fields.

    Of those runtimes that are installed.
    """
    image = np.random.default_rng(0).standard_normal((1, *image_shape), np.float32)
    calls: dict[Any, Callable[[], object]] = {}
    for number, some in enumerate(made):
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory, "network")
            for runtime, threads, run in exported(some.network, image_shape, path):
                if threads == 1:
                    calls[number, RUNTIMES[runtime]] = functools.partial(run, image)
    found: list[dict[str, float]] = [{} for _ in made]
    for (number, field), seconds in interleaved(calls, ROUNDS).items():
        found[number][field] = float(np.median(seconds))
    return found


def by_setting(rows: Rows) -> dict[tuple[str, bool, float], Rows]:
    """The rows by what became zero, whether trained from scratch, and sparsity."""
    settings: dict[tuple[str, bool, float], Rows] = {}
    for row in rows:
        key = row["way"], row["from_scratch"], row["asked"]
        settings.setdefault(key, []).append(row)
    return settings


def mean(rows: Rows, field: str) -> float:
    """The mean of a field."""
    return float(np.mean([row[field] for row in rows]))


def sentence(found: Found) -> str:
    """What the largest sparsity leaves, and what that is worth untrained."""
    rows = found["rows"]
    largest = max(row["asked"] for row in rows)
    [dense] = map(_in_words, table([row for row in rows if row["way"] == DENSE]))
    left = map(_in_words, table([row for row in rows if row["asked"] == largest]))
    return (
        f"Of {dense}, {largest:.0%} of zeros leave, once units that cannot matter are "
        f"cut out, {listed(list(left))}."
    )


def _in_words(cells: dict[str, str]) -> str:
    """A row of the table."""
    text = f"{cells['parameters']} parameters at {cells['test, %']} % test accuracy"
    if cells["from scratch, %"]:
        text += f", {cells['from scratch, %']} % where trained from scratch"
    return f"{text} ({cells['made zero']})"


def sections(found: Found) -> Iterator[Section]:
    """What is left of the networks, what that is worth, and how fast it is."""
    yield Section(
        "Whole units",
        "Test error by what is left once dead units are cut out, and by the time of "
        "one image on one thread; lower and to the left is better. Crosses: the same "
        "architecture trained from scratch; where they lie no higher, training "
        "found widths that are enough rather than weights. The pruned networks are "
        "fine-tuned for as long as they were trained, the others are not.",
        figure(found["rows"]),
        "units",
        table(found["rows"]),
        "Units that cannot matter are cut out",
    )


def table(rows: Rows) -> Cells:
    """A row a way and a sparsity: means over the seeds, of what is left."""
    cells, settings = [], by_setting(rows)
    for (way, from_scratch, asked), mine in settings.items():
        if from_scratch:  # a column
            continue
        scratch = settings.get((way, True, asked), [])
        complete = len(scratch) == len(mine)  # else some are dead
        cells.append(
            {
                "made zero": LABELS[way],
                "asked, %": f"{100 * asked:g}",
                "test, %": f"{100 * mean(mine, 'test_accuracy'):.1f}",
                "from scratch, %": (
                    f"{100 * mean(scratch, 'test_accuracy'):.1f}" if complete else ""
                ),
                "parameters": f"{mean(mine, 'parameters'):,.0f}",
                "nonzeros": f"{mean(mine, 'nonzeros'):,.0f}",
                "multiply-adds": f"{mean(mine, 'multiply_adds'):,.0f}",
            }
            | {
                f"{runtime}, ms": f"{1e3 * mean(mine, field):.3f}"
                for runtime, field in RUNTIMES.items()
                if field in mine[0]
            }
        )
    return cells


def figure(rows: Rows) -> Figure:
    """Test error by the parameters left, and by the time of one image."""
    scales = {"parameters left": ("parameters", 1.0, "log")} | {
        f"ms in {runtime}": (field, 1e3, "linear")
        for runtime, field in RUNTIMES.items()
        if field in rows[0]
    }
    axes = panels(len(scales), (1.5 + 4.5 * len(scales), 4.3))
    lines: dict[tuple[str, bool], list[Rows]] = {}
    for (way, from_scratch, _), mine in by_setting(rows).items():
        lines.setdefault((way, from_scratch), []).append(mine)
    for ax, (label, (field, factor, scale)) in zip(axes, scales.items(), strict=True):
        for (way, from_scratch), points in lines.items():
            x = [factor * mean(mine, field) for mine in points]
            y = [100 * (1 - mean(mine, "test_accuracy")) for mine in points]
            style = {"color": f"C{list(LABELS).index(way)}"}
            if from_scratch:
                ax.plot(x, y, "x:", **style)
                continue
            ax.plot(x, y, "o-", **style, label=LABELS[way])
            for mine, *point in zip(points, x, y, strict=True):
                note(ax, f"{100 * mine[0]['asked']:g}", point)
        ax.set(xscale=scale, xlabel=label, yscale="log", ylabel="test error, %")
        if scale == "linear":
            ax.set_xlim(left=0)
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter(NullFormatter())
    axes[0].set_title("made zero; beside the points: % asked for")
    return figure_of(axes)
