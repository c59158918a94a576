"""Tests of units: dead units cut out, and a control from scratch."""

import numpy as np
import pytest

from experiments.analyses import units


@pytest.fixture
def found(united):
    return united.rows()


def test_what_is_left_has_the_parameters_of_its_widths(found):
    for row in found:
        first, second = row["widths"]
        products = 64 * first + first * second + second * 10
        assert row["multiply_adds"] == products
        assert row["parameters"] == products + first + second + 10


def test_units_are_cut_out_as_wholes(found):
    left, dead = found
    assert {row["groups"] for row in found} == {"units"}
    assert 0 < sum(left["widths"]) < 128 + 64
    assert dead["widths"] == [0, 0]
    assert 0 < left["from_scratch"] <= 1


def test_a_network_that_died_has_no_control(found):
    assert found[1]["from_scratch"] is None
    assert units.table(found)[1]["from scratch, %"] == ""
    assert "10 parameters" in units.sentence({"rows": found})


def test_means_are_over_the_seeds(found):
    row = found[0] | {"groups": "none"}
    again = row | {"seed": 1, "test_accuracy": row["test_accuracy"] + 0.02}
    (cells,) = units.table([row, again])
    mean = 100 * np.mean([row["test_accuracy"], again["test_accuracy"]])
    assert cells["test, %"] == f"{mean:.1f}"
    assert cells["made zero"] == "single weights"
