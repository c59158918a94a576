"""Tests of the options of analyses."""

from pathlib import Path

import pytest

from experiments.analyses.options import Card, Connect, Project, Prune, Units


@pytest.mark.parametrize(
    ("make", "change", "rule"),
    [
        (Connect, {"epochs": 0}, "epochs must be >= 1, got 0"),
        (Connect, {"points": 1}, "points must be >= 2, got 1"),
        (Connect, {"grid": 1}, "grid must be 0 or at least 2, got 1"),
        (Connect, {"learning_rate": 0.0}, "learning_rate must be > 0 and finite"),
        (Connect, {"learning_rate": float("inf")}, "learning_rate must be > 0 and"),
        (Project, {"k": 0}, "k must be >= 1, got 0"),
        (Prune, {"sparsities": (0.5, 1.0)}, r"sparsities must be in \(0, 1\)"),
        (Prune, {"cutoffs": ()}, "cutoffs must be values > 0"),
        (Prune, {"cutoffs": (1e-3, 0.0)}, "cutoffs must be values > 0"),
        (Prune, {"products": 0}, "products must be >= 1, got 0"),
        (Card, {"rounds": 0}, "rounds must be >= 1, got 0"),
        (Units, {"seeds": 0}, "seeds must be >= 1, got 0"),
        (Units, {"sparsities": ()}, r"sparsities must be values in \(0, 1\), got"),
        (Units, {"sparsities": (0.5, 1.0)}, "sparsities must be values in"),
        (Units, {"learning_rate": 0.0}, "learning_rate must be > 0 and finite"),
        (Units, {"epochs": 0}, "epochs must be >= 1, got 0"),
    ],
)
def test_options_that_find_nothing_are_refused(make, change, rule):
    runs = {Units: {}, Card: {"run": Path("run")}}.get(make, {"runs": ()})
    with pytest.raises(ValueError, match=rule):
        make(**runs, **change)
    make(**runs)


def test_what_was_asked_does_not_tell_where(tmp_path):
    asked = Project((tmp_path,), k=3, data_dir=tmp_path, output=tmp_path).asked()
    assert asked == {"k": 3}
