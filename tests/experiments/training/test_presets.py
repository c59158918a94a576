"""Tests of experiments.presets."""

import dataclasses
import re

import jax
import numpy as np
import pytest

import models
from experiments.training import data, presets
from experiments.training.optimizer import make_optimizer
from experiments.training.presets import PRESETS

CLASSES = {"digits": 10, "mnist": 10, "cifar10": 10, "cifar100": 100} | {
    "imagenet2012": 1000
}
TOTALS = {
    ("vgg16", "cifar10"): 15_245_130,
    ("wrn28x10", "cifar10"): 36_489_290,
    ("wrn28x10", "cifar100"): 36_546_980,
    ("resnet50", "imagenet2012"): 25_557_032,
    ("keras-cnn", "cifar10"): 1_250_858,
    ("small-cnn", "cifar10"): 41_874,
    ("mnist-mlp", "mnist"): 407_050,
    ("digits-wrn10x1", "digits"): 77_898,
    ("digits-mlp", "digits"): 17_226,
}


def family(name):
    """The presets whose names start with this one's."""
    rows = {row: config for row, config in PRESETS.items() if row.startswith(name)}
    assert rows
    return rows


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_names_what_exists_and_makes_its_optimizer(name):
    config = PRESETS[name]
    assert config.model in models.names()
    assert config.dataset in ("digits", *data.TFDS_NAMES, "imagenet2012")
    make_optimizer(config, steps_per_epoch=1)


def test_every_network_has_the_papers_number_of_parameters():
    used = {(config.model, config.dataset) for config in PRESETS.values()}
    assert used == TOTALS.keys()
    for (model, dataset), total in TOTALS.items():
        config = next(
            config
            for config in PRESETS.values()
            if (config.model, config.dataset) == (model, dataset)
        )
        state = jax.eval_shape(Trainer(config, CLASSES[dataset], 1).init, 0)
        assert sum(leaf.size for leaf in jax.tree.leaves(state.params)) == total


@pytest.mark.parametrize(
    ("name", "protocol"),
    [
        (
            "cifar10-vgg16",
            {"learning_rate": 0.1, "batch_size": 128, "epochs": 600, "c": 0.0005}
            | {"schedule": "garipov", "augmentation": "flip-crop"},
        ),
        (
            "cifar10-wrn28x10",
            {"learning_rate": 0.1, "batch_size": 128, "epochs": 200, "c": 0.001}
            | {"schedule": "garipov", "augmentation": "crop-flip"},
        ),
        (
            "cifar100-wrn28x10",
            {"learning_rate": 0.1, "batch_size": 128, "epochs": 200, "c": 0.001}
            | {"schedule": "garipov", "augmentation": "crop-flip"},
        ),
        ("imagenet-resnet50", {"learning_rate": 0.1, "batch_size": 256}),
        ("imagenet-resnet50-c", {"schedule": "constant", "epochs": 147}),
        ("imagenet-resnet50-step140", {"schedule": "step-141", "epochs": 153}),
        ("imagenet-resnet50-step30", {"schedule": "step-30", "epochs": 121}),
        (
            "cifar10-keras-cnn",
            {"learning_rate": 0.005, "batch_size": 10, "epochs": 100, "c": 0.005}
            | {"schedule": "constant", "augmentation": "none"},
        ),
        (
            "mnist-mlp",
            {"learning_rate": 0.005, "batch_size": 128, "epochs": 150, "c": 0.013}
            | {"schedule": "constant", "augmentation": "none"},
        ),
    ],
)
def test_a_family_follows_its_protocol(name, protocol):
    for config in family(name).values():
        assert dataclasses.asdict(config).items() >= protocol.items()
        assert config.dtype == "float32"
        assert config.accumulation == 1


@pytest.mark.parametrize(
    ("name", "images", "steps"),
    [("cifar10-vgg16", 50_000, 391), ("mnist-mlp", 60_000, 469)],
)
def test_the_last_batch_is_kept(name, images, steps):
    assert Trainer(PRESETS[name], 10, images).steps_per_epoch == steps


@pytest.mark.parametrize(
    ("name", "mus"),
    [
        ("cifar10-vgg16", (0.4, 0.51, 0.6, 0.7)),
        ("cifar10-wrn28x10", (0.4, 0.501, 0.55, 0.6, 0.65)),
        ("cifar100-wrn28x10", (0.501, 0.55, 0.6, 0.65)),
        ("cifar10-keras-cnn", (0.3, 0.51, 0.7, 1.0)),
        ("cifar10-small-cnn", (0.6,)),
        ("mnist-mlp", (0.3, 0.51, 0.7)),
    ],
)
def test_a_family_has_a_row_for_every_mu(name, mus):
    for mu in mus:
        assert PRESETS[f"{name}-mu{mu}"].mu == mu
    assert len(family(name)) == len(mus) + 2  # its headline and its SGD twin


@pytest.mark.parametrize(
    ("name", "headline"),
    [
        ("cifar10-vgg16", "mu0.6"),
        ("cifar10-wrn28x10", "mu0.501"),
        ("cifar100-wrn28x10", "mu0.55"),
        ("imagenet-resnet50", "c0.005-mu0.501"),
        ("cifar10-keras-cnn", "mu0.7"),
        ("cifar10-small-cnn", "mu0.6"),
        ("mnist-mlp", "mu0.7"),
    ],
)
def test_a_familys_name_is_its_headline_and_its_twin_differs_by_the_optimizer(
    name, headline
):
    assert PRESETS[name] == PRESETS[f"{name}-{headline}"]
    twin = PRESETS[f"{name}-sgd"]
    assert twin.optimizer == "sgd"
    for field in ("model", "dataset", "schedule", "epochs", "batch_size", "seed"):
        assert getattr(twin, field) == getattr(PRESETS[name], field)


def test_twins_start_from_the_same_weights():
    states = [
        jax.jit(Trainer(PRESETS[name], 10, 1).init)(0)
        for name in ("digits-mlp", "digits-mlp-sgd")
    ]
    jax.tree.map(np.testing.assert_array_equal, *(state.params for state in states))


def test_the_description_has_a_row_for_every_preset_of_the_paper():
    described, name = set(), ""
    for line in presets.__doc__.splitlines():
        if heading := re.match(r"([a-z0-9]+-[a-z0-9-]+): ", line):
            name = heading[1]
        elif row := re.match(r" {4}(sgd|\S*mu[0-9.]+)\s", line):
            described.add(f"{name}-{row[1]}")
    headlines = {name.removesuffix("-sgd") for name in PRESETS if name.endswith("-sgd")}
    ours = ("digits-", "cifar10-small-cnn")
    rows = {name for name in PRESETS if not name.startswith(ours)}
    assert described == rows - headlines
