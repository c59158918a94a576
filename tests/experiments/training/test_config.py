"""Tests of experiments.config."""

import dataclasses
import json

import pytest

from experiments.training import config as configs
from experiments.training.config import Config


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("epochs", 0, "epochs must be >= 1, got 0"),
        ("batch_size", 0, "batch_size must be >= 1, got 0"),
        ("accumulation", 0, "accumulation must be >= 1, got 0"),
        ("accumulation", 5, "accumulation must divide batch_size, 32: got 5"),
        ("learning_rate", 0.0, "learning_rate must be > 0 and finite, got 0.0"),
        ("learning_rate", float("nan"), "learning_rate must be > 0 and finite"),
        ("learning_rate", float("inf"), "learning_rate must be > 0 and finite"),
        ("sparsity", 1.0, r"sparsity must be in \[0, 1\), got 1.0"),
        ("sparsity", -0.1, r"sparsity must be in \[0, 1\), got -0.1"),
        ("sparsity", float("nan"), r"sparsity must be in \[0, 1\), got nan"),
        ("seed", -1, r"seed must be in \[0, 2\*\*31\), got -1"),
        ("seed", 2**31, r"seed must be in \[0, 2\*\*31\)"),
        ("optimizer", "sdg", "optimizer must be one of sgd, momentum, .*, got 'sdg'"),
        ("groups", "channels", "groups must be one of none, units, units-and-weights"),
        ("schedule", "cosine", "schedule must be one of constant, .*, got 'cosine'"),
    ],
)
def test_an_invalid_value_is_named_with_its_rule(field, value, rule):
    with pytest.raises(ValueError, match=rule):
        Config(**{field: value})


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("epochs", "60", "epochs must be int, got '60'"),
        ("c", None, "c must be float, got None"),
        ("sparsity", "0.9", "sparsity must be float, got '0.9'"),
        ("model", 16, "model must be str, got 16"),
    ],
)
def test_a_value_of_the_wrong_type_is_named(field, value, rule):
    with pytest.raises(TypeError, match=rule):
        Config(**{field: value})


def test_load_reads_what_save_wrote(tmp_path):
    config = Config(model="vgg16", c=5e-4, epochs=600, seed=3, dtype="bfloat16")
    configs.save(config, tmp_path / "config.json")
    assert configs.load(tmp_path / "config.json") == config


def test_a_file_may_leave_fields_out_and_write_floats_as_integers(tmp_path):
    (tmp_path / "config.json").write_text('{"c": 1, "epochs": 2}')
    assert configs.load(tmp_path / "config.json") == Config(c=1.0, epochs=2)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("{", "must be a JSON file"),
        ("[1]", r"must hold the fields of a configuration.*got \[1\]"),
        ('{"lr": 0.1}', r"must hold the fields of a configuration.*got \['lr'\]"),
        ('{"epochs": 0}', "epochs must be >= 1"),
    ],
)
def test_load_says_what_is_wrong_with_a_file(tmp_path, text, rule):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=rule):
        configs.load(tmp_path / "config.json")


def test_differences_name_every_field_that_differs():
    saved = dataclasses.asdict(Config(model="vgg16", optimizer="sgd"))
    wanted = Config(model="wrn28x10", dataset="cifar10", optimizer="sgd")
    assert configs.differences(saved, wanted) == [
        "model: vgg16, not wrn28x10",
        "dataset: digits, not cifar10",
    ]


def test_a_configuration_that_went_through_json_does_not_differ():
    config = Config(c=5e-4, learning_rate=0.1)
    assert (
        configs.differences(json.loads(json.dumps(dataclasses.asdict(config))), config)
        == []
    )


def test_differences_name_fields_of_another_version_of_the_program():
    saved = dataclasses.asdict(Config()) | {"label_smoothing": 0.1}
    del saved["accumulation"]
    assert configs.differences(saved, Config()) == [
        "accumulation: None, not 1",
        "label_smoothing: 0.1, not None",
    ]
