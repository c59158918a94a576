"""What is trained in the arena: networks, data and budget, the same for all methods."""

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np

from experiments.training import data
from experiments.training.data import Dataset


@dataclasses.dataclass(frozen=True)
class Network:
    """A network and the budget of its runs.

    All runs pass over the same inputs for the same epochs, in batches of one size, at a
    learning rate that falls as half a cosine to zero.
    """

    model: str  # a name of models.names()
    dataset: str  # as of data.load
    epochs: int
    batch_size: int
    # Learning rates that methods choose from, in units of gamma / (1 - beta): what
    # plain SGD would have at the same pace. Of Adam, learning rates.
    paces: tuple[float, ...]
    examples: int | None = None  # the first of the training inputs; None for all
    augmentation: str = "none"
    weight_decay: float = 5e-4
    momentum: float | None = 0.9  # None of Adam, which has its own
    direction: Literal["gradient", "adam"] = "gradient"  # which methods train it
    # Epochs of dense training before all methods begin, at the middle one of the paces.
    trained: int = 0

    def dense(self) -> "Network":
        """The dense training that the methods' runs start from."""
        return dataclasses.replace(self, epochs=self.trained, trained=0)


_DIGITS = {"dataset": "digits", "batch_size": 32, "paces": (0.1, 0.2, 0.4, 0.8, 1.6)}
_CIFAR = {"dataset": "cifar10", "batch_size": 128, "paces": (0.1, 0.2, 0.4, 0.8, 1.6)}

NETWORKS: dict[str, Network] = {
    "digits-mlp": Network("digits-mlp", epochs=60, **_DIGITS),
    "digits-wrn10x1": Network("digits-wrn10x1", epochs=30, **_DIGITS),
    "digits-mlp-trained": Network("digits-mlp", epochs=6, trained=60, **_DIGITS),
    "cifar10-mlp": Network("cifar-mlp", epochs=10, examples=10_000, **_CIFAR),
    "cifar10-small-cnn": Network("small-cnn", epochs=6, examples=10_000, **_CIFAR),
    "cifar10-vgg16bn": Network(
        "vgg16bn", epochs=30, augmentation="flip-crop", **_CIFAR
    ),
    "text-64x2": Network(
        "transformer-64x2",
        "python-stdlib",
        epochs=4,
        batch_size=32,
        paces=(0.75e-3, 1.5e-3, 3e-3, 6e-3, 12e-3),
        examples=8_192,
        weight_decay=0.1,
        momentum=None,
        direction="adam",
    ),
}


def load(network: Network, cifar10: Path | None, data_dir: Path | None) -> Dataset:
    """The images or texts that a network trains on, and those that test it.

    Args:
      network: of the arena.
      cifar10: an .npz file of the data set, as of data.load; None for TFDS.
      data_dir: where TFDS keeps its data sets.

    Raises:
      FileNotFoundError, UserError: as data.load.
    """
    name = network.dataset
    if name == "cifar10" and cifar10 is not None:
        name = str(cifar10)
    dataset = data.load(name, data_dir)
    return dataclasses.replace(
        dataset,
        train_inputs=dataset.train_inputs[: network.examples],
        train_labels=dataset.train_labels[: network.examples],
    )


def for_validation(dataset: Dataset) -> Dataset:
    """A fifth of the training inputs in place of the test inputs, the rest to train."""
    n = dataset.num_examples
    train, held_out = np.split(np.random.default_rng(0).permutation(n), [n - n // 5])
    inputs, labels = dataset.train_inputs, dataset.train_labels
    return dataclasses.replace(
        dataset,
        train_inputs=inputs[train],
        train_labels=labels[train],
        test_inputs=inputs[held_out],
        test_labels=labels[held_out],
    )
