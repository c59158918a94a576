"""Runs that are analysed, and what the analyses found, each made once."""

import dataclasses
import fcntl
import json
from pathlib import Path
from typing import Any, NamedTuple

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
from experiments.training.runs import Pair, find_pairs
from experiments.training.trainer import make_trainer


@pytest.fixture(scope="session")
def digits(demo_run):
    """The run directories of SGD and gRDA on digits, seed 0 of the demo."""
    return demo_run / "sgd-0", demo_run / "grda-0"


class Analysed(NamedTuple):
    """What an analysis left."""

    directory: Path

    def rows(self, kind: str = "rows") -> list[dict[str, Any]]:
        """The rows of a kind in its file."""
        path = self.directory / f"{self.directory.name}.json"
        return json.loads(path.read_text())[kind]

    def found(self) -> dict[str, Any]:
        """What a report is made of."""
        return analyses.read(self.directory.name, [self.directory])


@pytest.fixture(scope="session")
def analysed(shared_directory):
    """A function that runs an analysis, unless another worker did, without drawing."""

    def run(chosen) -> Analysed:
        directory = shared_directory / chosen.name
        with directory.with_suffix(".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (directory / "done").exists():
                with pytest.MonkeyPatch.context() as patch:
                    # The report draws all figures, and the demo saves some.
                    patch.setattr("experiments.analyses.show", lambda *_: None)
                    analyses.run(dataclasses.replace(chosen, output=directory))
                (directory / "done").touch()
        return Analysed(directory)

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
def carded(demo_run):
    """The demo's card, without ONNX Runtime."""
    return Analysed(demo_run / "card")


@pytest.fixture(scope="session")
def united(analysed):
    """What is left of the digits network by whole units, without ONNX Runtime."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(units, "GROUPS", ("units",))
        patch.setattr(units, "exported", lambda *_: ())
        return analysed(options.Units(sparsities=(0.5,), seeds=1, epochs=2))


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
