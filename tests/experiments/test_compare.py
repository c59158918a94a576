"""Tests of experiments.compare, which is `make demo`."""

import json
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree
from pathlib import Path

import numpy as np
import pytest

from experiments.compare import Options, main
from experiments.training.config import Config
from experiments.training.directory import read_metrics

FIGURES = ("training_curves", "sparsity_by_layer", "first_layer")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The directory of the comparison that `make demo` makes, and what it printed."""
    output = tmp_path_factory.mktemp("compare") / "demo"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "100")
        patch.setattr(
            "experiments.analyses.card.has_onnx", lambda: False
        )  # slow to load
        printed = Printed()
        patch.setattr("sys.stdout", printed)
        assert main(Options(output=output)) == output
    return output, printed.text


class Printed:
    """Stands in for standard output where the fixture capsys cannot."""

    encoding = "utf-8"

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass


def summary(output):
    return json.loads((output / "summary.json").read_text())


def test_a_table_compares_the_two(demo):
    output, text = demo
    rows = ("test accuracy", "training loss", "sparsity", "nonzero weights")
    lines = {
        row: next(line for line in text.splitlines() if row in line) for row in rows
    }
    for name, scale in (("test_accuracy", 100), ("sparsity", 100)):
        line = lines[name.replace("_", " ")]
        for optimizer in ("sgd", "grda"):
            mean = scale * np.mean(summary(output)[optimizer][name])
            assert f"{mean:.2f} ±" in line
    assert "mean of 5 seeds" in text
    assert "layers/0/kernel" in text


def test_a_sentence_says_what_was_found(demo):
    output, text = demo
    sparsity = np.mean(summary(output)["grda"]["sparsity"])
    sentence = f"gRDA, c = 0.05, μ = 0.6 made {sparsity:.1%} of 17,226 weights exactly"
    assert sentence in " ".join(text.split())


def test_all_files_are_there_and_can_be_read(demo):
    output, text = demo
    assert str(output) in text.replace("\n", "")
    configs = json.loads((output / "config.json").read_text())
    assert configs["seeds"] == 5
    for optimizer in ("sgd", "grda"):
        assert Config(**configs[optimizer]) == Config(optimizer=optimizer)
    with np.load(output / "weights.npz") as weights:
        assert set(weights) == {"initial", "sgd", "grda"}
        assert {kernel.shape for kernel in weights.values()} == {(64, 128)}
    for name in FIGURES:
        png, svg = (output / "figures" / f"{name}.{kind}" for kind in ("png", "svg"))
        assert png.read_bytes().startswith(b"\x89PNG")
        assert xml.etree.ElementTree.parse(svg).getroot().tag.endswith("svg")
    assert {path.name for path in output.iterdir()} == {
        *("config.json", "metrics.jsonl", "summary.json", "weights.npz", "figures"),
        "card",
        *(
            "report.html",
            *(f"{name}-{n}" for name in ("sgd", "grda") for n in range(5)),
        ),
    }


def test_metrics_have_a_line_an_epoch_and_a_seed_of_each_optimizer(demo):
    rows = read_metrics(demo[0])
    assert [(row["optimizer"], row["epoch"], row["seed"]) for row in rows] == [
        (optimizer, epoch, seed)
        for optimizer in ("sgd", "grda")
        for epoch in range(1, 61)
        for seed in range(5)
    ]
    for row in rows:
        assert ("threshold" in row) == (row["optimizer"] == "grda")
    final = [row["sparsity"] for row in rows[-5:]]
    np.testing.assert_allclose(summary(demo[0])["grda"]["sparsity"], final, rtol=1e-6)


def test_both_start_from_the_same_weights_and_only_grda_makes_zeros(demo):
    with np.load(demo[0] / "weights.npz") as weights:
        zeros = {name: np.mean(kernel == 0) for name, kernel in weights.items()}
    assert zeros["initial"] == zeros["sgd"] == 0 < zeros["grda"]


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"seeds": 0}, "seeds must be >= 1, got 0"),
        ({"epochs": 0}, "epochs must be >= 1, got 0"),
        ({"c": -1.0}, "c must be >= 0, got -1.0"),
        ({"mu": 2.0}, r"mu must be in \(0, 1\], got 2.0"),
        ({"learning_rate": 0.0}, "learning_rate must be > 0"),
    ],
)
def test_invalid_options_fail_before_anything_is_written(tmp_path, change, rule):
    with pytest.raises(ValueError, match=rule):
        main(Options(output=tmp_path / "run", **change))
    assert not (tmp_path / "run").exists()


def test_a_directory_that_exists_is_refused(demo):
    before = (demo[0] / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match="output must be a new or an empty directory"):
        main(Options(epochs=2, seeds=2, output=demo[0]))
    assert (demo[0] / "metrics.jsonl").read_bytes() == before


def test_ctrl_c_leaves_readable_files_and_exit_code_130(tmp_path):
    output = tmp_path / "run"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "experiments.compare", "--output", str(output)),
            *("--epochs", "100000", "--seeds", "2"),
        ],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics, deadline = output / "metrics.jsonl", time.monotonic() + 120
    while not (metrics.exists() and metrics.stat().st_size > 1000):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped; what was written so far is readable" in errors
    assert "Traceback" not in errors
    assert read_metrics(output)[0]["epoch"] == 1
    assert json.loads((output / "config.json").read_text())["seeds"] == 2
    assert not (output / "summary.json").exists()


@pytest.mark.slow
def test_grda_makes_nine_tenths_of_the_weights_zero_at_sgds_accuracy(demo):
    result = summary(demo[0])
    sgd, grda = result["sgd"], result["grda"]
    assert len(grda["sparsity"]) == 5
    assert min(grda["sparsity"]) > 0.9
    accuracy = {
        name: np.mean(result[name]["test_accuracy"]) for name in ("sgd", "grda")
    }
    assert accuracy["sgd"] > 0.95
    assert abs(accuracy["grda"] - accuracy["sgd"]) < 0.015
    # But for biases of units that never fire, which stay at zero.
    assert max(sgd["sparsity"]) < 0.001
