"""The command: what it trains, keeps, goes on with, and says."""

import dataclasses
import functools
import json

import numpy as np
import pytest

import models
from experiments.arena import runs
from experiments.arena.__main__ import Options, main
from experiments.arena.methods import METHODS
from experiments.arena.networks import NETWORKS, for_validation, load
from experiments.arena.runs import Setting
from experiments.training.data import Dataset
from experiments.training.errors import UserError
from models import _registry


@pytest.fixture(scope="module", autouse=True)
def short_runs():
    """Networks with three epochs and two learning rates."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("digits-mlp", "digits-wrn10x1"):
            short = {"epochs": 3, "paces": (0.1, 0.4)}
            patch.setitem(NETWORKS, name, dataclasses.replace(NETWORKS[name], **short))
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A directory of a contest of a method and its dense twin."""
    directory = tmp_path_factory.mktemp("arena") / "contest"
    options = {"sparsity": (0.8, 0.95), "seeds": 2, "tuning_seeds": 1}
    main(Options(methods=("dial-soft",), output=directory, **options))
    return directory


def read(directory):
    return json.loads((directory / "arena.json").read_text())["rows"]


def test_every_method_trains_every_seed_at_every_sparsity(finished):
    rows = [row for row in read(finished) if row["phase"] == "test"]
    mine = {
        (row["sparsity"], row["seed"]): row
        for row in rows
        if row["method"] == "dial-soft"
    }
    assert set(mine) == {(s, seed) for s in (0.8, 0.95) for seed in (0, 1)}
    for (sparsity, _), row in mine.items():
        assert row["zeros"] == pytest.approx(sparsity, abs=0.03)
        assert np.isfinite(row["train_loss"])
        assert row["seconds"] > 0
    dense = [row for row in rows if row["method"] == "momentum"]
    assert [row["zeros"] for row in dense] == [0, 0]
    assert dense[0]["state"] == pytest.approx(1, abs=0.01)  # the trace


def test_what_is_there_is_shown_and_not_trained_again(finished, monkeypatch, capsys):
    monkeypatch.setattr(runs, "train", None)
    before = read(finished)
    options = {"sparsity": (0.8, 0.95), "seeds": 2, "tuning_seeds": 1}
    main(Options(methods=("dial-soft",), output=finished, resume=True, **options))
    assert read(finished) == before
    printed = capsys.readouterr().out
    assert "dial, soft" in printed
    assert (finished / "figures" / "arena_accuracy_digits-mlp_weights.png").exists()


def test_a_contest_that_was_stopped_goes_on(finished, tmp_path, monkeypatch):
    rows = read(finished)
    kept = [row for row in rows if (row["method"], row["seed"]) != ("dial-soft", 1)]
    whole = json.loads((finished / "arena.json").read_text())
    (tmp_path / "arena.json").write_text(json.dumps(whole | {"rows": kept}))
    options = {"sparsity": (0.8, 0.95), "seeds": 2, "tuning_seeds": 1}
    main(Options(methods=("dial-soft",), output=tmp_path, resume=True, **options))

    def results(rows):
        return {
            (row["method"], row["phase"], row["seed"], row["sparsity"]): row["zeros"]
            for row in rows
        }

    assert results(read(tmp_path)) == pytest.approx(results(rows))


def test_a_run_alone_gives_what_it_gives_beside_others(monkeypatch):
    network = NETWORKS["digits-mlp"]
    dataset = load(network, None, None)
    settings = [Setting(0.2, 0.8, 0.0, seed) for seed in (0, 1)]
    together = runs.train(network, METHODS["dial-power3"], dataset, settings)
    (again,) = runs.train(network, METHODS["dial-power3"], dataset, settings[:1])
    assert again["train_loss"] == pytest.approx(together[0]["train_loss"], rel=1e-3)
    monkeypatch.setattr(runs, "SMALL", 0)
    runs._programs.cache_clear()
    alone = runs.train(network, METHODS["dial-power3"], dataset, settings)
    runs._programs.cache_clear()
    for one, other in zip(together, alone, strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-3)
        assert one["zeros"] == pytest.approx(other["zeros"], abs=1e-3)


def test_runs_may_start_from_trained_weights():
    network = dataclasses.replace(NETWORKS["digits-mlp"], epochs=1, trained=4)
    dataset = load(network, None, None)
    setting = [Setting(0.1, 0.0, 0.0, 0)]
    fresh = dataclasses.replace(network, trained=0)
    (more,) = runs.train(network, METHODS["dial-soft"], dataset, setting)
    (less,) = runs.train(fresh, METHODS["dial-soft"], dataset, setting)
    assert more["train_loss"] < 0.5 * less["train_loss"]


def test_units_are_zero_as_wholes_and_classes_are_left(monkeypatch):
    network = NETWORKS["digits-wrn10x1"]
    dataset = load(network, None, None)
    trainer = runs.make_trainer(
        network, METHODS["dial-units"], dataset, 0.1, 0.5, 0.0, 0
    )
    import jax

    params = jax.eval_shape(trainer.init, 0).params
    seen = runs.kernels(params, dataset.num_classes, hidden=True)
    shapes = [
        p.shape for p, s in zip(*map(jax.tree.leaves, (params, seen)), strict=True) if s
    ]
    assert shapes
    assert all(len(shape) == 4 for shape in shapes)  # the last is dense


def test_validation_images_are_training_images():
    dataset = load(NETWORKS["digits-mlp"], None, None)
    held_out = for_validation(dataset)
    assert len(held_out.test_labels) == dataset.num_examples // 5
    assert held_out.num_examples + len(held_out.test_labels) == dataset.num_examples
    known = {image.tobytes() for image in dataset.train_inputs}
    assert all(image.tobytes() in known for image in held_out.test_inputs)


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize(
    "method", ["dial-adam-soft", "dial-adam-metric-power3", "gradual-adam"]
)
def test_methods_of_adam_make_kernels_of_a_transformer_sparse(method, monkeypatch):
    spec = models.spec("transformer-64x2")
    network = functools.partial(spec.network, width=8, blocks=1, heads=1)
    monkeypatch.setitem(_registry._SPECS, "tiny", spec._replace(network=network))
    rng = np.random.default_rng(0)
    arrays = {}
    for split in ("train", "test"):  # bytes that follow each other, from any on
        text = (rng.integers(0, 5, (32, 1)) + np.arange(7)) % 5
        arrays[f"{split}_inputs"] = np.uint8(text[:, :-1])
        arrays[f"{split}_labels"] = np.int32(text[:, 1:])
    dataset = Dataset("cycles", **arrays, num_classes=5)
    short = {"model": "tiny", "batch_size": 4, "epochs": 50}
    network = dataclasses.replace(NETWORKS["text-64x2"], **short)
    settings = [Setting(0.02, 0.7, 0.0, 0)]
    (row,) = runs.train(network, METHODS[method], dataset, settings)
    assert row["zeros"] == pytest.approx(0.7, abs=0.02)
    assert row["test_loss"] < 0.5 * np.log(5)


def test_time_that_is_up_ends_what_depends_on_it_too(tmp_path):
    """gRDA takes the rate of a dense twin, which was not trained."""
    with pytest.raises(UserError, match="minutes must let a method end"):
        main(Options(methods=("grda",), minutes=1e-9, output=tmp_path / "new"))


def test_time_that_is_up_ends_it_in_a_sentence(tmp_path):
    with pytest.raises(UserError, match="minutes must let a method end"):
        main(Options(methods=("sgd",), minutes=1e-9, output=tmp_path / "new"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"seeds": 0}, "seeds and tuning_seeds must be >= 1"),
        ({"sparsity": (1.0,)}, r"sparsity must be in \(0, 1\)"),
        ({"resume": True}, "output must be given with resume"),
    ],
)
def test_options_that_make_no_contest_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        Options(**options)


def test_unknown_names_are_told_with_those_that_are_like_them(tmp_path):
    with pytest.raises(UserError, match="Did you mean dial-soft"):
        main(Options(methods=("dial-sotf",), output=tmp_path / "new"))
    with pytest.raises(UserError, match="networks must be among"):
        main(Options(networks=("vgg",), output=tmp_path / "new"))
    assert not (tmp_path / "new").exists()
