"""Tests of experiments.sweep, a grid of settings trained at once."""

import json

import numpy as np
import pytest

from experiments.sweep import Options, main
from experiments.training.config import Grda, Target
from experiments.training.loop import Trained


def test_every_setting_has_a_row_of_means_over_the_seeds(tmp_path, monkeypatch, capsys):
    def train_together(config, dataset, methods, seeds, name):
        assert (config.epochs, methods) == (2, [Grda(0.02), Grda(0.1)])
        names = ("test_accuracy", "test_loss", "sparsity", "threshold")
        row = {name: np.array([0.1, 0.3, 0.5, 0.7]) for name in names}
        return Trained(None, None, row, 1.0, None)

    monkeypatch.setattr("experiments.training.loop.train_together", train_together)
    main(Options(c=(0.02, 0.1), seeds=2, epochs=2, output=tmp_path))
    rows = json.loads((tmp_path / "summary.json").read_text())["rows"]
    assert [(row["c"], row["mu"]) for row in rows] == [(0.02, 0.6), (0.1, 0.6)]
    for row, mean in zip(rows, (0.2, 0.6), strict=True):
        for name in ("test_accuracy", "test_loss", "sparsity"):
            assert row[name] == pytest.approx(mean)
        assert row["test_accuracy_std"] == pytest.approx(0.1)
    printed = " ".join(capsys.readouterr().out.split())
    assert "0.02 0.6 20.00 20.00 10.00" in printed
    assert "4 runs took 1.0 s" in printed
    assert (tmp_path / "figures" / "sparsity_accuracy.png").exists()


def test_every_sparsity_asked_for_is_reached_on_the_schedule_asked_for(tmp_path):
    asked = (0.6, 0.9)
    main(
        Options(sparsity=asked, seeds=2, epochs=8, schedule="garipov", output=tmp_path)
    )
    summary = json.loads((tmp_path / "summary.json").read_text())
    config = summary["config"]
    assert (config["method"]["name"], config["schedule"]) == ("target", "garipov")
    for row, sparsity in zip(summary["rows"], asked, strict=True):
        assert row["asked"] == sparsity
        assert row["sparsity"] == pytest.approx(sparsity, abs=0.01)
        rounding = 1e-6  # of float32 fractions
        deviation = abs(row["sparsity"] - sparsity)
        assert deviation - rounding <= row["worst_deviation"] < 0.01
    assert (tmp_path / "figures" / "sparsity_accuracy.png").exists()


def test_settings_are_all_combinations_or_the_sparsities_asked_for():
    options = Options(c=(0.1, 0.2), mu=(0.5, 0.6))
    assert options.methods == [
        *(Grda(0.1, 0.5), Grda(0.1, 0.6), Grda(0.2, 0.5), Grda(0.2, 0.6))
    ]
    assert Options(sparsity=(0.5, 0.9)).methods == [Target(0.5), Target(0.9)]
    assert len(Options().methods) * Options().seeds < 10  # a first look is quick


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"preset": "digits-mlp-sgd"}, "preset must be one of gRDA, .*digits-mlp"),
        ({"seeds": 0}, "seeds must be >= 1"),
        ({"c": ()}, "c and mu must hold a value each"),
        ({"epochs": 0}, "epochs must be >= 1"),
        ({"sparsity": (0.5, 1.0)}, r"sparsity must be in \[0, 1\), got 1.0"),
    ],
)
def test_options_that_make_no_grid_are_refused(options, rule):
    with pytest.raises(ValueError, match=rule):
        Options(**options)
