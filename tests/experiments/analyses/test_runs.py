"""Tests of what is shown of the runs themselves."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex

from experiments.analyses import _authors as authors
from experiments.analyses import runs
from experiments.training.config import Config, Grda, Momentum, Sgd, Target
from experiments.training.presets import PRESETS
from experiments.training.runs import Result


def result(config, **changes):
    """What a run of two epochs could have ended with."""
    layers = {"layers/0/kernel": 0.5, "layers/0/bias": 1.0}
    row = {"seed": 0, "train_loss_running": 0.5, "test_accuracy": 0.9, "sparsity": 0.5}
    return dataclasses.replace(
        Result(
            config=config,
            seeds=[0],
            test_accuracy=[0.9],
            test_loss=[0.5],
            sparsity=[0.5],
            train_loss=[0.25],
            seconds=[2.0],
            sparsity_by_layer=[layers],
            sizes={"layers/0/kernel": 6, "layers/0/bias": 2},
            metrics=[row | {"epoch": epoch} for epoch in (1, 2)],
            environment={"cpus": 2},
            label=config.method.label,
        ),
        **changes,
    )


def of(method, **changes):
    return result(Config(method=method), **changes)


def test_a_table_tells_losses_of_the_final_weights():
    row, _ = runs.table(
        [
            of(Grda(), seeds=[0, 1], train_loss=[0.2, 0.4], test_accuracy=[0.9, 0.8]),
            of(Sgd()),
        ]
    )
    assert row == {
        "method": "gRDA, c = 0.05, μ = 0.6",
        "seeds": "2",
        "test accuracy, %": "85.00 ± 5.00",
        "weights exactly zero, %": "50.00",
        "nonzero weights": "4 of 8",
        "training loss": "0.3000 ± 0.1000",
        "seconds a run": "2.0",
    }


def test_a_table_of_text_tells_the_perplexity_a_byte():
    config = Config(model="gru-64", dataset="python-stdlib", method=Sgd())
    (row,) = runs.table([result(config, test_loss=list(np.log([8, 16])))])
    assert row["perplexity"] == "12.00 ± 4.00"


def test_curves_are_of_the_running_loss_and_say_so():
    figure = runs.training_curves([of(Sgd())])
    loss = figure.axes[0]
    assert loss.get_title() == "running training loss"
    assert list(loss.lines[0].get_ydata()) == [0.5, 0.5]


def test_several_settings_have_a_curve_and_a_row_each():
    several = [of(Sgd()), of(Grda()), of(Grda(mu=0.7)), of(Target(0.8)), of(Momentum())]
    labels = ["SGD", "gRDA, c = 0.05, μ = 0.6", "gRDA, c = 0.05, μ = 0.7"]
    labels += ["target 80 %", "momentum SGD, β = 0.9"]
    assert [row["method"] for row in runs.table(several)] == labels
    found = {"results": several, "kernels": {}}
    _, curves, zeros, tradeoff = runs.sections(found)
    axes = curves.figure.axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == labels
    colors = [to_hex(line.get_color()) for line in axes.lines]
    assert len(set(colors)) == 5
    assert colors[:2] == ["#4c72b0", "#c44e52"]
    assert tradeoff.title == "Sparsity against accuracy"
    assert list(zeros.table[0]) == ["zeros of", *labels]


def test_bars_of_kernels_differ_from_those_of_biases():
    figure = runs.zeros_by_layer(of(Grda()).layers())
    kernel, bias = figure.axes[0].patches
    assert (kernel.get_width(), bias.get_width()) == (50, 100)
    assert kernel.get_facecolor() != bias.get_facecolor()
    (legend,) = figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == ["kernels", "biases and scales"]


def test_a_configuration_has_no_field_without_an_effect():
    fields = runs.configuration(of(Sgd(), seeds=[0, 3]))
    assert fields["method"] == "sgd"
    assert fields["seed"] == [0, 3]
    assert not fields.keys() & {"c", "mu", "sparsity", "groups"}
    fields = runs.configuration(of(Target(0.8)))
    assert (fields["method"], fields["sparsity"]) == ("target", 0.8)
    assert not fields.keys() & {"c", "mu"}


def test_kernels_that_compare_kept_are_shown(tmp_path):
    kernel = np.where(np.arange(64 * 20).reshape(64, 20) % 2, 0.5, 0)
    names = ("initial", "sgd", "grda")
    kernels = {Path("runs/compare"): dict.fromkeys(names, kernel)}
    *_, section = runs.sections({"results": [of(Sgd())], "kernels": kernels})
    assert section.title == "The first layer: runs/compare"
    assert section.figure.axes[0].get_title() == "before training: 50.0% exactly zero"


# The authors


def test_results_of_the_paper_stand_beside_the_authors():
    config = dataclasses.replace(
        PRESETS["cifar10-vgg16-mu0.6"], dataset="data/cifar10.npz", seed=3
    )
    ours = result(config, test_accuracy=[0.91], sparsity=[0.90])
    (row,) = runs.table([ours])
    other = dataclasses.replace(ours, config=dataclasses.replace(config, epochs=2))
    assert runs.table([other])[0].keys() < row.keys()
    assert row["authors' accuracy, %"] == "90.86 ± 0.26"
    # (91 - 90.856) / 0.2612 and (90 - 90.476) / 0.1653
    assert row["accuracy: difference"] == "+0.6 σ"
    assert row["zeros: difference"] == "-2.9 σ"
    *_, section = runs.sections({"results": [ours], "kernels": {}})
    assert "Crosses" in section.caption


@pytest.mark.parametrize("name", ["cifar10-vgg16-mu0.7", "cifar100-wrn28x10"])
def test_sgd_made_from_any_row_finds_the_authors_sgd(name):
    config = dataclasses.replace(PRESETS[name], method=Sgd())
    summary = authors.summary(config)
    assert summary["optimizer"] == "sgd"
    assert authors.summary(PRESETS[name])["optimizer"] == "grda"
    other = dataclasses.replace(config, method=Grda(c=0.1, mu=0.6))
    assert authors.summary(other) is None


def test_others_measured_the_tradeoff_of_resnet50():
    points = authors.tradeoff(PRESETS["imagenet-resnet50"])
    assert len(points) > 2
    assert authors.tradeoff(Config()) == {}
