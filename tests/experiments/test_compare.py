"""Tests of experiments.compare, which is `make demo`."""

import json
import xml.etree.ElementTree

import numpy as np
import pytest

from experiments.command_line import friendly_errors
from experiments.compare import Options, main
from experiments.training import config as configs
from experiments.training.config import Config, Sgd
from experiments.training.directory import MetricsFile, read_metrics
from experiments.training.errors import UserError

METHODS = ("sgd", "grda")
FIGURES = ("training_curves", "sparsity_by_layer", "first_layer")


@pytest.fixture(scope="module")
def printed(demo_run):
    return (demo_run.parent / "printed.txt").read_text()


def summaries(directory, method):
    return [
        json.loads((directory / f"{method}-{seed}" / "summary.json").read_text())
        for seed in range(2)
    ]


def test_a_table_compares_the_two(demo_run, printed):
    rows = {
        "test accuracy, %": ("test_accuracy", 100, 2),
        "training loss": ("train_loss", 1, 4),
        "weights exactly zero, %": ("sparsity", 100, 2),
    }
    for row, (name, scale, digits) in rows.items():
        line = next(line for line in printed.splitlines() if row in line)
        for method in METHODS:
            values = [scale * summary[name] for summary in summaries(demo_run, method)]
            assert f"{np.mean(values):.{digits}f} ± {np.std(values):.{digits}f}" in line
    assert "means over the seeds" in printed
    assert "nonzero weights" in printed
    assert "layers/0/kernel" in printed


def test_a_sentence_says_what_was_found(demo_run, printed):
    sparsity = np.mean([s["sparsity"] for s in summaries(demo_run, "grda")])
    sentence = f"gRDA, c = 0.05, μ = 0.6 made {sparsity:.1%} of 17,226 weights exactly"
    assert sentence in " ".join(printed.split())


def test_all_files_are_there_and_can_be_read(demo_run, printed):
    assert str(demo_run) in printed.replace("\n", "")
    with np.load(demo_run / "weights.npz") as weights:
        assert set(weights) == {"initial", *METHODS}
        assert {kernel.shape for kernel in weights.values()} == {(64, 128)}
    for name in FIGURES:
        png, svg = (demo_run / "figures" / f"{name}.{kind}" for kind in ("png", "svg"))
        assert png.read_bytes().startswith(b"\x89PNG")
        assert xml.etree.ElementTree.parse(svg).getroot().tag.endswith("svg")
    assert {path.name for path in demo_run.iterdir()} == {
        *("weights.npz", "figures", "card", "report.html"),
        *(f"{name}-{seed}" for name in METHODS for seed in range(2)),
    }


def test_every_network_has_a_run_directory_as_of_train(demo_run):
    for method in (Sgd(), Config().method):
        for seed in range(2):
            run = demo_run / f"{method.name}-{seed}"
            expected = Config(method=method, seed=seed)
            assert configs.load(run / "config.json") == expected
            rows = read_metrics(run)
            assert [row["epoch"] for row in rows] == list(range(1, 61))
            assert ("threshold" in rows[0]) == method.is_sparse
            summary = json.loads((run / "summary.json").read_text())
            assert summary.items() >= rows[-1].items()
            checkpoints = {path.name for path in (run / "checkpoints").iterdir()}
            assert checkpoints == {str(30 * 45), str(60 * 45)}


def test_both_start_from_the_same_weights_and_only_grda_makes_zeros(demo_run):
    with np.load(demo_run / "weights.npz") as weights:
        zeros = {name: np.mean(kernel == 0) for name, kernel in weights.items()}
    assert zeros["initial"] == zeros["sgd"] == 0 < zeros["grda"]


def test_grda_makes_nine_tenths_of_the_weights_zero_at_sgds_accuracy(demo_run):
    sgd, grda = (summaries(demo_run, method) for method in METHODS)
    assert min(summary["sparsity"] for summary in grda) > 0.9
    # But for biases of units that never fire, which stay at zero.
    assert max(summary["sparsity"] for summary in sgd) < 0.001
    accuracy, sparse_accuracy = (
        np.mean([summary["test_accuracy"] for summary in runs]) for runs in (sgd, grda)
    )
    assert accuracy > 0.95
    assert abs(sparse_accuracy - accuracy) < 0.015


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"seeds": 0}, "seeds must be >= 1, got 0"),
        ({"epochs": 0}, "epochs must be >= 1, got 0"),
        ({"c": -1.0}, "c must be >= 0 and finite, got -1.0"),
        ({"mu": 2.0}, r"mu must be in \(0, 1\], got 2.0"),
        ({"learning_rate": 0.0}, "learning_rate must be > 0"),
    ],
)
def test_invalid_options_are_refused(change, rule):
    with pytest.raises(ValueError, match=rule):
        Options(**change)


def test_a_directory_that_exists_is_refused(demo_run):
    before = {path: path.stat().st_mtime_ns for path in demo_run.rglob("*")}
    with pytest.raises(UserError, match="output must be a new or an empty directory"):
        main(Options(epochs=2, seeds=2, output=demo_run))
    assert {path: path.stat().st_mtime_ns for path in demo_run.rglob("*")} == before


def test_ctrl_c_leaves_readable_files_and_exit_code_130(tmp_path, monkeypatch, capsys):
    def append(self, row, original=MetricsFile.append):
        original(self, row)
        if row["epoch"] == 2 and self.directory.name == "sgd-1":
            raise KeyboardInterrupt  # as Python makes of SIGINT

    monkeypatch.setattr(MetricsFile, "append", append)
    with pytest.raises(SystemExit) as end, friendly_errors():
        main(Options(seeds=2, output=tmp_path / "run"))
    assert end.value.code == 130
    assert "stopped; what was written so far is readable" in capsys.readouterr().err
    for seed in range(2):
        run = tmp_path / "run" / f"sgd-{seed}"
        assert [row["epoch"] for row in read_metrics(run)] == [1, 2]
        assert configs.load(run / "config.json").seed == seed
        assert not (run / "summary.json").exists()
