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


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"preset": "digits-mlp-sgd"}, "preset must be one of .*digits-mlp"),
        ({"seeds": 0}, "seeds must be >= 1"),
    ],
)
def test_options_that_make_no_grid_are_refused(options, rule):
    with pytest.raises(ValueError, match=rule):
        Options(**options)
