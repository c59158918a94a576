"""Tests of experiments.training.config."""

import dataclasses
import json

import pytest

from experiments.training import config as configs
from experiments.training.config import Adam, Config, Grda, Momentum, Sgd, Target
from experiments.training.errors import UserError


@pytest.mark.parametrize(
    ("make", "field", "value", "rule"),
    [
        (Config, "epochs", 0, "epochs must be >= 1, got 0"),
        (Config, "batch_size", 0, "batch_size must be >= 1, got 0"),
        (Config, "accumulation", 0, "accumulation must be >= 1, got 0"),
        (Config, "accumulation", 33, "accumulation must be at most batch_size, 32"),
        (Config, "learning_rate", 0.0, "learning_rate must be > 0 and finite, got 0.0"),
        (Config, "learning_rate", float("nan"), "learning_rate must be > 0 and finite"),
        (Config, "learning_rate", float("inf"), "learning_rate must be > 0 and finite"),
        (Config, "seed", -1, r"seed must be in \[0, 2\*\*31\), got -1"),
        (Config, "seed", 2**31, r"seed must be in \[0, 2\*\*31\)"),
        (Config, "schedule", "linear", "schedule must be one of constant, .*'linear'"),
        (Target, "sparsity", 1.0, r"sparsity must be in \[0, 1\), got 1.0"),
        (Target, "sparsity", -0.1, r"sparsity must be in \[0, 1\), got -0.1"),
        (Target, "sparsity", float("nan"), r"sparsity must be in \[0, 1\), got nan"),
        (Target, "groups", "channels", "groups must be one of none, units, units-and"),
        (Grda, "groups", "channels", "groups must be one of none, units, units-and"),
        (Grda, "c", -1.0, "c must be >= 0 and finite, got -1.0"),
        (Grda, "c", float("inf"), "c must be >= 0 and finite, got inf"),
        (Grda, "mu", 2.0, r"mu must be in \(0, 1\], got 2.0"),
        (Grda, "mu", 0.0, r"mu must be in \(0, 1\], got 0.0"),
        (Momentum, "beta", 1.0, r"beta must be in \[0, 1\), got 1.0"),
        (Momentum, "weight_decay", -1.0, "weight_decay must be >= 0 and finite"),
        (Adam, "weight_decay", -1.0, "weight_decay must be >= 0 and finite"),
        (Target, "direction", "sign", "direction must be one of gradient, adam"),
        (Grda, "thresholds", "biases", "thresholds must be one of all, kernels"),
        (Target, "momentum", 1.0, r"momentum must be in \[0, 1\), got 1.0"),
        (
            Grda,
            "proximal",
            "power4",
            "proximal must be one of soft, power2, .*'power4'",
        ),
        (Grda, "weight_decay", float("inf"), "weight_decay must be >= 0 and finite"),
    ],
)
def test_an_invalid_value_is_named_with_its_rule(make, field, value, rule):
    with pytest.raises(ValueError, match=rule):
        make(**{field: value})


@pytest.mark.parametrize(
    ("make", "field", "value", "rule"),
    [
        (Config, "epochs", "60", "epochs must be int, got '60'"),
        (Config, "epochs", True, "epochs must be int, got True"),
        (Config, "learning_rate", True, "learning_rate must be float, got True"),
        (Config, "model", 16, "model must be str, got 16"),
        (Config, "method", "grda", "method must be .*, got 'grda'"),
        (Grda, "c", None, "c must be float, got None"),
        (Target, "sparsity", "0.9", "sparsity must be float, got '0.9'"),
    ],
)
def test_a_value_of_the_wrong_type_is_named(make, field, value, rule):
    with pytest.raises(TypeError, match=rule):
        make(**{field: value})


def test_every_method_has_a_label_and_says_whether_it_makes_zeros():
    labels = {method.label: method.is_sparse for method in (Sgd(), Momentum(), Adam())}
    assert labels == {"SGD": False, "momentum SGD, β = 0.9": False, "Adam": False}
    labels = {method.label: method.is_sparse for method in (Grda(), Target(0.5))}
    assert labels == {"gRDA, c = 0.05, μ = 0.6": True, "target 50 %": True}
    assert Target(groups="units-and-weights").label == "target 90 %, units and weights"
    assert Grda(c=1.0, groups="units").label == "gRDA, c = 1, μ = 0.6, units"
    method = Target(momentum=0.9, proximal="power3", weight_decay=5e-4)
    assert method.label == "target 90 %, β = 0.9, p = 3, decay 0.0005"
    assert Grda(clip_norm=1).label == "gRDA, c = 0.05, μ = 0.6, clipped at 1"


def test_adams_label_tells_its_decay_and_what_it_is_the_direction_of():
    assert Adam(0.1).label == "Adam, decay 0.1"
    method = Target(direction="adam", thresholds="kernels", weight_decay=0.1)
    assert method.label == "target 90 %, Adam, kernels, decay 0.1"


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"direction": "adam", "momentum": 0.9}, "momentum must be 0 where direction"),
        ({"groups": "units", "thresholds": "kernels"}, "thresholds must be all where"),
    ],
)
@pytest.mark.parametrize("make", [Grda, Target])
def test_settings_that_exclude_each_other_are_refused(make, settings, rule):
    with pytest.raises(ValueError, match=rule):
        make(**settings)


def test_units_are_thresholded_softly():
    with pytest.raises(
        ValueError, match="proximal must be soft where groups are units"
    ):
        Target(groups="units", proximal="hard")


def test_the_dense_twin_has_momentum_and_decay_of_its_own():
    assert configs.are_twins(Config(method=Sgd()), Config(method=Grda()))
    heavy = Config(method=Target(momentum=0.9, weight_decay=1e-4))
    assert configs.dense_twin(heavy).method == Momentum(0.9, 1e-4)
    assert configs.are_twins(Config(method=Momentum(0.9, 1e-4)), heavy)
    assert not configs.are_twins(Config(method=Sgd()), heavy)
    assert not configs.are_twins(Config(method=Sgd()), Config(method=Sgd(), seed=1))
    assert not configs.are_twins(heavy, heavy)
    adam = Config(method=Grda(direction="adam", weight_decay=0.1))
    assert configs.are_twins(Config(method=Adam(0.1)), adam)


def test_load_reads_what_save_wrote(tmp_path):
    for method in (Grda(c=5e-4), Target(groups="units"), Momentum(), Sgd()):
        config = Config(model="vgg16", method=method, epochs=600, dtype="bfloat16")
        configs.save(config, tmp_path / "config.json")
        assert configs.load(tmp_path / "config.json") == config
    fields = json.loads((tmp_path / "config.json").read_text())
    assert fields["method"] == {"name": "sgd"}


def test_a_file_may_leave_fields_out_and_write_floats_as_integers(tmp_path):
    text = '{"method": {"name": "grda", "c": 1}, "epochs": 2}'
    (tmp_path / "config.json").write_text(text)
    expected = Config(method=Grda(c=1.0), epochs=2)
    assert configs.load(tmp_path / "config.json") == expected


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "is damaged: it must be a JSON file"),
        ("{", "is damaged: it must be a JSON file"),
        ("null", "is damaged: it must hold a JSON object, got None"),
        ('{"lr": 0.1}', r"Config must have no fields but .*, got \['lr'\]"),
        ('{"epochs": 0}', "epochs must be >= 1"),
        ('{"epochs": "2"}', "epochs must be int"),
        ('{"method": "sgd"}', "method must hold a name among sgd, .*, got 'sgd'"),
        ('{"method": {"c": 1}}', r"method must hold a name among .*, got {'c': 1}"),
        ('{"method": {"name": "sgd", "c": 1}}', r"Sgd must have no fields .*\['c'\]"),
    ],
)
def test_load_says_what_is_wrong_with_which_file(tmp_path, text, rule):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=rf"config\.json .*{rule}"):
        configs.load(tmp_path / "config.json")


def test_differences_name_every_field_that_differs():
    saved = configs.to_dict(Config(model="vgg16", method=Grda(c=0.1)))
    assert configs.differences(saved, Config()) == [
        "model: vgg16, not digits-mlp",
        "method.c: 0.1, not 0.05",
    ]
    assert configs.differences(saved, Config(model="vgg16", method=Sgd())) == [
        "method.name: grda, not sgd",
        "method.groups: none, not None",
        "method.momentum: 0.0, not None",
        "method.proximal: soft, not None",
        "method.weight_decay: 0.0, not None",
        "method.direction: gradient, not None",
        "method.thresholds: all, not None",
        "method.clip_norm: 0.0, not None",
        "method.c: 0.1, not None",
        "method.mu: 0.6, not None",
    ]


def test_a_configuration_that_went_through_json_does_not_differ():
    config = Config(method=Grda(c=5e-4), learning_rate=0.1)
    saved = json.loads(json.dumps(configs.to_dict(config)))
    assert configs.differences(saved, config) == []


def test_differences_name_fields_of_another_version_of_the_program():
    saved = configs.to_dict(Config()) | {"label_smoothing": 0.1}
    del saved["accumulation"]
    assert configs.differences(saved, Config()) == [
        "accumulation: None, not 1",
        "label_smoothing: 0.1, not None",
    ]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({}, []),
        ({"epochs": 80}, []),
        ({"epochs": 80, "schedule": "step-30"}, ["schedule", "epochs"]),
        ({"epochs": 40}, ["epochs: 60, not 40, which is fewer"]),
        ({"seed": 1, "epochs": 80}, ["epochs: 60, not 80", "seed: 0, not 1"]),
    ],
)
def test_a_run_goes_on_for_more_epochs_and_for_nothing_else(change, found):
    wanted = dataclasses.replace(Config(), **change)
    obstacles = configs.obstacles(configs.to_dict(Config()), wanted)
    assert len(obstacles) == len(found)
    assert all(
        text.startswith(start) for text, start in zip(obstacles, found, strict=True)
    )


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (Config(schedule="garipov"), "the schedule garipov depends on them"),
        (Config(method=Target()), "the rise to a sparsity depends on them"),
    ],
)
def test_a_run_whose_past_depends_on_its_length_keeps_it(config, why):
    longer = dataclasses.replace(config, epochs=80)
    (text,) = configs.obstacles(configs.to_dict(config), longer)
    assert text == f"epochs: 60, not 80, and {why}"


def test_twins_are_of_sgd_and_differ_in_the_method_alone():
    sgd, grda = Config(method=Sgd(), seed=1), Config(seed=1)
    assert configs.are_twins(sgd, grda)
    assert configs.are_twins(sgd, dataclasses.replace(grda, method=Target()))
    assert not configs.are_twins(grda, grda)
    assert not configs.are_twins(sgd, dataclasses.replace(grda, seed=2))
