"""Tests of experiments.train: runs that stop, go on and fail."""

import ast
import contextlib
import dataclasses
import inspect
import itertools
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from experiments.train import DivergedError, Options, main, stop_on_signals, train
from experiments.training import config as configs
from experiments.training.checkpoint import Checkpoints
from experiments.training.config import Config
from experiments.training.devices import data_mesh
from experiments.training.directory import MetricsFile, read_metrics
from experiments.training.presets import PRESETS
from experiments.training.runs import read_results

CONFIG = Config(epochs=40)
STEPS = 45  # an epoch of the digits

# Orbax gives up at the first array that fails, and its other threads find it gone.
orbax_leaves_threads_behind = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """Runs in this process use one device, as those of the command line here do."""
    mesh = data_mesh(jax.devices()[:1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("experiments.train.data_mesh", lambda: mesh)
        patch.setattr("experiments.train.start_processes", lambda *args: None)
        yield


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The directory of a run with checkpoints after 20 and 40 epochs. Not to change."""
    directory = tmp_path_factory.mktemp("runs") / "uninterrupted"
    return train(Options(CONFIG, output=directory, checkpoint_every=20))


@pytest.fixture
def copy(uninterrupted, tmp_path):
    """A copy of that run."""
    return shutil.copytree(uninterrupted, tmp_path / "copy")


@pytest.fixture
def half(copy):
    """That run as it was after 20 epochs."""
    shutil.rmtree(copy / "checkpoints" / str(40 * STEPS))
    (copy / "summary.json").unlink()
    return copy


def arrays(directory, step=None):
    """Every array of a checkpoint, by default the newest, as bytes."""
    manager = Checkpoints(directory, CONFIG, read_only=True).manager
    args = ocp.args.Composite(state=ocp.args.StandardRestore())
    state = manager.restore(step or manager.latest_step(), args=args)["state"]
    return {name: np.asarray(array).tobytes() for name, array in state.items()}


def rows(directory):
    """The lines of metrics.jsonl without the speed."""
    return [
        {name: value for name, value in row.items() if name != "images_per_second"}
        for row in read_metrics(directory)
    ]


def assert_same_run(directory, expected):
    assert rows(directory) == rows(expected)
    assert arrays(directory) == arrays(expected)


def command(*flags, prefix=()):
    """Starts the command line, perhaps by another program."""
    return subprocess.Popen(
        [*prefix, sys.executable, "-m", "experiments.train", *map(str, flags)],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_lines(directory, number, process):
    """Waits until metrics.jsonl has so many lines, and the process still runs."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(FileNotFoundError):
            if len(read_metrics(directory)) >= number:
                return
        time.sleep(0.01)
    process.kill()
    pytest.fail(f"no {number} lines of metrics: {process.communicate()[1]}")


# What a run writes


def test_a_line_an_epoch_says_how_training_goes(uninterrupted):
    metrics = read_metrics(uninterrupted)
    assert [row["epoch"] for row in metrics] == list(range(1, 41))
    assert [row["step"] for row in metrics] == list(range(STEPS, 41 * STEPS, STEPS))
    assert metrics[0].keys() == {
        *("epoch", "step", "learning_rate", "threshold", "sparsity"),
        *("train_loss", "train_accuracy", "test_loss", "test_accuracy"),
        "images_per_second",
    }
    assert metrics[-1]["train_loss"] < 0.2 < metrics[0]["train_loss"]
    assert metrics[-1]["test_accuracy"] > 0.9
    assert metrics[-1]["sparsity"] > 0.8


def test_the_summary_has_result_cost_and_surroundings(uninterrupted):
    summary = json.loads((uninterrupted / "summary.json").read_text())
    last = read_metrics(uninterrupted)[-1]
    assert summary.items() >= last.items()
    assert summary["sparsity_report"]["total"] == 17226
    assert summary["sparsity_report"]["sparsity"] == pytest.approx(last["sparsity"])
    assert summary["seconds"] > 0
    assert summary["environment"]["jax"] == jax.__version__


def test_the_two_newest_checkpoints_remain(uninterrupted):
    names = {path.name for path in (uninterrupted / "checkpoints").iterdir()}
    assert names == {str(20 * STEPS), str(40 * STEPS)}


def test_a_saved_configuration_runs_again(uninterrupted, tmp_path):
    saved = uninterrupted / "config.json"
    assert configs.load(saved) == CONFIG
    main([str(saved), "--epochs", "3", "--output", str(tmp_path / "again")])
    assert rows(tmp_path / "again") == rows(uninterrupted)[:3]


def test_a_directory_that_holds_something_is_not_overwritten(copy):
    before = rows(copy)
    with pytest.raises(ValueError, match="output must be a new or an empty directory"):
        train(Options(CONFIG, output=copy))
    assert rows(copy) == before


# Stopped and resumed


def test_a_run_stopped_by_sigterm_and_by_kill_9_ends_as_if_it_had_not(
    uninterrupted, tmp_path
):
    run = tmp_path / "run"
    flags = ("digits-mlp", "--epochs", 40, "--checkpoint-every", 1, "--output", run)

    process = command(*flags)
    wait_for_lines(run, 2, process)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75
    done = len(rows(run))
    assert 2 <= done < 40
    assert f"stopped after step {done * STEPS} and saved" in errors
    assert f"--output {run} --resume" in errors
    assert not (run / "summary.json").exists()

    process = command(*flags, "--resume")
    wait_for_lines(run, done + 2, process)
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert done + 2 <= len(rows(run)) < 40
    with (run / "metrics.jsonl").open("a") as file:  # cut while it was written
        file.write('{"epoch": 9')

    train(Options(CONFIG, output=run, resume=True, checkpoint_every=20))
    assert_same_run(run, uninterrupted)


def test_batch_norm_dropout_and_augmentation_go_on_where_sigint_stopped_them(
    tiny_vgg, tiny_images, tmp_path, monkeypatch
):
    config = Config(
        model=tiny_vgg,
        dataset=tiny_images,
        augmentation="flip-crop",
        optimizer="momentum",
        batch_size=16,
        epochs=5,
    )
    whole = train(Options(config, output=tmp_path / "whole"))

    def append(self, rows, original=MetricsFile.append):
        original(self, rows)
        if rows[0]["epoch"] == 2:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(MetricsFile, "append", append)
        with pytest.raises(SystemExit) as stopped:
            train(Options(config, output=tmp_path / "parts"))
    assert stopped.value.code == 75
    assert len(rows(tmp_path / "parts")) == 2
    train(Options(config, output=tmp_path / "parts", resume=True))
    assert_same_run(tmp_path / "parts", whole)


def test_a_run_that_steers_the_threshold_of_units_goes_on_to_the_bit(tmp_path):
    config = Config(
        optimizer="target-sparsity",
        sparsity=0.5,
        groups="units-and-weights",
        epochs=10,
    )
    whole = train(Options(config, output=tmp_path / "whole", checkpoint_every=5))
    parts = shutil.copytree(whole, tmp_path / "parts")
    shutil.rmtree(parts / "checkpoints" / str(10 * STEPS))
    (parts / "summary.json").unlink()
    train(Options(config, output=parts, resume=True, checkpoint_every=5))
    assert_same_run(parts, whole)
    (result,) = read_results([parts])
    assert result.label == "target 50 %, units and weights"
    assert result.sparsity == [pytest.approx(0.5, abs=0.01)]
    assert result.test_accuracy[0] > 0.9


def test_the_first_signal_asks_and_the_second_stops_at_once(capfd):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with stop_on_signals() as stopping:
        assert not stopping()
        signal.raise_signal(signal.SIGTERM)
        assert stopping()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert "again to stop at once" in capfd.readouterr().err
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_resuming_a_finished_run_changes_nothing(copy, uninterrupted):
    train(Options(CONFIG, output=copy, resume=True))
    assert_same_run(copy, uninterrupted)
    for name in ("config.json", "summary.json", "metrics.jsonl"):
        assert (copy / name).read_bytes() == (uninterrupted / name).read_bytes()


def test_resuming_before_the_first_checkpoint_starts_anew(half, uninterrupted):
    shutil.rmtree(half / "checkpoints")
    (half / "checkpoints").mkdir()
    train(Options(CONFIG, output=half, resume=True, checkpoint_every=20))
    assert_same_run(half, uninterrupted)


def test_resuming_what_does_not_exist_starts_it(tmp_path, uninterrupted):
    run = tmp_path / "run"
    train(Options(dataclasses.replace(CONFIG, epochs=2), output=run, resume=True))
    assert rows(run) == rows(uninterrupted)[:2]


@orbax_leaves_threads_behind
def test_a_truncated_newest_checkpoint_is_skipped_and_written_again(
    copy, uninterrupted, capsys
):
    newest = copy / "checkpoints" / str(40 * STEPS)
    largest = max(
        filter(Path.is_file, newest.rglob("*")), key=lambda f: f.stat().st_size
    )
    largest.write_bytes(largest.read_bytes()[:1000])
    train(Options(CONFIG, output=copy, resume=True, checkpoint_every=20))
    assert f"the checkpoint of step {40 * STEPS} in" in capsys.readouterr().err
    assert_same_run(copy, uninterrupted)


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"model": "mnist-mlp"}, "model: digits-mlp, not mnist-mlp"),
        ({"optimizer": "sgd"}, "optimizer: grda, not sgd"),
        ({"dataset": "IMAGES"}, "dataset: digits, not .*images.npz"),
        ({"epochs": 80, "c": 0.1}, "c: 0.05, not 0.1; epochs: 40, not 80"),
    ],
)
def test_another_experiment_is_not_resumed(copy, tiny_images, change, difference):
    if "dataset" in change:
        change = {"dataset": tiny_images}
    before = (copy / "metrics.jsonl").read_bytes()
    other = dataclasses.replace(CONFIG, **change)
    with pytest.raises(ValueError, match=f"is not resumed; {difference}"):
        train(Options(other, output=copy, resume=True))
    assert (copy / "metrics.jsonl").read_bytes() == before
    assert configs.load(copy / "config.json") == CONFIG


# Failures


def test_a_full_disk_stops_the_run_and_leaves_the_last_checkpoint(half, uninterrupted):
    flags = ("digits-mlp", "--epochs", 40, "--checkpoint-every", 20, "--output", half)
    # Files of at most 16 KiB, a quarter of the weights: writing fails as if full.
    limit = ("bash", "-c", 'ulimit -f 16 && exec "$@"', "bash")
    process = command(*flags, "--resume", prefix=limit)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    message = errors[errors.index("error: ") :]
    assert f"the checkpoint of step {40 * STEPS} could not be written to" in message
    assert f"The newest complete one is of step {20 * STEPS}" in message
    assert arrays(half) == arrays(uninterrupted, 20 * STEPS)


def test_a_layer_that_died_is_named_once_with_what_to_lower(tmp_path, capsys):
    config = dataclasses.replace(CONFIG, c=2.0, epochs=3)
    train(Options(config, output=tmp_path / "run"))
    errors = capsys.readouterr().err
    for layer in range(3):
        dead = (
            f"layers/{layer}/kernel is all zero, so that nothing passes: lower c or mu"
        )
        assert errors.count(dead) == 1
    assert errors.count("warning: after epoch 1, ") == errors.count("warning: ") == 3


def test_a_loss_that_becomes_nan_stops_the_run_and_leaves_the_last_checkpoint(
    tmp_path, monkeypatch
):
    def epoch(self, state, stopping, original=MemorySource.epoch):
        if state.step == 2 * STEPS:
            images, labels = self.train
            self.train = images.at[7].set(jnp.nan), labels
        return original(self, state, stopping)

    monkeypatch.setattr(MemorySource, "epoch", epoch)
    config = dataclasses.replace(CONFIG, epochs=4)
    run = tmp_path / "run"
    with pytest.raises(DivergedError) as error:
        train(Options(config, output=run, checkpoint_every=1))
    message = str(error.value)
    step = int(re.search(r"became nan after step (\d+)", message)[1])
    assert 2 * STEPS <= step < 3 * STEPS
    assert "at learning rate 0.1" in message
    assert "Try a smaller --learning-rate" in message
    assert f"Newest checkpoint: of step {2 * STEPS}" in message
    assert len(rows(run)) == 2
    monkeypatch.undo()
    assert Checkpoints(run, config, keep=2).steps == [STEPS, 2 * STEPS]


def test_weights_that_a_last_step_made_infinite_are_not_saved(tmp_path):
    config = Config(optimizer="sgd", learning_rate=1e38, batch_size=1437, epochs=2)
    with pytest.raises(DivergedError, match=r"became inf after step 1, .* 1e\+38"):
        train(Options(config, output=tmp_path, checkpoint_every=1))
    assert list((tmp_path / "checkpoints").iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "rule"),
    [
        (("--c", "-1"), "c must be >= 0, got -1.0"),
        (("--mu", "2"), "mu must be in (0, 1], got 2.0"),
        (("--sparsity", "1"), "sparsity must be in [0, 1), got 1.0"),
        (("--batch-size", "0"), "batch_size must be >= 1, got 0"),
        (("--epochs", "0"), "epochs must be >= 1, got 0"),
        (("--seed", "-1"), "seed must be in [0, 2**31), got -1"),
        (("--dataset", "missing.npz"), "no file "),
        (("--dataset", "imagenet"), "got 'imagenet'"),
        (("--model", "vgg11"), "got 'vgg11'"),
    ],
)
def test_what_is_invalid_fails_in_a_sentence_before_anything_is_written(
    tmp_path, flags, rule
):
    with pytest.raises(SystemExit) as error:
        main(["digits-mlp", "--output", str(tmp_path / "run"), *flags])
    assert error.value.code.startswith("error: ")  # printed, and the exit code is 1
    assert rule in error.value.code
    assert not (tmp_path / "run").exists()


def test_the_command_line_ends_with_code_1_and_without_a_traceback(tmp_path):
    process = command("digits-mlp", "--mu", 2, "--output", tmp_path / "run")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors == "error: mu must be in (0, 1], got 2.0\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("option", "rule"),
    [
        ({"keep": 0}, "keep must be >= 1, got 0"),
        ({"checkpoint_every": 0}, "checkpoint_every must be >= 1, got 0"),
        ({"workers": -1}, "workers must be >= 0, got -1"),
        ({"resume": True}, "resume needs output, the run directory: got None"),
    ],
)
def test_invalid_options_are_named_with_their_rule(option, rule):
    with pytest.raises(ValueError, match=rule):
        Options(CONFIG, **option)


# The command line


def test_an_unknown_preset_is_answered_with_the_known_ones():
    with pytest.raises(SystemExit) as error:
        main(["vgg16"])
    assert "got 'vgg16'" in error.value.code
    assert all(name in error.value.code for name in PRESETS)


def test_a_configuration_that_does_not_exist_is_named():
    with pytest.raises(SystemExit, match=r"No such file.*missing\.json"):
        main(["missing.json"])


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_without_a_preset_the_presets_are_listed(arguments, capsys):
    main(arguments)
    listed = capsys.readouterr().out.split()
    assert set(PRESETS) <= set(listed)


def described_fields(cls):
    """The name of each field of a dataclass, and the string below it."""
    body = ast.parse(inspect.getsource(cls)).body[0].body
    for field, text in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign):
            yield field.target.id, inspect.cleandoc(ast.literal_eval(text.value))


def test_help_shows_every_field_with_its_meaning_and_default(capsys):
    with pytest.raises(SystemExit) as end:
        main(["cifar10-vgg16", "--help"])
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    fields = {**dict(described_fields(Config)), **dict(described_fields(Options))}
    fields.pop("config")
    assert len(fields) >= 20
    for name, meaning in fields.items():
        assert f"--{name.replace('_', '-')}" in text
        assert " ".join(meaning.split()) in text
    assert "(default: vgg16)" in text
    assert "(default: 0.0005)" in text
