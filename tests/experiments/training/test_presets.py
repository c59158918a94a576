"""Tests of experiments.training.presets."""

import dataclasses
import re

import jax
import numpy as np
import pytest

import models
from experiments.training import data, presets
from experiments.training.config import Grda, Sgd
from experiments.training.optimizer import make_optimizer
from experiments.training.presets import PRESETS, preset_of
from experiments.training.text import STDLIB
from experiments.training.trainer import make_trainer


def family(name):
    """The presets whose names start with this one's."""
    rows = {row: config for row, config in PRESETS.items() if row.startswith(name)}
    assert rows
    return rows


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_names_what_exists_and_makes_its_optimizer(name):
    config = PRESETS[name]
    assert config.model in models.names()
    known = ("digits", *data.TFDS_NAMES, "imagenet2012", STDLIB)
    assert config.dataset in known
    make_optimizer(config, steps_per_epoch=1)


def test_every_network_has_its_data():
    # Numbers of parameters are those of tests/models/test_registry.py.
    assert {(config.model, config.dataset) for config in PRESETS.values()} == {
        *(("vgg16", "cifar10"), ("wrn28x10", "cifar10"), ("wrn28x10", "cifar100")),
        *(("resnet50", "imagenet2012"), ("keras-cnn", "cifar10")),
        *(("small-cnn", "cifar10"), ("mnist-mlp", "mnist")),
        *(("digits-wrn10x1", "digits"), ("digits-mlp", "digits")),
        *((f"transformer-{size}", STDLIB) for size in ("64x2", "128x4", "384x6")),
    }


@pytest.mark.parametrize(
    ("name", "c", "protocol"),
    [
        (
            "cifar10-vgg16",
            0.0005,
            {"learning_rate": 0.1, "batch_size": 128, "epochs": 600}
            | {"schedule": "garipov", "augmentation": "flip-crop"},
        ),
        (
            "cifar10-wrn28x10",
            0.001,
            {"learning_rate": 0.1, "batch_size": 128, "epochs": 200}
            | {"schedule": "garipov", "augmentation": "crop-flip"},
        ),
        (
            "cifar100-wrn28x10",
            0.001,
            {"learning_rate": 0.1, "batch_size": 128, "epochs": 200}
            | {"schedule": "garipov", "augmentation": "crop-flip"},
        ),
        ("imagenet-resnet50", None, {"learning_rate": 0.1, "batch_size": 256}),
        ("imagenet-resnet50-c", None, {"schedule": "constant", "epochs": 147}),
        ("imagenet-resnet50-step140", None, {"schedule": "step-141", "epochs": 153}),
        ("imagenet-resnet50-step30", None, {"schedule": "step-30", "epochs": 121}),
        (
            "cifar10-keras-cnn",
            0.005,
            {"learning_rate": 0.005, "batch_size": 10, "epochs": 100}
            | {"schedule": "constant", "augmentation": "none"},
        ),
        (
            "mnist-mlp",
            0.013,
            {"learning_rate": 0.005, "batch_size": 128, "epochs": 150}
            | {"schedule": "constant", "augmentation": "none"},
        ),
    ],
)
def test_a_family_follows_its_protocol(name, c, protocol):
    for row, config in family(name).items():
        assert vars(config).items() >= protocol.items()
        assert config.dtype == "float32"
        assert config.accumulation == 1
        if not isinstance(config.method, Grda):
            assert (row, config.method) == (f"{name}-sgd", Sgd())
        elif c is not None:
            assert config.method.c == c


def test_a_run_is_known_by_its_protocol():
    for name in ("cifar10-vgg16-mu0.7", "imagenet-resnet50-step30-c0.003-mu0.7"):
        run = dataclasses.replace(PRESETS[name], seed=3, dtype="bfloat16")
        assert preset_of(run) == name
        run = dataclasses.replace(run, dataset=f"data/{run.dataset}.npz")
        assert preset_of(run) == name
        assert preset_of(dataclasses.replace(run, batch_size=64)) is None
    # The setting of a threshold is none of SGD's: one twin serves a family.
    sgd = dataclasses.replace(PRESETS["cifar10-vgg16-mu0.7"], method=Sgd())
    assert preset_of(sgd) == "cifar10-vgg16-sgd"


@pytest.mark.parametrize(
    ("name", "images", "steps"),
    [("cifar10-vgg16", 50_000, 391), ("mnist-mlp", 60_000, 469)],
)
def test_the_last_batch_is_kept(name, images, steps):
    assert make_trainer(PRESETS[name], 10, images).steps_per_epoch == steps


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
        assert PRESETS[f"{name}-mu{mu}"].method.mu == mu
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
    assert twin.method == Sgd()
    for field in ("model", "dataset", "schedule", "epochs", "batch_size", "seed"):
        assert getattr(twin, field) == getattr(PRESETS[name], field)


def test_twins_start_from_the_same_weights():
    twins = [make_trainer(PRESETS[f"digits-mlp{end}"], 10, 1) for end in ("", "-sgd")]
    params = jax.jit(lambda: [trainer.init(0).params for trainer in twins])()
    jax.tree.map(np.testing.assert_array_equal, *params)


def test_the_description_has_a_row_for_every_preset_of_the_paper():
    described, name = set(), ""
    for line in presets.__doc__.splitlines():
        if heading := re.match(r"([a-z0-9]+-[a-z0-9-]+): ", line):
            name = heading[1]
        elif row := re.match(r" {4}(sgd|\S*mu[0-9.]+)\s", line):
            described.add(f"{name}-{row[1]}")
    headlines = {name.removesuffix("-sgd") for name in PRESETS if name.endswith("-sgd")}
    ours = ("digits-", "cifar10-small-cnn", "text-")
    rows = {name for name in PRESETS if not name.startswith(ours)}
    assert described == rows - headlines
