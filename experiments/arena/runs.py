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
from experiments.arena.methods import METHODS, TWINS, Method
from experiments.arena.networks import Network
from experiments.rivals._task import Task
from experiments.training.data import Dataset
from experiments.training.devices import loops_are_slow
from experiments.training.trainer import Trainer, TrainState
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
      dataset: on which images or texts.
      settings: of the runs; those that train together are one program.

    Returns:
      A row a setting: the fraction of zeros in the kernels that the method sees, loss
      and accuracy of the final weights on test and training inputs, the seconds it
      trained (its share, of those side by side), and the size of the optimizer's state
      in copies of the parameters.
    """
    program = _programs(network, method, dataset)
    size, rows = together(network, dataset), []
    for first in range(0, len(settings), size):
        group = settings[first : first + size]
        columns = _columns(group)
        state = program.init(columns)
        if network.trained:
            twin = METHODS[TWINS[network.direction]]
            dense = _programs(network.dense(), twin, dataset)
            pace = np.full_like(columns["pace"], network.paces[len(network.paces) // 2])
            before = columns | {"pace": pace}
            fresh = dense.init(before)
            dense.compile(before, fresh)
            state = program.start(columns, dense.fit(before, fresh))
        program.compile(columns, state)
        start = time.perf_counter()
        state = jax.block_until_ready(program.fit(columns, state))
        seconds = (time.perf_counter() - start) / len(group)
        found = jax.device_get(program.evaluate(columns, state))
        found = {name: np.reshape(values, len(group)) for name, values in found.items()}
        rows += [
            {name: float(values[run]) for name, values in found.items()}
            | {"seconds": seconds, "state": program.copies}
            for run in range(len(group))
        ]
    return rows


class _Program:
    """Compiled functions of settings and states, which have an axis of runs.

    Where runs train one by one, states have none, and the host hands over batches:
    loops over convolutions are slow on a CPU (see devices.loops_are_slow).
    """

    def __init__(self, network: Network, method: Method, dataset: Dataset):
        self._network, self._dataset = network, dataset
        self._make = functools.partial(make_trainer, network, method, dataset)
        self._alone = together(network, dataset) == 1
        any_trainer = self._make(1.0, 0.0, 0.0, 0)
        shapes = jax.eval_shape(any_trainer.init, 0)
        self.copies = _entries(shapes.opt_state) / _entries(shapes.params)
        self._kernels = kernels(shapes.params, dataset.num_classes, method.by_units)
        self._splits = jax.device_put(
            {
                "test": (dataset.test_inputs, dataset.test_labels),
                "train": (dataset.train_inputs, dataset.train_labels),
            }
        )
        self._order = jax.jit(any_trainer.order)
        self.init = self._over_runs(self._init)
        self.start = self._over_runs(self._start)
        self.evaluate = self._over_runs(self._evaluate)
        train = self._step if self._alone else self._epoch
        self._train = self._over_runs(train, donate_argnums=1)

    def compile(self, columns: Columns, state: TrainState) -> None:
        """Compiles what `fit` needs, so that its time is that of training."""
        if not self._alone:
            self._compiled = self._train.lower(columns, state).compile()
            return
        copy = jax.tree.map(jnp.copy, state)  # donated
        size, examples = self._network.batch_size, self._dataset.num_examples
        for batch in self._dataset.batches(np.arange(size + examples % size), size):
            copy = self._train(columns, copy, *batch.values())

    def fit(self, columns: Columns, state: TrainState) -> TrainState:
        """Trains for all epochs. The state is donated."""
        for epoch in range(self._network.epochs):
            if not self._alone:
                state = self._compiled(columns, state)
                continue
            order = np.asarray(self._order(state.key, epoch))
            for batch in self._dataset.batches(order, self._network.batch_size):
                state = self._train(columns, state, *batch.values())
        return state

    def _over_runs(self, function: Callable, **options) -> Callable:
        def alone(columns, *arguments):
            return function({k: v[0] for k, v in columns.items()}, *arguments)

        return jax.jit(alone if self._alone else jax.vmap(function), **options)

    def _init(self, setting: Columns) -> TrainState:
        return self._make(**setting).init(setting["seed"])

    def _start(self, setting: Columns, trained: TrainState) -> TrainState:
        """The first state of a run that starts from trained weights."""
        return trained._replace(
            step=jnp.zeros_like(trained.step),
            opt_state=self._make(**setting).optimizer.init(trained.params),
        )

    def _epoch(self, setting: Columns, state: TrainState) -> TrainState:
        return self._make(**setting).train_epoch(state, *self._splits["train"])[0]

    def _step(self, setting: Columns, state: TrainState, *batch) -> TrainState:
        return self._make(**setting).train_step(state, *batch)[0]

    def _evaluate(self, setting: Columns, state: TrainState) -> Columns:
        trainer, found = self._make(**setting), {}
        for split, inputs in self._splits.items():
            metrics = trainer.evaluate(state.params, state.batch_stats, *inputs)
            found |= {f"{split}_{k}": v for k, v in metrics._asdict().items()}
        seen = jax.tree.map(lambda k, w: w if k else None, self._kernels, state.params)
        return found | {"zeros": sparsity(seen)}


# One compilation for all runs of a method, and for those it may start from.
_programs = functools.lru_cache(maxsize=2)(_Program)


def together(network: Network, dataset: Dataset) -> int:
    """How many runs of a network train in one program: on a CPU, small ones alone."""
    build = functools.partial(
        models.create,
        network.model,
        num_classes=dataset.num_classes,
        input_shape=dataset.input_shape,
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
    """The trainer of a run: kernels by the method, all else as in the dense twin."""
    spec = models.spec(network.model)
    steps = network.epochs * -(-dataset.num_examples // network.batch_size)
    peak = (1 - (network.momentum or 0.0)) * pace
    cosine = optax.cosine_decay_schedule(1.0, steps)
    task = Task(
        rate=lambda count: peak * cosine(count.astype(jnp.float32)),
        steps=steps,
        sparsity=sparsity,
        strength=strength,
        key=jax.random.fold_in(jax.random.key(seed), 2),
        momentum=network.momentum,
        weight_decay=network.weight_decay,
        direction=network.direction,
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
            input_shape=dataset.input_shape,
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

    def is_kernel(path: tuple[Any, ...], w: jax.Array) -> bool:
        ends = path[-1].key == "kernel"
        return ends and not (hidden and w.shape[-1] == num_classes)

    return jax.tree_util.tree_map_with_path(is_kernel, params)


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
