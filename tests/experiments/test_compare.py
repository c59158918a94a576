"""Tests of experiments.compare, which is `make demo`."""

import json
import xml.etree.ElementTree

import numpy as np
import pytest

from experiments.command_line import friendly_errors
from experiments.compare import Options, main
from experiments.training import config as configs
from experiments.training.config import Config, Momentum, Sgd, Target
from experiments.training.directory import MetricsFile, read_metrics
from experiments.training.errors import UserError

METHODS = ("sgd", "grda", "momentum", "target")
FIGURES = ("training_curves", "sparsity_by_layer", "first_layer")


@pytest.fixture(scope="module")
def printed(demo_run):
    return (demo_run.parent / "printed.txt").read_text()


def summaries(directory, method):
    return [
        json.loads((directory / f"{method}-{seed}" / "summary.json").read_text())
        for seed in range(2)
    ]


def test_a_table_compares_them(demo_run, printed):
    columns = (("test_accuracy", 100, 2), ("sparsity", 100, 2), ("train_loss", 1, 4))
    for method in METHODS:
        cells = []
        for name, scale, digits in columns:
            values = [scale * summary[name] for summary in summaries(demo_run, method)]
            cells.append(f"{np.mean(values):.{digits}f} ± {np.std(values):.{digits}f}")
        assert any(all(cell in line for cell in cells) for line in printed.splitlines())
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
    recipe = Target(
        0.9, clip_norm=1.0, momentum=0.9, proximal="power3", weight_decay=5e-4
    )
    for method, schedule in (
        *((Sgd(), "constant"), (Config().method, "constant")),
        *((Momentum(0.9, 5e-4), "cosine"), (recipe, "cosine")),
    ):
        for seed in range(2):
            run = demo_run / f"{method.name}-{seed}"
            expected = Config(method=method, schedule=schedule, seed=seed)
            assert configs.load(run / "config.json") == expected
            rows = read_metrics(run)
            assert [row["epoch"] for row in rows] == list(range(1, 61))
            assert ("threshold" in rows[0]) == method.is_sparse
            summary = json.loads((run / "summary.json").read_text())
            assert summary.items() >= rows[-1].items()
            checkpoints = {path.name for path in (run / "checkpoints").iterdir()}
            assert checkpoints == {str(30 * 45), str(60 * 45)}


def test_all_start_from_the_same_weights_and_only_sparse_methods_make_zeros(demo_run):
    with np.load(demo_run / "weights.npz") as weights:
        zeros = {name: np.mean(kernel == 0) for name, kernel in weights.items()}
    assert zeros["initial"] == zeros["sgd"] == zeros["momentum"] == 0
    assert min(zeros["grda"], zeros["target"]) > 0.8


def test_grda_makes_nine_tenths_of_the_weights_zero_at_sgds_accuracy(demo_run):
    sgd, grda = (summaries(demo_run, method) for method in ("sgd", "grda"))
    assert min(summary["sparsity"] for summary in grda) > 0.9
    # But for biases of units that never fire, which stay at zero.
    assert max(summary["sparsity"] for summary in sgd) < 0.001
    accuracy, sparse_accuracy = (
        np.mean([summary["test_accuracy"] for summary in runs]) for runs in (sgd, grda)
    )
    assert accuracy > 0.95
    assert abs(sparse_accuracy - accuracy) < 0.015


def test_the_recipe_has_the_accuracy_of_its_dense_twin(demo_run):
    dense, sparse = (summaries(demo_run, name) for name in ("momentum", "target"))
    for summary in sparse:
        assert summary["sparsity"] == pytest.approx(0.9, abs=5e-4)
    accuracy, sparse_accuracy = (
        np.mean([summary["test_accuracy"] for summary in runs])
        for runs in (dense, sparse)
    )
    assert sparse_accuracy > accuracy - 0.006  # two images of 360


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"seeds": 0}, "seeds must be >= 1, got 0"),
        ({"epochs": 0}, "epochs must be >= 1, got 0"),
        ({"c": -1.0}, "c must be >= 0 and finite, got -1.0"),
        ({"mu": 2.0}, r"mu must be in \(0, 1\], got 2.0"),
        ({"learning_rate": 0.0}, "learning_rate must be > 0"),
        ({"sparsity": 1.0}, r"sparsity must be in \[0, 1\), got 1.0"),
    ],
)
def test_invalid_options_are_refused(change, rule):
    with pytest.raises(ValueError, match=rule):
        Options(**change)


def test_the_recipe_may_be_left_out():
    names = [config.method.name for config in Options(sparsity=None).configs]
    assert names == ["sgd", "grda"]


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
