"""Whether gRDA's solution lies in the valley of SGD's: the path between the two.

BatchNorm's statistics are estimated anew at every point.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from experiments.analyses import _authors as authors
from experiments.analyses._files import Found, Rows, by_setting
from experiments.analyses._plots import COLORS, band, figure_of, note, panels
from experiments.analyses._show import Cells, Section, filled
from experiments.analyses.options import Connect
from experiments.training.augmentation import augment
from experiments.training.config import METHODS, Config
from experiments.training.devices import loops_are_slow
from experiments.training.optimizer import make_optimizer
from experiments.training.runs import Pair, Task, displacement, find_pairs
from experiments.training.trainer import Trainer
from optax_grda.landscape import (
    Bezier,
    Plane,
    barrier_height,
    evaluate_along,
    evaluate_grid,
    train_bend,
)

PyTree = Any
KEYS = {"pairs": ("grda",)}


def parts(options: Connect) -> list[Callable[[Path], dict[str, Rows]]]:
    """A part a pair."""
    pairs = find_pairs(options.runs, options.data_dir)
    return [lambda _, pair=pair: {"pairs": [connect(pair, options)]} for pair in pairs]


def connect(pair: Pair, options: Connect) -> dict[str, Any]:
    """Loss and error between the two solutions of a pair; t = 0 is gRDA's."""
    task = pair.grda.task
    epoch = pair.epochs[-1]
    state, sparse = pair.states(epoch)
    sgd, grda = state.params, sparse.params
    displacement(pair, sgd, grda)  # raises if there is none
    line = jax.jit(Bezier.straight)(grda, sgd)
    curve = bend_curve(task, line, state.batch_stats, pair.grda.config, options)
    ts = jnp.linspace(0, 1, options.points)
    found = {**pair.describe(), "epoch": epoch, "t": ts}
    for name, path in {"line": line, "curve": curve}.items():
        found[name] = along(task.trainer, path, ts, task.train, task.test)
    if options.grid:
        plane = Plane.through(grda, sgd, curve.bend)
        xs, ys = plane.grid(options.grid)
        found["plane"] = {"x": xs, "y": ys, "corners": plane.corners}
        rows = [  # each a dispatch, between which one can stop
            over(task.trainer, plane, xs, y[None], task.train, task.test) for y in ys
        ]
        found["plane"] |= jax.tree.map(lambda *row: np.concatenate(row), *rows)
    return found


def bend_curve(
    task: Task, curve: Bezier, batch_stats: PyTree, run: Config, options: Connect
) -> Bezier:
    """Trains the bend of a curve on the training images, augmented as in the run.

    What the running statistics are does not matter: batches have their own.
    """
    images = len(task.train[1])
    config = dataclasses.replace(
        run,
        batch_size=min(run.batch_size, images),
        accumulation=1,
        method=METHODS[options.optimizer](),
        learning_rate=options.learning_rate,
        schedule="garipov",
        epochs=options.epochs,
    )
    steps = images // config.batch_size
    rounds = steps if loops_are_slow(curve.bend) else 1
    opt_state = make_optimizer(config, steps).init(curve.bend)
    # Bound to the device of the weights, as after a step: it would compile twice.
    opt_state = jax.device_put(opt_state, jax.tree.leaves(curve.bend)[0].sharding)
    for key in jax.random.split(jax.random.key(run.seed), options.epochs):
        plan = batches(key, images, config.batch_size, rounds)
        for number in range(rounds):
            mine = jax.tree.map(lambda x, number=number: x[number], plan)
            curve, opt_state = bend_steps(
                *(config, task.trainer, batch_stats, task.train),
                *(curve, opt_state, *mine),
            )
    return curve


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def batches(key: jax.Array, images: int, size: int, rounds: int):
    """An epoch in rounds: each has batches, an index of images and a key, and a key.

    Images that do not fill a batch are left out.
    """
    steps = images // size
    order_key, step_key, bend_key = jax.random.split(key, 3)
    order = jax.random.permutation(order_key, images)[: steps * size]
    keys = jax.random.split(step_key, (rounds, steps // rounds))
    return (order.reshape(rounds, -1, size), keys), jax.random.split(bend_key, rounds)


@functools.partial(jax.jit, static_argnums=(0, 1))
def bend_steps(
    config: Config, trainer: Trainer, batch_stats, train, curve, opt_state, batches, key
) -> tuple[Bezier, optax.OptState]:
    """A step a batch, which is an index of images and a key."""
    images, labels = train

    def loss_fn(params, batch):
        index, key = batch
        augment_key, dropout_key = jax.random.split(key)
        augmented = augment(augment_key, images[index], config.augmentation)
        inputs = params, batch_stats, augmented, labels[index], dropout_key
        return trainer.loss(*inputs)[0]

    optimizer = make_optimizer(config, len(labels) // config.batch_size)
    return train_bend(loss_fn, optimizer, curve, opt_state, batches, key)[:2]


@functools.partial(jax.jit, static_argnums=0)
def along(trainer: Trainer, path: Bezier, ts: jax.Array, train, test) -> dict:
    """Metrics at points of a path, each of shape (points,), its barrier and length."""
    found = evaluate_along(path, ts, lambda w: metrics_at(trainer, w, train, test))
    height = barrier_height(found["train_loss"])
    return found | {"barrier_height": height, "length": path.arc_length()}


@functools.partial(jax.jit, static_argnums=0)
def over(trainer: Trainer, plane: Plane, xs: jax.Array, ys, train, test) -> dict:
    """Metrics on the grid of a plane, each of shape (rows, columns)."""
    return evaluate_grid(plane, xs, ys, lambda w: metrics_at(trainer, w, train, test))


def metrics_at(trainer: Trainer, params: PyTree, train, test) -> dict[str, jax.Array]:
    """Loss and error on training and test images, without augmentation."""
    stats = trainer.estimate_batch_stats(params, train[0], trainer.batch_size)
    metrics = {}
    for split, images in {"train": train, "test": test}.items():
        loss, accuracy = trainer.evaluate(params, stats, *images)
        metrics |= {f"{split}_loss": loss, f"{split}_error": 1 - accuracy}
    return metrics


def sentence(found: Found) -> str:
    """How far the loss rises on the two ways."""
    pairs = found["pairs"]
    curve, line = (
        max(pair[path]["barrier_height"] for pair in pairs)
        for path in ("curve", "line")
    )
    number = "one pair" if len(pairs) == 1 else f"over {len(pairs)} pairs"
    return (
        "Between the solutions of gRDA and SGD, the training loss rises above the "
        f"larger of the two by at most {curve:.4f} along the trained curve, and by at "
        f"most {line:.4f} along the straight line ({number} of runs)."
    )


def sections(found: Found) -> Iterator[Section]:
    """The two ways, and the plane of the first pair."""
    pairs = found["pairs"]
    yield Section(
        "From gRDA to SGD",
        "If both lie in one valley, the loss along the curve never rises above its "
        "ends; the straight line may have to climb.",
        loss_along_curves(pairs),
        "curve",
        table(pairs),
        "Training loss between solutions",
    )
    if "plane" in pairs[0]:
        yield Section(
            "The valley",
            "Training loss on the plane through both solutions and the bend of the "
            f"curve (seed {pairs[0]['seed']}). Both should lie in one basin, with no "
            "ridge across the curve.",
            plane_of(pairs[0]["plane"]),
            "plane",
        )


def table(pairs: Rows) -> Cells:
    """A row a pair: training loss between gRDA (t = 0) and SGD (t = 1)."""
    rows = []
    for pair in pairs:
        curve, line = pair["curve"], pair["line"]
        numbers = {
            "at gRDA": curve["train_loss"][0],
            "at SGD": curve["train_loss"][-1],
            "curve, max": max(curve["train_loss"]),
            "line, max": max(line["train_loss"]),
            "curve, length": curve["length"],
            "line, length": line["length"],
        }
        theirs = authors.curve_summary(pair)  # of one setting they have a plane alone
        names = {"curve": "train_loss_max", "line": "line_train_loss_max"}
        for path, name in names.items():
            if theirs.get(name):
                numbers[f"authors' {path}, max"] = float(theirs[name])
        cells = {
            name: f"{number:.{2 if 'length' in name else 4}f}"
            for name, number in numbers.items()
        }
        rows.append({"network": pair["label"], "seed": str(pair["seed"]), **cells})
    return filled(rows)


def loss_along_curves(pairs: Rows) -> Figure:
    """Training loss and test error along curve and line: mean and range over pairs.

    For the authors' networks, the curves that they found as well.
    """
    titles = {
        "train_loss": ("training loss", 1),
        "test_error": ("test error, %", 100),
    }
    axes, theirs = panels(2, size=(10, 3.8)), authors.curves(pairs)
    for ax, (name, (title, scale)) in zip(axes, titles.items(), strict=True):
        for number, (setting, mine) in enumerate(by_setting(pairs).items()):
            for path, style in {"line": "--", "curve": "-"}.items():
                values = scale * np.array([pair[path][name] for pair in mine])
                text = f"{path}, {setting}"
                band(ax, pairs[0]["t"], values, f"C{number}", text, style)
            if curve := theirs.get(setting):
                text = f"the authors' curve, {setting}"
                ax.plot(curve["t"], curve[name], ":", color=f"C{number}", label=text)
        ax.set(title=title)
        ax.set_xticks([0, 0.5, 1], ["t = 0\ngRDA", "0.5", "t = 1\nSGD"])
    return figure_of(axes, legend=1)


def plane_of(values: dict[str, Any]) -> Figure:
    """Training loss on the plane through both solutions and the bend of the curve."""
    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    ax = figure.subplots()
    losses = np.asarray(values["train_loss"], float)  # far away, they may overflow
    losses = np.ma.masked_invalid(np.maximum(losses, 1e-8))
    if not losses.count():
        ax.set_title("no loss on this plane is finite")
        return figure
    # Most of a plane is a plateau: levels up to the 90th percentile show the valley.
    high = np.percentile(losses.compressed(), 90)
    levels = np.geomspace(losses.min(), max(high, 1.001 * losses.min()), 15)
    filling = ax.contourf(
        *(values["x"], values["y"], losses, levels),
        cmap="viridis",
        norm=LogNorm(),
        extend="max",
    )
    bar = figure.colorbar(filling, ax=ax, location="bottom", ticks=levels[::2])
    bar.set_label("training loss")
    bar.ax.set_xticklabels([f"{level:.2g}" for level in levels[::2]])
    bar.ax.minorticks_off()
    grda, sgd, bend = map(np.array, values["corners"])
    t = np.linspace(0, 1, 101)[:, None]
    curve = (1 - t) ** 2 * grda + 2 * t * (1 - t) * bend + t**2 * sgd  # it lies there
    ax.plot(*curve.T, color="white")
    ax.plot(*zip(grda, sgd, strict=True), "--", color="white", linewidth=1)
    for name, point, color in (
        ("gRDA", grda, COLORS["grda"]),
        ("SGD", sgd, COLORS["sgd"]),
        ("bend", bend, "0.7"),
    ):
        ax.plot(*point, "o", color=color, markeredgecolor="white", markersize=9)
        note(ax, name, point, color="white")
    ax.set(xlabel="distance towards SGD", ylabel="distance towards the bend")
    ax.set_aspect("equal")
    return figure
