"""What the arena shows of its rows."""

import numpy as np
import pytest

from experiments.analyses import arena
from experiments.arena.methods import METHODS


def rows_of(
    method,
    accuracy,
    sparsity=0.9,
    zeros=None,
    seeds=2,
    phase="test",
    model="digits-mlp",
):
    """Rows of one network, whose accuracies differ by a point between two seeds."""
    return [
        {
            "network": "net",
            "model": model,
            "method": method,
            "phase": phase,
            "pace": 0.1,
            "strength": 0.0,
            "sparsity": sparsity,
            "zeros": sparsity if zeros is None else zeros,
            "seed": seed,
            "test_accuracy": accuracy + 0.01 * seed,
            "train_loss": 0.1,
            "test_loss": 1.5 + 0.01 * seed,
            "seconds": 1.0,
            "state": 2.0,
        }
        for seed in range(seeds)
    ]


@pytest.fixture
def found():
    return {
        "rows": [
            *rows_of("momentum", 0.97, sparsity=0.0),
            *rows_of("dial-soft", 0.95),
            *rows_of("dial-soft", 0.90, sparsity=0.98),
            *rows_of("gradual-global", 0.94, sparsity=0.98),
            *rows_of("l0-constraint", 0.93, sparsity=0.98, zeros=0.97),
            *rows_of("dial-soft", 0.1, phase="tuning"),
            *rows_of("dial-units", 0.5),
        ]
    }


def test_the_sentence_ranks_methods_at_the_highest_sparsity(found):
    text = arena.sentence(found)
    # The third has fewer zeros than were wanted.
    assert "net, 98 % zeros: the best of 2 methods that reach it are gradual" in text
    assert "dial, soft 90.50 ± 0.50 (dense 97.50 ± 0.50)" in text
    assert "90 % zeros in whole units: the best of 1 methods that reach it are" in text


def test_tables_have_a_row_a_method_and_tell_of_zeros_that_differ(found):
    weights, _, units, _ = arena.sections(found)
    assert [row["method"] for row in weights.table] == [
        METHODS[name].label
        for name in ("momentum", "dial-soft", "gradual-global", "l0-constraint")
    ]
    dense, soft, gradual, gates = weights.table
    assert dense["dense"] == "97.50±0.50"
    assert (soft["90 %"], soft["98 %"]) == ("95.50±0.50", "90.50±0.50")
    assert (gradual["90 %"], gradual["98 %"]) == ("", "94.50±0.50")
    assert gates["98 %"] == "93.50±0.50 at 97.0"
    assert [row["method"] for row in units.table] == [
        METHODS["momentum"].label,
        METHODS["dial-units"].label,
    ]


def test_figures_have_a_line_a_method(found):
    for section, label in zip(
        arena.sections(found),
        ("test accuracy, %", "training loss, nats") * 2,
        strict=True,
    ):
        (ax,) = section.figure.axes
        assert ax.get_ylabel() == label
        methods = {row["method"] for row in section.table}
        assert {line.get_label() for line in ax.get_lines()} == methods


def test_a_dense_network_alone_has_a_table_too():
    found = {"rows": rows_of("momentum", 0.97, sparsity=0.0)}
    accuracy, _ = arena.sections(found)
    assert accuracy.table[0]["dense"] == "97.50±0.50"
    assert arena.sentence(found) == ""


def test_of_text_the_test_loss_is_shown_too():
    rows = [
        *rows_of("adamw", 0.6, sparsity=0.0, model="transformer-64x2"),
        *rows_of("dial-adam-soft", 0.59, model="transformer-64x2"),
    ]
    assert "(dense 60.50 ± 0.50)" in arena.sentence({"rows": rows})
    shown = {section.title: section for section in arena.sections({"rows": rows})}
    cells = shown["Test loss: net, single weights"].table
    assert [cell["method"] for cell in cells] == ["AdamW, dense", "dial, soft, Adam"]
    assert cells[1]["90 %"] == "1.5050±0.0050"


def test_a_method_that_has_not_all_its_seeds_yet_is_drawn():
    rows = rows_of("dial-soft", 0.97, seeds=2)
    rows += rows_of("dial-soft", 0.95, sparsity=0.98, seeds=1)
    line, *_ = arena.figure(rows, "test_accuracy", "accuracy").axes[0].lines
    np.testing.assert_allclose(line.get_ydata(), [0.975, 0.95])
