"""Tests of experiments.units: dead units cut out, and a control from scratch."""

import json

import numpy as np
import pytest

from experiments import report
from experiments.analyses import units


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the command found at a c that leaves some units and one that leaves none."""
    output = tmp_path_factory.mktemp("units")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(units, "GROUPS", ("none", "units"))
        units.main(units.Options(c=(0.1, 20.0), seeds=1, epochs=2, output=output))
    assert (output / "figures" / "units.png").exists()
    return json.loads((output / "units.json").read_text())


def test_what_is_left_has_the_parameters_of_its_widths(found):
    for row in found["rows"]:
        first, second = row["widths"]
        products = 64 * first + first * second + second * 10
        assert row["multiply_adds"] == products
        assert row["parameters"] == products + first + second + 10


def test_thresholding_units_leaves_fewer_of_them(found):
    single, _, whole, _ = found["rows"]
    assert (single["groups"], whole["groups"]) == ("single weights", "units")
    assert 0 < sum(whole["widths"]) < sum(single["widths"]) <= 192
    assert 0 < whole["from_scratch"] <= 1


def test_a_network_that_died_has_no_control(found):
    for row in (found["rows"][1], found["rows"][3]):
        assert row["widths"] == [0, 0]
        assert row["from_scratch"] is None
    assert units.table(found["rows"])[1]["scratch, %"] == ""


def test_means_are_over_the_seeds(found):
    row = found["rows"][0]
    again = row | {"seed": 1, "test_accuracy": row["test_accuracy"] + 0.02}
    (cells,) = units.table([row, again])
    mean = 100 * np.mean([row["test_accuracy"], again["test_accuracy"]])
    assert cells["test, %"] == f"{mean:.1f}"


def test_a_report_shows_them(found):
    (picture,) = report.analysis_pictures({"units": found})
    assert (picture.title, len(picture.table)) == ("Whole units", 4)


@pytest.mark.parametrize(
    "options", [{"seeds": 0}, {"c": ()}, {"c": (0.1, -1.0)}, {"c": (float("nan"),)}]
)
def test_options_that_train_nothing_are_refused(options):
    with pytest.raises(ValueError, match=r"seeds must be >= 1, and c must hold"):
        units.Options(**options)
