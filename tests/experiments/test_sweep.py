"""Tests of experiments.sweep, a grid of settings trained at once."""

import json

import pytest

from experiments.sweep import Options, main


@pytest.mark.slow
def test_every_setting_has_a_row_and_a_larger_c_more_zeros(tmp_path):
    main(Options(c=(0.02, 0.1), mu=(0.6,), seeds=2, epochs=2, output=tmp_path))
    rows = json.loads((tmp_path / "summary.json").read_text())["rows"]
    assert [(row["c"], row["mu"]) for row in rows] == [(0.02, 0.6), (0.1, 0.6)]
    assert 0 < rows[0]["sparsity"] < rows[1]["sparsity"] < 1
    assert (tmp_path / "figures" / "sparsity_accuracy.png").exists()


@pytest.mark.slow
def test_every_sparsity_asked_for_is_reached_on_the_schedule_asked_for(tmp_path):
    asked = (0.6, 0.9)
    main(
        Options(sparsity=asked, seeds=2, epochs=8, schedule="garipov", output=tmp_path)
    )
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["optimizer"], config["schedule"]) == ("target-sparsity", "garipov")
    rows = json.loads((tmp_path / "summary.json").read_text())["rows"]
    for row, sparsity in zip(rows, asked, strict=True):
        assert row["asked"] == sparsity
        assert row["sparsity"] == pytest.approx(sparsity, abs=0.01)
        rounding = 1e-6  # of float32 fractions
        deviation = abs(row["sparsity"] - sparsity)
        assert deviation - rounding <= row["worst_deviation"] < 0.01
    assert (tmp_path / "figures" / "sparsity_accuracy.png").exists()


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"preset": "digits-mlp-sgd"}, "preset must be one of .*digits-mlp"),
        ({"seeds": 0}, "seeds must be >= 1"),
        ({"sparsity": (0.5, 1.0)}, r"sparsity must be in \[0, 1\), got 1.0"),
    ],
)
def test_options_that_make_no_grid_are_refused(options, rule):
    with pytest.raises(ValueError, match=rule):
        Options(**options)
