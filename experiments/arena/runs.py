"""Runs of one network and one method, trained side by side where that is faster."""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import models
from experiments.arena.methods import Method
from experiments.arena.networks import Network
from experiments.rivals._task import Task
from experiments.training.data import Dataset
from experiments.training.devices import loops_are_slow
from experiments.training.trainer import Trainer
from optax_grda import sparsity

PyTree = Any
Columns = dict[str, Any]  # an array a name, with an axis of runs

TOGETHER = 50  # runs in one program
SMALL = 100_000  # parameters of networks that a CPU trains faster side by side


class Setting(NamedTuple):
    """In what runs of a method differ."""

    pace: float  # learning rate, in units of gamma / (1 - beta)
    sparsity: float  # wanted, of the kernels
    strength: float  # of a penalty, for methods that know no sparsity
    seed: int


def train(
    network: Network, method: Method, dataset: Dataset, settings: Sequence[Setting]
) -> list[dict[str, float]]:
    """Trains a network with a method, once a setting.

    Args:
      network: what to train.
      method: how.
      dataset: on which images.
      settings: of the runs; those that train together are one program.

    Returns:
      A row a setting: the fraction of zeros in the kernels that the method sees, loss
      and accuracy of the final weights on test and training images, the seconds it
      trained (its share, of those side by side), and the size of the optimizer's state
      in copies of the parameters.
    """
    run, copies = _program(network, method, dataset)
    size = together(network, dataset)
    rows = []
    for start in range(0, len(settings), size):
        group = settings[start : start + size]
        seconds, found = run(_columns(group))
        found = jax.device_get(found)
        rows += [
            {name: float(values[number]) for name, values in found.items()}
            | {"seconds": seconds / len(group), "state": copies}
            for number in range(len(group))
        ]
    return rows


@functools.lru_cache(maxsize=1)  # one compilation for all runs of a method
def _program(
    network: Network, method: Method, dataset: Dataset
) -> tuple[Callable[[Columns], tuple[float, Columns]], float]:
    """What trains runs, and the size of the optimizer's state."""
    make = functools.partial(make_trainer, network, method, dataset)
    shapes = jax.eval_shape(make(1.0, 0.0, 0.0, 0).init, 0)
    copies = _entries(shapes.opt_state) / _entries(shapes.params)
    seen = kernels(shapes.params, dataset.num_classes, method.by_units)
    splits = jax.device_put(
        {
            "test": (dataset.test_images, dataset.test_labels),
            "train": (dataset.train_images, dataset.train_labels),
        }
    )

    def init(setting):
        return make(**setting).init(setting["seed"])

    def evaluate(setting, state):
        trainer, found = make(**setting), {}
        for split, images in splits.items():
            metrics = trainer.evaluate(state.params, state.batch_stats, *images)
            found |= {f"{split}_{k}": v for k, v in metrics._asdict().items()}
        weights = jax.tree.map(lambda one, w: w if one else None, seen, state.params)
        return found | {"zeros": sparsity(weights)}

    def side_by_side(columns):
        def epoch(setting, state):
            return make(**setting).train_epoch(state, *splits["train"])[0]

        state = jax.jit(jax.vmap(init))(columns)
        step = (
            jax.jit(jax.vmap(epoch), donate_argnums=1).lower(columns, state).compile()
        )
        start = time.perf_counter()
        for _ in range(network.epochs):
            state = step(columns, state)
        jax.block_until_ready(state)
        seconds = time.perf_counter() - start
        return seconds, jax.jit(jax.vmap(evaluate))(columns, state)

    def one_step(setting, state, images, labels):
        return make(**setting).train_step(state, images, labels)[0]

    jit_init, jit_evaluate = jax.jit(init), jax.jit(evaluate)
    order = jax.jit(make(1.0, 0.0, 0.0, 0).order)
    step = jax.jit(one_step, donate_argnums=1)

    def alone(columns):
        setting = {name: values[0] for name, values in columns.items()}

        def epoch(state, number):
            images = np.asarray(order(state.key, number))
            for batch in dataset.batches(images, network.batch_size):
                state = step(setting, state, batch["image"], batch["label"])
            return state

        jax.block_until_ready(epoch(jit_init(setting), 0))  # compiles
        state = jit_init(setting)
        start = time.perf_counter()
        for number in range(network.epochs):
            state = epoch(state, number)
        jax.block_until_ready(state)
        seconds = time.perf_counter() - start
        return seconds, {k: v[None] for k, v in jit_evaluate(setting, state).items()}

    return side_by_side if together(network, dataset) > 1 else alone, copies


def together(network: Network, dataset: Dataset) -> int:
    """How many runs of a network train in one program: on a CPU, small ones alone."""
    build = functools.partial(
        models.create,
        network.model,
        num_classes=dataset.num_classes,
        image_shape=dataset.image_shape,
    )
    params = jax.eval_shape(lambda: nnx.state(build(rngs=nnx.Rngs(0)), nnx.Param))
    is_small = _entries(params) < SMALL or jax.default_backend() != "cpu"
    return TOGETHER if is_small and not loops_are_slow(params) else 1


def make_trainer(
    network: Network,
    method: Method,
    dataset: Dataset,
    pace: jax.typing.ArrayLike,
    sparsity: jax.typing.ArrayLike,
    strength: jax.typing.ArrayLike,
    seed: jax.typing.ArrayLike,
) -> Trainer:
    """The trainer of a run: kernels by the method, all else dense with momentum."""
    spec = models.spec(network.model)
    steps = network.epochs * -(-dataset.num_examples // network.batch_size)
    peak, cosine = (
        (1 - network.momentum) * pace,
        optax.cosine_decay_schedule(1.0, steps),
    )
    task = Task(
        rate=lambda count: peak * cosine(count.astype(jnp.float32)),
        steps=steps,
        sparsity=sparsity,
        strength=strength,
        key=jax.random.fold_in(jax.random.key(seed), 2),
        momentum=network.momentum,
        weight_decay=network.weight_decay,
    )

    def labels(params: PyTree) -> PyTree:
        return jax.tree.map(
            lambda is_kernel: "sparse" if is_kernel else "dense",
            kernels(params, dataset.num_classes, method.by_units),
        )

    def build(rngs: nnx.Rngs) -> nnx.Module:
        return models.create(
            network.model,
            num_classes=dataset.num_classes,
            image_shape=dataset.image_shape,
            rngs=rngs,
        )

    return Trainer(
        build,
        optax.partition({"sparse": method.make(task), "dense": task.descent()}, labels),
        dataset.num_examples,
        network.batch_size,
        augmentation=network.augmentation,
        mean=spec.mean,
        std=spec.std,
    )


def kernels(params: PyTree, num_classes: int, hidden: bool) -> PyTree:
    """True for kernels; where hidden ones alone count, not for that of the classes."""
    return jax.tree.map(
        lambda w: w.ndim >= 2 and not (hidden and w.shape[-1] == num_classes), params
    )


def _columns(settings: Sequence[Setting]) -> dict[str, np.ndarray]:
    """An array a field, which has an axis of runs."""
    columns = zip(*settings, strict=True)
    named = dict(zip(Setting._fields, map(np.array, columns), strict=True))
    return {
        name: column.astype(np.int32 if name == "seed" else np.float32)
        for name, column in named.items()
    }


def _entries(tree: PyTree) -> int:
    """Entries of all leaves."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
