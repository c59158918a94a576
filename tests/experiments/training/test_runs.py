"""Tests of finished runs, read back: pairs of runs, and what runs ended with."""

import dataclasses
import json
import shutil

import jax
import pytest

from experiments.training import config as configs
from experiments.training import runs
from experiments.training.config import Config, Grda, Target
from experiments.training.errors import UserError
from experiments.training.runs import Result, find_pairs, headline, read_results


@pytest.fixture
def changed(demo_run, tmp_path):
    """A function that copies a run of the demo and changes its configuration."""

    def change(name, run="grda-0", **fields):
        other = tmp_path / name
        shutil.copytree(demo_run / run, other)
        config = configs.load(other / "config.json")
        configs.save(dataclasses.replace(config, **fields), other / "config.json")
        return other

    return change


def test_states_are_read_back_as_they_were_after_each_epoch(demo_run):
    (pair,) = find_pairs([demo_run / "sgd-0", demo_run / "grda-0"])
    assert pair.epochs == [30, 60]
    assert pair.sgd.task is pair.grda.task
    for run in pair:
        states = [run.state(epoch) for epoch in pair.epochs]
        assert [int(state.step) for state in states] == [30 * 45, 60 * 45]
        task, last = run.task, states[-1]
        evaluate = jax.jit(task.trainer.evaluate)
        accuracy = evaluate(last.params, last.batch_stats, *task.test).accuracy
        summary = json.loads((run.directory / "summary.json").read_text())
        assert float(accuracy) == pytest.approx(summary["test_accuracy"])


def test_a_comparison_holds_a_pair_a_seed(demo_run, paper_runs):
    pairs = find_pairs([paper_runs])
    assert [pair.grda.config.seed for pair in pairs] == [0, 1]
    method = {"name": "grda", "c": 0.05, "mu": 0.6, "groups": "none"}
    method |= {"momentum": 0.0, "proximal": "soft", "weight_decay": 0.0}
    method |= {"direction": "gradient", "thresholds": "all", "clip_norm": 0.0}
    assert pairs[0].describe() == {
        "model": "digits-mlp",
        "dataset": "digits",
        "seed": 0,
        "sgd": str((demo_run / "sgd-0").resolve()),
        "label": "gRDA, c = 0.05, μ = 0.6",
        "preset": "digits-mlp",
        "method": method,
        "grda": str((demo_run / "grda-0").resolve()),
    }


def test_pairs_are_of_a_run_and_its_own_dense_twin(demo_run):
    pairs = {pair.grda.directory.name: pair.sgd for pair in find_pairs([demo_run])}
    assert {name: sgd.directory.name for name, sgd in pairs.items()} == {
        **{f"grda-{seed}": f"sgd-{seed}" for seed in (0, 1)},
        **{f"target-{seed}": f"momentum-{seed}" for seed in (0, 1)},
    }


def test_a_run_counts_once_however_its_path_is_spelled(demo_run, monkeypatch):
    monkeypatch.chdir(demo_run.parent)
    spelled = demo_run / ".." / demo_run.name
    assert (
        len(find_pairs([demo_run, spelled, spelled.relative_to(demo_run.parent)])) == 4
    )
    assert runs.Run(spelled / "grda-0").id == runs.Run(demo_run / "grda-0").id
    for result in read_results([demo_run, spelled]):
        assert result.seeds == [0, 1]


def test_a_run_without_its_twin_is_refused(demo_run, tmp_path):
    sgd, grda = demo_run / "sgd-0", demo_run / "grda-0"
    with pytest.raises(UserError, match="must hold a run of SGD with the config"):
        find_pairs([grda])
    with pytest.raises(UserError, match="must hold a run of SGD with the config"):
        find_pairs([grda, demo_run / "sgd-1"])
    with pytest.raises(UserError, match="must hold a run of gRDA"):
        find_pairs([sgd])
    with pytest.raises(UserError, match="holds no checkpoints"):
        find_pairs([tmp_path])
    with pytest.raises(FileNotFoundError, match=r"no run directory .*nothing"):
        find_pairs([tmp_path / "nothing"])


def test_runs_that_differ_in_what_is_thresholded_are_still_twins(demo_run, changed):
    other = changed("units", method=Target(0.8, groups="units"))
    (pair,) = find_pairs([demo_run / "sgd-0", other])
    assert pair.describe()["label"] == "target 80 %, units"
    assert pair.describe()["preset"] is None


def test_runs_that_cannot_be_compared_are_refused(demo_run, changed):
    sgd, grda = demo_run / "sgd-0", demo_run / "grda-0"
    with pytest.raises(UserError, match="not hold two runs of one configuration"):
        find_pairs([sgd, grda, changed("again")])
    others = [
        changed(name, f"{name}-0", model="mnist-mlp", dataset="digits.npz")
        for name in ("sgd", "grda")
    ]
    with pytest.MonkeyPatch.context() as patch:
        task = runs.Run(sgd).task
        patch.setattr(runs, "_load_task", lambda *_: task)
        with pytest.raises(UserError, match="one network on one data set"):
            find_pairs([sgd, grda, *others])
    (pair,) = find_pairs([sgd, grda])
    params = pair.sgd.state().params
    with pytest.raises(UserError, match="must have other weights than"):
        runs.displacement(pair, params, params)


class Saved:
    """A run of which nothing matters but the epochs that were saved."""

    directory = "runs/saved"

    def __init__(self, *epochs):
        self.epochs = dict.fromkeys(epochs)


def test_pruning_takes_the_last_epoch_that_all_runs_have():
    pairs = [runs.Pair(Saved(1, 2, 3), Saved(*epochs)) for epochs in ((1, 2), (2, 3))]
    assert runs.last_common_epoch(pairs) == 2
    with pytest.raises(UserError, match="a checkpoint of the same epoch"):
        runs.last_common_epoch([*pairs, runs.Pair(Saved(3), Saved(3))])


def test_runs_of_grda_share_what_is_known_of_their_run_of_sgd():
    sgd = Saved(1, 2)
    first, second = runs.Pair(sgd, Saved(1, 2)), runs.Pair(sgd, Saved(2))
    work = runs.by_sgd_epoch([first, second])
    assert work == [(sgd, 1, [first]), (sgd, 2, [first, second])]


# What runs ended with


def result(config, **changes):
    measured = {"test_accuracy": [0.9], "sparsity": [0.5], "train_loss": [1.0]}
    measured |= {"test_loss": [1.0]}
    measured |= {"seconds": [1.0], "sparsity_by_layer": [{"kernel": 0.5}]}
    about = {"seeds": [config.seed], "sizes": {"kernel": 8}, "environment": {}}
    metrics = [{"epoch": 1, "seed": config.seed}]
    return Result(config=config, metrics=metrics, **(measured | about | changes))


def test_runs_that_differ_in_the_seed_alone_are_one_result(demo_run, paper_runs):
    sgd, grda = read_results([paper_runs])
    assert (sgd.label, grda.label) == ("SGD", "gRDA, c = 0.05, μ = 0.6")
    summaries = [
        json.loads((demo_run / f"grda-{seed}" / "summary.json").read_text())
        for seed in range(2)
    ]
    assert grda.seeds == [0, 1]
    assert grda.train_loss == [summary["train_loss"] for summary in summaries]
    assert grda.parameters == 17226
    assert len(grda.metrics) == 2 * 60
    zeros = [summary["sparsity_report"]["leaves"][1] for summary in summaries]
    mean = sum(leaf["sparsity"] for leaf in zeros) / 2
    assert grda.layers()[zeros[0]["path"]] == pytest.approx(mean)


def test_a_setting_without_an_effect_does_not_split_results(paper_runs, changed):
    other = changed("other", "sgd-0", seed=5)
    (sgd, _) = read_results([paper_runs, other])
    assert sgd.seeds == [0, 1, 5]
    assert "c" not in json.loads((other / "config.json").read_text())["method"]


def test_labels_tell_alike_results_apart():
    alike = [result(Config(batch_size=size)) for size in (32, 64)]
    labels = [found.label for found in runs._labelled([*alike, result(Config())])]
    text = "gRDA, c = 0.05, μ = 0.6, batch_size"
    assert labels == [f"{text} 32", f"{text} 64", f"{text} 32"]


def test_a_headline_compares_with_the_twin_alone():
    grda = dataclasses.replace(result(Config(method=Grda())), label="gRDA")
    sgd = result(Config(method=configs.Sgd()), test_accuracy=[0.95], sparsity=[0.0])
    sgd = dataclasses.replace(sgd, label="SGD")
    other = dataclasses.replace(sgd, config=dataclasses.replace(sgd.config, epochs=1))
    text = "gRDA made 50.0% of 8 weights exactly zero while it trained, at 90.0% test"
    assert headline([other, grda]) == f"{text} accuracy."
    assert headline([other, sgd, grda]) == f"{text} accuracy, 5.0 points below SGD."
    level = dataclasses.replace(sgd, test_accuracy=[0.9001])
    assert headline([level, grda]) == f"{text} accuracy, as accurate as SGD."


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("summary.json", '{"test_accuracy": 0.9'),
        ("summary.json", "null"),
        ("summary.json", "{}"),
        ("config.json", ""),
        ("config.json", "null"),
        ("metrics.jsonl", ""),
    ],
)
def test_a_damaged_file_is_named(changed, name, text):
    directory = changed("damaged")
    (directory / name).write_text(text)
    with pytest.raises(UserError, match=rf"damaged/{name}"):
        read_results([directory])
