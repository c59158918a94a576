"""The command for a machine with an accelerator, at tiny size on this one."""

import json
import os
import subprocess
import sys

import jax
import pytest

from benchmarks import accelerator, optimizer_step, train_step
from experiments.analyses import _authors as authors
from experiments.training import session
from experiments.training.directory import read_metrics
from experiments.training.presets import PRESETS

# Four calls of the command: the first two do one piece each, the third an epoch of the
# first run, the fourth all that is left.
DRY_RUN = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow_datasets", "grain", "array_record"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
from pathlib import Path
from benchmarks import accelerator

for minutes in (0, 0, 0, 60):
    options = accelerator.Options(
        output=Path(sys.argv[1]), minutes=minutes, dry_run=True
    )
    try:
        accelerator.main(options)
    except SystemExit as stop:
        print("exit", stop.code)
"""


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory):
    """Output directory and standard output, where TFDS and Grain are not installed."""
    output = tmp_path_factory.mktemp("accelerator")
    # Most of the time would go to optimising programs that then run twice.
    flags = (
        "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    )
    done = subprocess.run(
        [sys.executable, "-c", DRY_RUN, str(output)],
        env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return output, done.stdout


def test_each_call_goes_on_where_the_one_before_stopped(dry_run):
    output, printed = dry_run
    begun = [line for line in printed.splitlines() if line.startswith("exit")]
    assert begun == ["exit 75"] * 3
    names = [line for line in printed.splitlines() if line.startswith("run: ")]
    first = f"run: {accelerator.RUNS[0]}"
    assert names == [first, *(f"run: {name}" for name in accelerator.RUNS)]
    for kind in ("optimizer step", "training step"):
        assert printed.count(f"{kind}: digits-mlp") == 1
    rows = read_metrics(output / accelerator.RUNS[0])
    assert [row["epoch"] for row in rows] == [1, 2]


def test_results_stand_beside_those_of_the_authors(dry_run):
    output, _ = dry_run
    results = json.loads((output / "results.json").read_text())
    assert results["errors"] == []
    assert [row["run"] for row in results["run"]] == list(accelerator.RUNS)
    assert {row["epochs"] for row in results["run"]} == {"2 of 2"}
    theirs = results["run"][1]
    assert theirs["authors' top-1 %"] == "90.86 ± 0.26"
    assert theirs["authors' zero %"] == "90.48 ± 0.17"
    table = (output / "accelerator-cpu.md").read_text()
    assert "A dry run" in table
    for row in (*results["run"], *results["training step"]):
        assert " | ".join(map(str, row.values())) in table


def test_optimizer_steps_of_a_loop_keep_one_copy_of_state_and_no_temporary(dry_run):
    rows = json.loads((dry_run[0] / "results.json").read_text())["optimizer step"]
    row = {row["step"]: row for row in rows}
    assert set(row) == set(optimizer_step.OPTIMIZERS)
    # Besides the copy a few scalars, on 17,226 parameters.
    assert 1 < float(row["gRDA"]["state / parameters"]) < 1.001
    # Work on the gradients that left the loop would be kept: 0.069 MB.
    for name in row:
        # A CPU's compiler keeps where the zeros are before it counts them, and with a
        # map that is not plain, the weights.
        most = {"target_sparsity": 0.08, "recipe": 0.15}.get(name, 0.03)
        assert float(row[name]["temporary MB"]) < most, name


def test_training_steps_are_compared_with_sgd_in_time_and_memory(dry_run):
    rows = json.loads((dry_run[0] / "results.json").read_text())["training step"]
    assert [row["optimizer"] for row in rows] == list(train_step.OPTIMIZERS)
    assert rows[0]["ratio to SGD (quartiles)"] == "1.000 (1.000 to 1.000)"
    # Momentum SGD holds one copy more, and XLA may lay out what is temporary otherwise.
    more = "more than SGD, in copies of the parameters"
    sgd, grda, momentum = (float(row[more]) for row in rows)
    assert sgd == 0
    assert momentum > 0.99
    assert grda < momentum + 0.01


def test_every_run_has_figures_of_the_authors():
    shown = {
        name: accelerator.plus_minus(authors.summary(PRESETS[name]), "test_acc_pct", 1)
        for name in accelerator.RUNS
    }
    assert shown == {
        "cifar10-vgg16-sgd": "90.82 ± 0.18",
        "cifar10-vgg16-mu0.6": "90.86 ± 0.26",
        "cifar10-vgg16-mu0.7": "90.64 ± 0.24",
        "cifar10-vgg16-mu0.51": "91.02 ± 0.15",
        "cifar10-vgg16-mu0.4": "90.87 ± 0.21",
        "cifar10-wrn28x10-mu0.501": "94.46 ± 0.13",
    }


def test_the_whole_plan_is_the_paper_in_full(tmp_path):
    options = accelerator.Options(dataset="cifar10.npz", output=tmp_path)
    plan = accelerator.make_plan(options)
    assert [config.epochs for config in plan.runs.values()] == [600] * 5 + [200]
    assert {config.dataset for config in plan.runs.values()} == {"cifar10.npz"}
    assert [kind for kind, _ in plan.pieces()] == [
        *(["optimizer step"] * 3 + ["training step"] * 3 + ["run"] * 6)
    ]
    assert plan.training_steps.dtype == "bfloat16"


def test_a_run_stops_when_one_more_epoch_would_end_too_late(monkeypatch):
    now = iter((0.0, 10.0, 20.0, 50.0))
    monkeypatch.setattr(accelerator.time, "monotonic", lambda: next(now))
    stopping = accelerator.too_late(end=60.0)
    assert [stopping() for _ in range(3)] == [False, False, True]


def test_a_piece_that_fails_is_reported_and_not_tried_again(
    monkeypatch, tmp_path, capsys
):
    tried = []

    def perform(kind, name, *_):
        tried.append(name)
        if kind == "optimizer step":
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 3 GB\ndetails")
        if name == accelerator.RUNS[0]:
            raise session.DivergedError("the training loss became nan")
        return [{"name": name}]

    monkeypatch.setattr(accelerator, "perform", perform)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)  # keep no programs
    options = accelerator.Options(output=tmp_path, dry_run=True)
    accelerator.main(options)
    assert tried == ["digits-mlp", "digits-mlp", *accelerator.RUNS]
    accelerator.main(options)
    assert len(tried) == 8
    printed = capsys.readouterr().out
    assert "optimizer step digits-mlp: RESOURCE_EXHAUSTED: 3 GB\n" in printed
    assert f"run {accelerator.RUNS[0]}: the training loss became nan" in printed
