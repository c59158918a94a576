"""Runs that are analysed, and what the analyses found, each made once."""

import contextlib
import dataclasses
import fcntl
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import analyses
from experiments.analyses import options, units
from experiments.training import config as configs
from experiments.training import data
from experiments.training.checkpoint import Checkpoints
from experiments.training.config import Config, Grda, Sgd
from experiments.training.directory import MetricsFile, plain
from experiments.training.loop import train_together
from experiments.training.runs import Pair, find_pairs
from experiments.training.session import write_summary
from experiments.training.trainer import make_trainer


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """A function that returns a directory by its name, made by one worker for all.

    It takes the name, and what makes the directory.
    """
    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent

    def get(name: str, make: Callable[[Path], object]) -> Path:
        directory, done = place / name, place / f"{name}.done"
        with (place / f"{name}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                make(directory)
                done.touch()
        return directory

    return get


@pytest.fixture(scope="session")
def digits(shared):
    """The run directories of SGD and gRDA on digits, trained as in the demo.

    In one program: SGD is gRDA with c = 0.
    """

    def train(place):
        methods = {Grda(c=0.0): Sgd(), Grda(): Grda()}
        dataset = data.load("digits")
        size = dataset.num_classes, dataset.num_examples
        writers = []
        for run, method in enumerate(methods.values()):
            config, directory = Config(method=method), place / method.name
            directory.mkdir(parents=True)
            configs.save(config, directory / "config.json")
            writers.append((run, directory, config, make_trainer(config, *size)))

        def after(epoch):
            for run, directory, config, trainer in writers:
                state, row = jax.tree.map(
                    lambda x, run=run: x[run], (epoch.state, epoch.row)
                )
                row = {"epoch": epoch.number, **plain(row), "images_per_second": 1.0}
                MetricsFile(directory).append(row)
                if config.method == Sgd():
                    opt_state = trainer.optimizer.init(state.params)
                    opt_state = optax.tree.set(opt_state, count=state.opt_state.count)
                    state = state._replace(opt_state=opt_state)
                if epoch.number % 30 == 0:
                    Checkpoints(directory, config, trainer).save(state)

        trained = train_together(Config(), dataset, [*methods], [0], "digits", after)
        measured = trained.passes.evaluate(trained.state, "train")
        for run, directory, _, trainer in writers:
            last = jax.tree.map(lambda x, run=run: x[run], (measured, trained.state))
            write_summary(directory, trainer, last[0], last[1].params)

    directory = shared("digits", train)
    return directory / "sgd", directory / "grda"


class Analysed(NamedTuple):
    """What an analysis left."""

    directory: Path
    printed: str  # where standard output has 80 columns

    def rows(self, kind="rows"):
        name = self.directory.name
        return json.loads((self.directory / f"{name}.json").read_text())[kind]


@pytest.fixture(scope="session")
def analysed(shared):
    """A function that runs an analysis once, and returns what it left."""

    def run(chosen) -> Analysed:
        def make(directory):
            printed = io.StringIO()
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("COLUMNS", "80")
                patch.setattr("experiments.analyses.card.has_onnx", lambda: False)
                # The report draws all figures; test_show saves some.
                patch.setattr("experiments.analyses._show.save", lambda *_: None)
                with contextlib.redirect_stdout(printed):
                    analyses.run(dataclasses.replace(chosen, output=directory))
            directory.with_suffix(".txt").write_text(printed.getvalue())

        directory = shared(chosen.name, make)
        return Analysed(directory, directory.with_suffix(".txt").read_text())

    return run


@pytest.fixture(scope="session")
def connected(digits, analysed):
    """The valley on digits."""
    return analysed(options.Connect(digits, epochs=20, points=11, grid=2))


@pytest.fixture(scope="session")
def projected(digits, analysed):
    """The eigenspace on digits."""
    return analysed(options.Project(digits, k=3))


@pytest.fixture(scope="session")
def pruned(digits, analysed):
    """One-shot pruning on digits."""
    return analysed(options.Prune(digits, (0.6,), (1e-4,), products=20))


@pytest.fixture(scope="session")
def carded(digits, analysed):
    """The card of digits, without ONNX Runtime."""
    return analysed(options.Card(digits, rounds=2))


@pytest.fixture(scope="session")
def united(analysed):
    """What is left at a c that leaves some units and at one that leaves none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(units, "GROUPS", ("units",))
        return analysed(options.Units(c=(0.1, 20.0), seeds=1, epochs=2))


@pytest.fixture(scope="module")
def convolutional(tmp_path_factory, tiny_vgg, tiny_images) -> Pair:
    """A pair of runs of a network with BatchNorm and dropout, of random weights."""
    place = tmp_path_factory.mktemp("runs")
    dataset, rng = data.load(tiny_images), np.random.default_rng(0)
    for method in (Sgd(), Grda()):
        config = Config(
            *(tiny_vgg, tiny_images, "crop-flip", method), batch_size=16, epochs=1
        )
        trainer = make_trainer(config, dataset.num_classes, dataset.num_examples)
        state = jax.tree.map(
            lambda x: rng.normal(0.3, 0.5, x.shape).astype(x.dtype) ** 2,
            jax.eval_shape(trainer.init, 0)._replace(key=None),
        )
        opt_state = trainer.optimizer.init(state.params)
        if trainer.weights is not None:
            opt_state = optax.tree.set(opt_state, threshold=jnp.float32(0.5))
            state = state._replace(params=trainer.weights(opt_state, state.params))
        state = state._replace(
            key=jax.random.key(0),
            step=jnp.int32(trainer.steps_per_epoch),
            opt_state=opt_state,
        )
        directory = place / method.name
        directory.mkdir()
        configs.save(config, directory / "config.json")
        Checkpoints(directory, config, trainer).save(state)
    (pair,) = find_pairs(sorted(place.iterdir()))
    return pair
