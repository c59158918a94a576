"""Tests of experiments.training.session: runs that stop, go on and fail."""

import dataclasses
import functools
import json
import re
import shutil
import signal

import jax
import jax.numpy as jnp
import pytest

from experiments.training import config as configs
from experiments.training import session
from experiments.training.config import Config, Grda, Momentum, Sgd, Target
from experiments.training.devices import data_mesh
from experiments.training.directory import MetricsFile, lock, read_metrics
from experiments.training.errors import UserError
from experiments.training.loop import OnDevice
from experiments.training.runs import Run, read_results
from experiments.training.session import DivergedError, stop_on_signals, train

CONFIG = Config(epochs=8)
STEPS = 45  # an epoch of the digits


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """Runs use one device, and those of one configuration the same programs."""
    mesh = data_mesh(jax.devices()[:1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "data_mesh", lambda: mesh)
        patch.setattr(session, "open_passes", functools.cache(session.open_passes))
        yield


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The directory of a run with checkpoints after 4 and 8 epochs. Not to change."""
    directory = tmp_path_factory.mktemp("runs") / "uninterrupted"
    return train(CONFIG, directory, checkpoint_every=4)


@pytest.fixture
def copy(uninterrupted, tmp_path):
    """A copy of that run."""
    return shutil.copytree(uninterrupted, tmp_path / "copy")


@pytest.fixture
def half(copy):
    """That run as it was after 4 epochs."""
    shutil.rmtree(copy / "checkpoints" / str(8 * STEPS))
    (copy / "summary.json").unlink()
    return copy


def arrays(directory):
    """All arrays of the newest checkpoint, as bytes."""
    newest = max((directory / "checkpoints").iterdir(), key=lambda path: int(path.name))
    return newest.name, (newest / "arrays.safetensors").read_bytes()


def rows(directory):
    """The lines of metrics.jsonl without the speed."""
    return [
        {name: value for name, value in row.items() if name != "examples_per_second"}
        for row in read_metrics(directory)
    ]


def assert_same_run(directory, expected):
    assert rows(directory) == rows(expected)
    assert arrays(directory) == arrays(expected)


# What a run writes


def test_a_line_an_epoch_says_how_training_goes(uninterrupted):
    metrics = read_metrics(uninterrupted)
    assert [row["epoch"] for row in metrics] == list(range(1, 9))
    assert [row["step"] for row in metrics] == list(range(STEPS, 9 * STEPS, STEPS))
    assert metrics[0].keys() == {
        *("epoch", "step", "learning_rate", "threshold", "sparsity"),
        *("train_loss_running", "train_accuracy_running", "test_loss", "test_accuracy"),
        "examples_per_second",
    }
    assert metrics[-1]["train_loss_running"] < 0.3 < metrics[0]["train_loss_running"]
    assert metrics[-1]["test_accuracy"] > 0.9
    assert metrics[-1]["sparsity"] > 0.5


def test_the_summary_has_result_cost_and_surroundings(uninterrupted):
    summary = json.loads((uninterrupted / "summary.json").read_text())
    last = read_metrics(uninterrupted)[-1]
    assert summary.items() >= last.items()
    assert summary["sparsity_report"]["total"] == 17226
    assert summary["sparsity_report"]["sparsity"] == pytest.approx(last["sparsity"])
    assert summary["seconds"] > 0
    assert summary["environment"]["jax"] == jax.__version__


def test_the_training_loss_is_that_of_the_final_weights_in_evaluation(uninterrupted):
    summary = json.loads((uninterrupted / "summary.json").read_text())
    run = Run(uninterrupted)
    state, task = run.state(), run.task
    loss, accuracy = jax.jit(task.trainer.evaluate)(
        state.params, state.batch_stats, *task.train
    )
    assert summary["train_loss"] == pytest.approx(float(loss), rel=1e-5)
    assert summary["train_accuracy"] == pytest.approx(float(accuracy), rel=1e-5)
    assert summary["train_loss"] != pytest.approx(
        summary["train_loss_running"], rel=1e-3
    )


def test_the_two_newest_checkpoints_remain(uninterrupted):
    names = {path.name for path in (uninterrupted / "checkpoints").iterdir()}
    assert names == {str(4 * STEPS), str(8 * STEPS)}


def test_a_directory_that_holds_something_is_not_overwritten(copy):
    before = rows(copy)
    with pytest.raises(UserError, match="output must be a new or an empty directory"):
        train(CONFIG, copy)
    assert rows(copy) == before


# Stopped and resumed


def test_batch_norm_dropout_and_augmentation_go_on_where_sigint_stopped_them(
    tiny_vgg, tiny_images, tmp_path, monkeypatch
):
    config = Config(
        model=tiny_vgg,
        dataset=tiny_images,
        augmentation="flip-crop",
        method=Momentum(),
        batch_size=16,
        epochs=4,
    )
    whole = train(config, tmp_path / "whole")
    session.open_passes(
        config, session.data_mesh(), None, 0, sharded=False
    )._open = None

    def append(self, row, original=MetricsFile.append):
        original(self, row)
        if row["epoch"] == 2:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(MetricsFile, "append", append)
        with pytest.raises(SystemExit) as stopped:
            train(config, tmp_path / "parts")
    assert stopped.value.code == 75
    assert len(rows(tmp_path / "parts")) == 2
    session.open_passes(
        config, session.data_mesh(), None, 0, sharded=False
    )._open = None
    train(config, tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "parts", whole)


def test_a_run_that_steers_the_threshold_of_units_goes_on_to_the_bit(tmp_path):
    config = Config(method=Target(0.5, groups="units-and-weights"), epochs=10)
    whole = train(config, tmp_path / "whole", checkpoint_every=5)
    parts = shutil.copytree(whole, tmp_path / "parts")
    shutil.rmtree(parts / "checkpoints" / str(10 * STEPS))
    (parts / "summary.json").unlink()
    train(config, parts, resume=True, checkpoint_every=5)
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


def test_a_run_goes_on_from_its_newest_checkpoint(half, uninterrupted):
    train(CONFIG, half, resume=True, checkpoint_every=4)
    assert_same_run(half, uninterrupted)


def test_resuming_a_finished_run_changes_nothing(copy, uninterrupted):
    train(CONFIG, copy, resume=True)
    assert_same_run(copy, uninterrupted)
    for name in ("config.json", "summary.json", "metrics.jsonl"):
        assert (copy / name).read_bytes() == (uninterrupted / name).read_bytes()


def test_a_finished_run_goes_on_for_more_epochs_as_if_it_had_been_asked_before(
    uninterrupted, tmp_path
):
    short = train(dataclasses.replace(CONFIG, epochs=3), tmp_path / "short")
    train(CONFIG, short, resume=True, checkpoint_every=4)
    assert_same_run(short, uninterrupted)
    assert configs.load(short / "config.json") == CONFIG


def test_resuming_before_the_first_checkpoint_starts_anew(half, uninterrupted):
    shutil.rmtree(half / "checkpoints")
    (half / "checkpoints").mkdir()
    train(CONFIG, half, resume=True, checkpoint_every=4)
    assert_same_run(half, uninterrupted)


def test_resuming_what_does_not_exist_starts_it(tmp_path, uninterrupted):
    train(CONFIG, tmp_path / "run", resume=True, checkpoint_every=4)
    assert_same_run(tmp_path / "run", uninterrupted)


def test_a_damaged_newest_checkpoint_is_skipped_and_written_again(
    copy, uninterrupted, capsys
):
    newest = copy / "checkpoints" / str(8 * STEPS)
    file = newest / "arrays.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    train(CONFIG, copy, resume=True, checkpoint_every=4)
    assert f"the checkpoint {newest} is damaged" in capsys.readouterr().err
    assert_same_run(copy, uninterrupted)


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"model": "mnist-mlp"}, "model: digits-mlp, not mnist-mlp"),
        ({"method": Sgd()}, "method.name: grda, not sgd"),
        ({"epochs": 4}, "epochs: 8, not 4, which is fewer"),
        (
            {"epochs": 80, "method": Grda(c=0.1)},
            "method.c: 0.05, not 0.1; epochs: 8, not 80",
        ),
    ],
)
def test_another_experiment_is_not_resumed(copy, monkeypatch, change, difference):
    # What is compared are the configurations: the data need not fit the network.
    monkeypatch.setattr(
        "experiments.training.trainer.Trainer.check_inputs", lambda *_: None
    )
    monkeypatch.setattr(
        session.jax, "jit", lambda f, **_: functools.partial(jax.eval_shape, f)
    )
    before = (copy / "metrics.jsonl").read_bytes()
    other = dataclasses.replace(CONFIG, **change)
    with pytest.raises(UserError, match=f"is not resumed; {difference}"):
        train(other, copy, resume=True)
    assert (copy / "metrics.jsonl").read_bytes() == before
    assert configs.load(copy / "config.json") == CONFIG


def test_a_run_that_another_program_trains_is_refused(half):
    before = (half / "metrics.jsonl").read_bytes()
    with (
        lock(half),
        pytest.raises(UserError, match="another program is writing to"),
    ):
        train(CONFIG, half, resume=True)
    assert (half / "metrics.jsonl").read_bytes() == before


# Failures


def test_a_layer_that_died_is_named_once_with_what_to_lower(tmp_path, capsys):
    config = dataclasses.replace(CONFIG, method=Grda(c=2.0), epochs=3)
    train(config, tmp_path / "run")
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
    def epoch(self, state, stopping, original=OnDevice.train):
        if state.step == 2 * STEPS:
            images, labels = self.splits["train"]
            splits = {"train": (images.at[7].set(jnp.nan), labels)}
            monkeypatch.setattr(self, "splits", self.splits | splits)
        return original(self, state, stopping)

    monkeypatch.setattr(OnDevice, "train", epoch)
    run = tmp_path / "run"
    with pytest.raises(DivergedError) as error:
        train(CONFIG, run, checkpoint_every=1)
    message = str(error.value)
    step = int(re.search(r"became NaN or infinite after step (\d+)", message)[1])
    assert 2 * STEPS <= step < 3 * STEPS
    assert "at learning rate 0.1" in message
    assert "Try a smaller --learning-rate" in message
    assert f"Newest checkpoint: of step {2 * STEPS}" in message
    assert len(rows(run)) == 2
    saved = {path.name for path in (run / "checkpoints").iterdir()}
    assert saved == {str(STEPS), str(2 * STEPS)}


def test_weights_that_a_last_step_made_infinite_are_not_saved(tmp_path, monkeypatch):
    def epoch(self, state, stopping, original=OnDevice.train):
        state, steps = original(self, state, stopping)
        params = jax.tree.map(lambda leaf: leaf * jnp.inf, state.params)
        return state._replace(params=params), steps

    monkeypatch.setattr(OnDevice, "train", epoch)
    with pytest.raises(DivergedError, match=f"NaN or infinite after step {STEPS}, "):
        train(CONFIG, tmp_path, checkpoint_every=1)
    assert list((tmp_path / "checkpoints").iterdir()) == []
