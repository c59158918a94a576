"""Whole units: how many can be cut out, and what the rest would be worth untrained.

The control is that of Liu et al., "Rethinking the Value of Network Pruning", ICLR 2019.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import jax
import numpy as np
from matplotlib.figure import Figure

import models
from experiments.analyses._files import Found, Rows
from experiments.analyses._plots import figure_of, note, panels
from experiments.analyses._show import Cells, Section, listed
from experiments.analyses.options import Units
from experiments.training import data
from experiments.training.config import Config, Grda, Groups, Sgd
from experiments.training.loop import OnDevice, run_epochs, train_together
from experiments.training.presets import PRESETS
from experiments.training.trainer import make_trainer
from models.export.cost import cost
from models.export.shrink import shrink

KEYS = {"rows": ("model", "dataset", "groups", "c", "seed")}
GROUPS = get_args(Groups)
LABELS = {
    "none": "single weights",
    "units": "units",
    "units-and-weights": "units and weights",
}


def parts(options: Units) -> list[Callable[[Path], dict[str, Rows]]]:
    """A part a kind of groups."""
    config = PRESETS[options.preset]
    config = dataclasses.replace(config, epochs=options.epochs or config.epochs)
    dataset = data.load(config.dataset, options.data_dir)
    return [
        functools.partial(measure, config, dataset, options, groups)
        for groups in GROUPS
    ]


def measure(
    config: Config, dataset: data.Dataset, options: Units, groups: Groups, _: Path
) -> dict[str, Rows]:
    """A row a c and seed."""
    mu, seeds = vars(config.method)["mu"], range(options.seeds)
    methods = [Grda(c, mu, groups) for c in options.c]
    trained = train_together(config, dataset, methods, seeds, LABELS[groups])
    rows = []
    for run, (c, seed) in enumerate(itertools.product(options.c, seeds)):
        state = jax.tree.map(lambda leaf, run=run: leaf[run], trained.state)
        network = trained.passes.trainer.network(state.params, state.batch_stats)
        network = shrink(network, dataset.input_shape)
        parameters, multiply_adds, widths = cost(network, dataset.input_shape)
        hidden = [*widths.values()][:-1]
        rows.append(
            {
                "model": config.model,
                "dataset": Path(config.dataset).stem,
                "groups": groups,
                "c": c,
                "seed": seed,
                "test_accuracy": trained.row["test_accuracy"][run],
                "sparsity": trained.row["sparsity"][run],
                "widths": hidden,
                "parameters": parameters,
                "multiply_adds": multiply_adds,
                "from_scratch": from_scratch(config, seed, tuple(hidden), dataset),
            }
        )
    return {"rows": rows}


def from_scratch(
    config: Config, seed: int, widths: tuple[int, ...], dataset: data.Dataset
) -> float | None:
    """Test accuracy of those widths after SGD; None where a layer has none left."""
    if 0 in widths:
        return None
    classes, config = dataset.num_classes, dataclasses.replace(config, method=Sgd())
    build = functools.partial(
        models.create, config.model, num_classes=classes, features=widths
    )
    trainer = dataclasses.replace(
        make_trainer(config, classes, dataset.num_examples),
        build=lambda rngs: build(rngs=rngs),
    )
    passes, epochs = OnDevice(trainer, dataset), range(1, config.epochs + 1)
    state = jax.jit(trainer.init)(seed)
    *_, last = run_epochs(passes, state, epochs, f"widths {widths}")
    assert last.row is not None
    return float(last.row["test_accuracy"])


def by_setting(rows: Rows) -> dict[tuple[str, float], Rows]:
    """The rows by what was thresholded, and c."""
    settings: dict[tuple[str, float], Rows] = {}
    for row in rows:
        settings.setdefault((row["groups"], row["c"]), []).append(row)
    return settings


def sentence(found: Found) -> str:
    """What the largest c leaves, and what that is worth untrained."""
    largest, found_there = max(row["c"] for row in found["rows"]), []
    for cells in table([row for row in found["rows"] if row["c"] == largest]):
        text = f"{cells['parameters']} parameters at {cells['test, %']} % test accuracy"
        if cells["from scratch, %"]:
            text += f", {cells['from scratch, %']} % where trained from scratch"
        found_there.append(f"{text} ({cells['made zero']})")
    return (
        f"Once units that cannot matter are cut out, c = {largest:g} leaves "
        f"{listed(found_there)}."
    )


def sections(found: Found) -> Iterator[Section]:
    """What is left of the networks, and what that is worth."""
    yield Section(
        "Whole units",
        "Test error by what is left once dead units are cut out. Where whole units "
        "are thresholded, less should be left at the same error. Crosses: the same "
        "architecture trained from scratch by SGD; where they lie no higher, gRDA "
        "found widths that are enough rather than weights.",
        left_over(found["rows"]),
        "units",
        table(found["rows"]),
        "Units that cannot matter are cut out",
    )


def table(rows: Rows) -> Cells:
    """A row a kind of groups and a c: means over the seeds.

    Zeros and test accuracy of the network; units in each hidden layer and parameters of
    what is left of it; test accuracy of that trained from scratch.
    """
    cells = []
    for (groups, c), mine in by_setting(rows).items():
        zeros, accuracy, parameters = (
            np.mean([row[name] for row in mine])
            for name in ("sparsity", "test_accuracy", "parameters")
        )
        widths = np.mean([row["widths"] for row in mine], axis=0)
        scratch = [row["from_scratch"] for row in mine]
        cells.append(
            {
                "made zero": LABELS[groups],
                "c": f"{c:g}",
                "zeros, %": f"{100 * zeros:.1f}",
                "test, %": f"{100 * accuracy:.1f}",
                "units": " + ".join(f"{width:.0f}" for width in widths),
                "parameters": f"{parameters:,.0f}",
                "from scratch, %": (
                    "" if None in scratch else f"{100 * np.mean(scratch):.1f}"
                ),
            }
        )
    return cells


def left_over(rows: Rows) -> Figure:
    """Test error by the parameters left once dead units are cut out."""
    (ax,) = panels()
    for number, groups in enumerate(dict.fromkeys(row["groups"] for row in rows)):
        mine = [rs for key, rs in by_setting(rows).items() if key[0] == groups]
        x = [np.mean([row["parameters"] for row in rs]) for rs in mine]
        for name, style in (("test_accuracy", "o-"), ("from_scratch", "x:")):
            # Where no unit is left, there is nothing to train from scratch.
            values = np.array([[row[name] for row in rs] for rs in mine], float)
            errors = 100 * (1 - np.mean(values, axis=1))
            label = LABELS[groups] + ", from scratch" * (name == "from_scratch")
            ax.plot(x, errors, style, color=f"C{number}", label=label)
            for rs, *point in zip(mine, x, errors, strict=True):
                if name == "test_accuracy":
                    note(ax, f"{rs[0]['c']:g}", point)
    ax.set(xscale="log", xlabel="parameters left", yscale="log", ylabel="test error, %")
    ax.yaxis.set_major_formatter("{x:g}")
    ax.set_title("numbers beside the points: c")
    return figure_of([ax])
