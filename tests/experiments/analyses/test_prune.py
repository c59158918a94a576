"""Tests of prune: the definition beside other rules and gRDA."""

import pytest

from experiments.analyses import prune
from experiments.training.runs import find_pairs


def row(rule, asked, loss, cutoff=None):
    return {"rule": rule, "cutoff": cutoff, "asked": asked, "like": None} | {
        "sparsity": 0.5,
        "train_loss": loss,
        "test_accuracy": 0.9,
    }


def test_every_rule_reaches_what_was_asked(pruned):
    rows = pruned.rows("pruning")
    rules = {(row["rule"], row["cutoff"]) for row in rows}
    others = {(rule, None) for rule in ("SGD", "gRDA", "magnitude", "OBD")}
    assert rules == {("definition", 1e-4), *others}
    (grda,) = (row["sparsity"] for row in rows if row["rule"] == "gRDA")
    assert 0 < grda < 1
    for row in rows:
        like = {None: 0, "gRDA, c = 0.05, μ = 0.6": grda}[row["like"]]
        asked = like if row["asked"] is None else row["asked"]
        assert row["sparsity"] == pytest.approx(asked, abs=2e-3)


def test_the_definition_loses_less_than_magnitude_pruning(pruned):
    rows = pruned.rows("pruning")
    loss = {row["rule"]: row["train_loss"] for row in rows if row["asked"] == 0.6}
    assert loss["definition"] < loss["magnitude"]


def test_a_table_of_pruning_leaves_out_means_over_some_of_the_runs():
    rows = [row("SGD", None, 0.1), row("SGD", None, 0.3)]
    rows += [row("magnitude", 0.5, 1.0), row("magnitude", 0.5, 2.0)]
    rows += [row("definition", 0.5, 1.0, cutoff=1e-4)]
    assert prune.table(rows) == [
        {"zeros": "50.0%, SGD", "magnitude": "0.200 (90.0)"},
        {"zeros": "50.0%", "magnitude": "1.500 (90.0)"},
    ]


def test_the_largest_residual_of_each_cutoff_is_told():
    pairs = ((1e-4, 0.2), (1e-4, 0.3), (1e-3, 0.001))
    rows = [{"cutoff": cutoff, "residual": residual} for cutoff, residual in pairs]
    sentence = prune.residuals([{"rule": "SGD"}, *rows])
    assert ": 0.001 at ε = 0.001, 0.3 at ε = 0.0001;" in sentence


def test_agreement_is_measured_at_the_threshold_beside_controls(digits, pruned):
    rows = pruned.rows("agreement")
    (pair,) = find_pairs(digits)
    assert [row["epoch"] for row in rows] == 3 * [30] + 3 * [60]  # and two controls
    for row in rows:
        threshold = pair.grda.state(row["epoch"]).opt_state.threshold
        assert row["strength"] == pytest.approx(float(threshold))
        assert -1 <= row["cosine"] <= 1
        assert 0 <= row["overlap"] <= 1


def test_grda_agrees_with_the_definition_more_than_with_shuffled_scores(pruned):
    rows = pruned.rows("agreement")
    cosine = {row["scores"]: row["cosine"] for row in rows if row["epoch"] == 60}
    assert cosine["definition"] > max(0.8, cosine["shuffled scores"])
