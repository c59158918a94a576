"""Whether gRDA's solution lies in the valley of SGD's: the path between the two.

    python -m experiments.connect RUN [RUN ...] [--output DIRECTORY]

For every run of gRDA and its SGD twin among the run directories (one that `make demo`
wrote holds such pairs): a quadratic Bezier curve between the two solutions is trained,
and loss and error are taken along it, along the straight line, and on the plane through
the curve's three points. BatchNorm statistics are estimated anew at every point.
Writes connect.json and figures/ to a directory.
"""

import dataclasses
import functools
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import optax
import tyro

from experiments.analyses import _authors as authors
from experiments.analyses import _plots as analysis_figures
from experiments.analyses._files import analyse, filled, print_table
from experiments.training.augmentation import augment
from experiments.training.config import Config, Momentum, Sgd
from experiments.training.devices import loops_are_slow
from experiments.training.optimizer import make_optimizer
from experiments.training.runs import Pair, Task, displacement, find_pairs
from experiments.training.trainer import Trainer
from optax_grda.landscape import (
    Bezier,
    Plane,
    PlanePoint,
    barrier_height,
    evaluate_along,
    evaluate_grid,
    train_bend,
)

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Options:
    """Walks between the solutions of SGD and of gRDA."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run directories, or directories of them."""
    epochs: int = 60
    """Epochs that the bend is trained. The authors: 300 for VGG16, 200 for WRN."""
    learning_rate: float = 0.1
    """Of the bend; it falls as in the CIFAR runs."""
    optimizer: Literal["momentum", "sgd"] = "momentum"
    """Of the bend's training. The authors: momentum 0.9 for VGG16, SGD for WRN."""
    points: int = 61
    """Points along curve and line."""
    grid: int = 29
    """Points along each axis of the plane; 0 leaves it out."""
    data_dir: Path | None = None
    """Where TFDS keeps its data sets; by default TFDS's own choice."""
    output: Path | None = None
    """Directory of the results; by default a new one under runs/."""

    def __post_init__(self):
        for name, least in (("epochs", 1), ("points", 2), ("grid", 0)):
            if getattr(self, name) < least:
                raise ValueError(
                    f"{name} must be >= {least}, got {getattr(self, name)}"
                )
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(
                f"learning_rate must be > 0 and finite, got {self.learning_rate}"
            )
        if self.grid == 1:
            raise ValueError("grid must be 0 or at least 2, got 1")


def connect(pair: Pair, options: Options) -> dict[str, Any]:
    """Loss and error between the two solutions of a pair; t = 0 is gRDA's."""
    task = pair.grda.task
    epoch = pair.epochs[-1]
    sgd, grda = (state.params for state in pair.states(epoch))
    displacement(pair, sgd, grda)  # raises if there is none
    line = Bezier.straight(grda, sgd)
    curve = bend_curve(task, line, pair.grda.config, options)
    ts = jnp.linspace(0, 1, options.points)
    result = {**pair.describe(), "epoch": epoch, "t": ts}
    for name, path in {"line": line, "curve": curve}.items():
        metrics = along(task.trainer, path, ts, task.train, task.test)
        result[name] = metrics | {
            "barrier_height": barrier_height(metrics["train_loss"]),
            "length": path.arc_length(),
        }
    if options.grid:
        plane = Plane.through(grda, sgd, curve.bend)
        xs, ys = plane.grid(options.grid)
        points = shadow(plane, curve, ts)
        result["plane"] = {"x": xs, "y": ys, "corners": plane.corners}
        result["plane"] |= {"curve_x": points.x, "curve_y": points.y}
        rows = [  # each a dispatch, between which one can stop
            over(task.trainer, plane, xs, y[None], task.train, task.test) for y in ys
        ]
        result["plane"] |= jax.tree.map(lambda *row: jnp.concatenate(row), *rows)
    return result


def bend_curve(task: Task, line: Bezier, run: Config, options: Options) -> Bezier:
    """Trains the bend of a line on the training images, augmented as in the run."""
    config = dataclasses.replace(
        run,
        method=Momentum() if options.optimizer == "momentum" else Sgd(),
        batch_size=min(run.batch_size, len(task.train[1])),
        accumulation=1,
        learning_rate=options.learning_rate,
        schedule="garipov",
        epochs=options.epochs,
    )
    state = jax.jit(task.trainer.init)(0)  # its running statistics do not matter
    images, size = len(task.train[1]), config.batch_size
    steps = images // size
    rounds = steps if loops_are_slow(state.params) else 1
    curve, opt_state = line, make_optimizer(config, steps).init(line.bend)
    for epoch_key in jax.random.split(jax.random.key(run.seed), options.epochs):
        order_key, step_key, bend_key = jax.random.split(epoch_key, 3)
        # Images that do not fill a batch are left out.
        order = jax.random.permutation(order_key, images)[: steps * size]
        indices = order.reshape(rounds, -1, size)
        keys = jax.random.split(step_key, (rounds, steps // rounds))
        for number, key in enumerate(jax.random.split(bend_key, rounds)):
            curve, opt_state = bend_steps(
                *(config, task.trainer, state.batch_stats, task.train),
                *(curve, opt_state, (indices[number], keys[number]), key),
            )
    return curve


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
        return trainer.loss(params, batch_stats, augmented, labels[index], dropout_key)[
            0
        ]

    optimizer = make_optimizer(config, len(labels) // config.batch_size)
    return train_bend(loss_fn, optimizer, curve, opt_state, batches, key)[:2]


@functools.partial(jax.jit, static_argnums=0)
def along(trainer: Trainer, path: Bezier, ts: jax.Array, train, test) -> dict:
    """Metrics at points of a path, each of shape (points,)."""
    return evaluate_along(path, ts, lambda w: metrics_at(trainer, w, train, test))


@functools.partial(jax.jit, static_argnums=0)
def over(trainer: Trainer, plane: Plane, xs: jax.Array, ys, train, test) -> dict:
    """Metrics on the grid of a plane, each of shape (rows, columns)."""
    return evaluate_grid(plane, xs, ys, lambda w: metrics_at(trainer, w, train, test))


@jax.jit
def shadow(plane: Plane, curve: Bezier, ts: jax.Array) -> PlanePoint:
    """The way of a curve over a plane."""
    return evaluate_along(curve, ts, plane.project)


def metrics_at(trainer: Trainer, params: PyTree, train, test) -> dict[str, jax.Array]:
    """Loss and error on training and test images, without augmentation."""
    stats = trainer.estimate_batch_stats(params, train[0])
    metrics = {}
    for split, images in {"train": train, "test": test}.items():
        loss, accuracy = trainer.evaluate(params, stats, *images)
        metrics |= {f"{split}_loss": loss, f"{split}_error": 1 - accuracy}
    return metrics


def table(results: list[dict[str, Any]]) -> list[dict[str, str]]:
    """A row a pair: training loss between gRDA (t = 0) and SGD (t = 1)."""
    rows = []
    for result in results:
        curve, line = result["curve"], result["line"]
        losses = {
            "at gRDA": curve["train_loss"][0],
            "at SGD": curve["train_loss"][-1],
            "curve, max": max(curve["train_loss"]),
            "line, max": max(line["train_loss"]),
        }
        rows.append(
            {
                "network": result["label"],
                "seed": str(result["seed"]),
                **{name: f"{loss:.4f}" for name, loss in losses.items()},
                "curve, length": f"{curve['length']:.2f}",
                "line, length": f"{line['length']:.2f}",
            }
        )
        theirs = authors.curve_summary(result) or {}
        for path, name in (
            ("curve", "train_loss_max"),
            ("line", "line_train_loss_max"),
        ):
            if value := theirs.get(name):  # of one setting they have a plane alone
                rows[-1][f"authors' {path}, max"] = f"{float(value):.4f}"
    return filled(rows)


def main(options: Options) -> Path:
    """Connects all pairs, and returns the directory of the results."""
    pairs = find_pairs(options.runs, options.data_dir)
    directory, found = analyse(
        "connect",
        options,
        ({"pairs": [connect(pair, options)]} for pair in pairs),
        len(pairs),
        analysis_figures.draw_connect,
    )
    print_table("Training loss between solutions", table(found["pairs"]), directory)
    return directory
