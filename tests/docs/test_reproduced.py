"""What the guide says was reproduced: every row of the paper, as it was measured."""

import json
import re
from pathlib import Path

import pytest

from experiments.training.presets import PRESETS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reproduced.md").read_text()
OURS = ("cifar10-small-cnn", "digits-", "text-")  # not of the paper


def test_every_row_of_the_paper_has_a_line():
    rows = {name for name in PRESETS if not name.startswith(OURS)}
    also_by_a_longer_name = {
        name
        for name in rows
        for other in rows
        if other.startswith(f"{name}-") and PRESETS[other] == PRESETS[name]
    }
    lines = re.findall(r"^\| `([\w.-]+)` \|", PAGE, re.MULTILINE)
    assert sorted(lines) == sorted(rows - also_by_a_longer_name)


@pytest.mark.parametrize(
    ("preset", "method"),
    [("cifar10-vgg16-sgd", "sgd"), ("cifar10-vgg16-mu0.6", "grda")],
)
def test_what_was_measured_is_what_the_results_hold(preset, method):
    results = ROOT / "benchmarks" / "results" / "vgg16-h200.json"
    last = json.loads(results.read_text())["runs"][method]["rows"][-1]
    (line,) = (line for line in PAGE.splitlines() if f"`{preset}`" in line)
    measured = re.findall(r"\*\*(.+?)\*\*", line)
    expected = [100 * last["test_accuracy"], 100 * last["sparsity"]]
    assert measured == [f"{number:.2f}" for number in expected if number]
