"""The command for a machine with an accelerator, at tiny size on this one."""

import itertools
import json
import os
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from benchmarks import accelerator, optimizer_step, pieces, train_step
from benchmarks.accelerator import Options
from benchmarks.pieces import Job, Piece, Sizes
from experiments.training.errors import UserError
from experiments.training.session import DivergedError
from optax_grda import packing

# Three calls of the command: without time, with enough, and without again. The arena's
# contests are of two epochs and one learning rate; a permutation takes a second to
# compile.
DRY_RUN = """
import dataclasses, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow_datasets", "grain", "array_record"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
from pathlib import Path
import jax.numpy as jnp
from benchmarks import accelerator
from experiments.arena.networks import NETWORKS
from experiments.training.trainer import Trainer

Trainer.order = lambda self, key, epoch: jnp.arange(self.num_examples)
NETWORKS["digits-mlp"] = dataclasses.replace(
    NETWORKS["digits-mlp"], epochs=2, paces=(0.4,)
)
output, scratch = map(Path, sys.argv[1:])
for minutes in (0, 60, 0):
    options = accelerator.Options(
        output=output, scratch=scratch, minutes=minutes, dry_run=True
    )
    print("call", flush=True)
    try:
        accelerator.main(options)
    except SystemExit as stop:
        print("exit", stop.code, flush=True)
"""


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory):
    """Output directory and standard output, where TFDS and Grain are not installed."""
    output, scratch = (tmp_path_factory.mktemp(name) for name in ("output", "scratch"))
    # Most of the time would go to optimising programs that then run twice.
    flags = (
        "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    )
    done = subprocess.run(
        [sys.executable, "-c", DRY_RUN, str(output), str(scratch)],
        env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    made = {path.name for path in scratch.iterdir()}
    assert made == {"compiled", "random.npz", "text"}
    return output, done.stdout


def found(dry_run, name):
    return json.loads((dry_run[0] / f"{name}.json").read_text())


def test_all_pieces_are_done_once_when_there_is_time(dry_run):
    output, printed = dry_run
    names = [piece.name for piece in pieces.pieces(pieces.tiny(output.parent))]
    without_time, with_time, again = printed.split("call\n")[1:]
    assert without_time == "exit 75\n"
    begun = [line.partition(": about ")[0] for line in with_time.splitlines()]
    assert [name for name in begun if name in names] == names
    assert again == ""
    for name in names:
        result = found(dry_run, name)
        assert "error" not in result, result
        assert result["dry_run"]
        assert result["environment"]["jax"] == jax.__version__
        assert result["seconds"] > 0


def test_the_whole_plan_has_the_paper_in_full_after_what_is_quick():
    named = {piece.name: piece for piece in pieces.pieces(Sizes())}
    kinds = (
        "optimizer-step-",
        "training-step-",
        "connect-",
        "arena-",
        "cifar10-vgg16",
        "text-384x6",
    )
    numbers = [sum(name.startswith(kind) for name in named) for kind in kinds]
    assert numbers == [2, 4, 1, 9, 6, 2]
    assert sum(numbers) == len(named)
    order = [next(k for k in kinds if name.startswith(k)) for name in named]
    assert [kind for kind, _ in itertools.groupby(order)] == list(kinds)
    config = Sizes("cifar10.npz").config("cifar10-vgg16-mu0.6", seed=1)
    assert (config.epochs, config.batch_size, config.seed) == (600, 128, 1)
    assert (config.dtype, config.dataset) == ("bfloat16", "cifar10.npz")
    config = Sizes("cifar10.npz").config("text-384x6-adam")
    assert (config.dtype, config.dataset) == ("bfloat16", "python-stdlib")
    assert (config.epochs, config.method.name) == (8, "adam")


def test_runs_stand_beside_those_of_the_authors_and_leave_their_weights(dry_run):
    theirs = {
        "cifar10-vgg16-mu0.7": "90.64 ± 0.24",
        "cifar10-vgg16-mu0.51": "91.02 ± 0.15",
        "cifar10-vgg16-mu0.4": "90.87 ± 0.21",
        "cifar10-vgg16-sgd-seed1": "90.82 ± 0.18",
        "cifar10-vgg16-mu0.6-seed1": "90.86 ± 0.26",
        "cifar10-vgg16-mu0.6-units": "90.86 ± 0.26",
    }
    for name, accuracy in theirs.items():
        result = found(dry_run, name)
        (row,) = result["rows"]
        assert (row["run"], row["epochs"]) == (name, 2)
        assert row["authors' top-1 %"] == accuracy
        assert result["config"]["seed"] == int(name.endswith("seed1"))
        assert result["metrics"][-1]["epoch"] == 2
        (weights,) = (dry_run[0] / name).iterdir()
        kept = jax.tree.leaves(packing.unpack(weights))
        zeros = sum(int(np.sum(leaf == 0)) for leaf in kept)
        assert sum(leaf.size for leaf in kept) == 17226
        assert zeros / 17226 == pytest.approx(result["summary"]["sparsity"], abs=1e-6)
    assert found(dry_run, "cifar10-vgg16-mu0.6-units")["config"]["method"][
        "groups"
    ] == ("units")


def test_a_transformer_stands_beside_its_dense_twin_in_nats_and_perplexity(dry_run):
    for name, method in {"text-64x2": "target", "text-64x2-adam": "adam"}.items():
        result = found(dry_run, name)
        (row,) = result["rows"]
        loss = result["summary"]["test_loss"]
        assert (row["run"], row["nats a byte"]) == (name, f"{loss:.3f}")
        assert row["perplexity"] == f"{np.exp(loss):.3f}"
        assert not any("top-1" in column for column in row)
        config = result["config"]
        assert (config["dtype"], config["method"]["name"]) == ("bfloat16", method)
        assert [path.name for path in (dry_run[0] / name).iterdir()] == [
            "weights-1.safetensors"
        ]


def test_a_short_pair_is_connected_and_projected(dry_run):
    result = found(dry_run, "connect-and-project")
    (pair,) = result["connect"]["pairs"]
    assert len(pair["curve"]["train_loss"]) == 3
    (row,) = result["project"]["rows"]
    assert 0 <= row["difference_fraction"] <= 1


def test_a_method_in_the_arena_is_tuned_and_tested(dry_run):
    result = found(dry_run, "arena-momentum")
    assert not result["left"]
    assert {run["method"] for run in result["runs"]} == {"momentum"}
    assert [run["phase"] for run in result["runs"]] == ["tuning", "test"]


def test_optimizer_steps_of_a_loop_keep_one_copy_of_state_and_no_temporary(dry_run):
    rows = found(dry_run, "optimizer-step-digits-mlp")["rows"]
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
    rows = found(dry_run, "training-step-digits-mlp")["rows"]
    assert [row["optimizer"] for row in rows] == list(train_step.OPTIMIZERS)
    assert {row["dtype"] for row in rows} == {"bfloat16"}
    assert rows[0]["ratio to SGD (quartiles)"] == "1.000 (1.000 to 1.000)"
    # Momentum SGD holds one copy more, and XLA may lay out what is temporary otherwise.
    more = "more than SGD, in copies of the parameters"
    sgd, grda, momentum = (float(row[more]) for row in rows)
    assert sgd == 0
    assert momentum > 0.99
    assert grda < momentum + 0.01


# What is done, and what is left


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Runs the command with given pieces; returns exit code and the pieces it ran."""
    monkeypatch.setattr(accelerator, "LEDGER", tmp_path / "ledger")
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    run = []

    def call(*made, minutes=1.0):
        run.clear()
        monkeypatch.setattr(accelerator, "pieces", lambda sizes: made)
        options = Options(
            minutes=minutes, output=tmp_path / "out", scratch=tmp_path / "scratch"
        )
        try:
            accelerator.main(options)
        except SystemExit as stop:
            return stop.code, list(run)
        return 0, list(run)

    def piece(name, seconds=0.0, result=lambda job: {}):
        def record(job):
            run.append(name)
            return result(job)

        return Piece(name, lambda: seconds, record)

    return types.SimpleNamespace(call=call, piece=piece, directory=tmp_path)


def test_what_cannot_end_in_the_time_left_is_not_begun_but_what_can_is(command, capsys):
    long, short = command.piece("long", seconds=61.0), command.piece("short", 59.0)
    assert command.call(long, short) == (75, ["short"])
    assert "left: long\n" in capsys.readouterr().err
    assert command.call(long, short) == (75, [])
    assert command.call(long, short, minutes=2) == (0, ["long"])
    assert command.call(long, short, minutes=0) == (0, [])


def test_what_the_repository_has_is_not_done_again(command):
    command.directory.joinpath("ledger").mkdir()
    (command.directory / "ledger" / "known.json").write_text("{}")
    assert command.call(command.piece("known"), command.piece("new")) == (0, ["new"])


def test_a_piece_of_which_more_is_left_goes_on_from_what_it_found(command):
    def result(job):
        done = job.earlier.get("contest", {"runs": []})["runs"] + [job.left > 0]
        return {"runs": done, "left": len(done) < 2}

    piece = command.piece("contest", result=result)
    assert command.call(piece) == (75, ["contest"])
    assert command.call(piece) == (0, ["contest"])
    written = json.loads((command.directory / "out" / "contest.json").read_text())
    assert written["runs"] == [True, True]


@pytest.mark.parametrize(
    "error",
    [DivergedError("a loss became NaN\nat"), jax.errors.JaxRuntimeError("full")],
)
def test_a_piece_that_fails_is_noted_and_the_others_done(command, error):
    def fail(job):
        raise error

    failing, other = command.piece("failing", result=fail), command.piece("other")
    assert command.call(failing, other) == (0, ["failing", "other"])
    written = json.loads((command.directory / "out" / "failing.json").read_text())
    assert written["error"] == str(error).splitlines()[0]


def test_a_dry_run_does_not_write_where_results_are_kept():
    with pytest.raises(ValueError, match="output must be another directory in a dry"):
        Options(dry_run=True)


# Parts of pieces


def test_a_runs_time_follows_from_a_probe(monkeypatch):
    monkeypatch.setattr(pieces, "probe", lambda config: (10.0, 0.001))
    named = {piece.name: piece for piece in pieces.pieces(Sizes())}
    assert named["cifar10-vgg16-mu0.7"].seconds() == pytest.approx(20 + 600 * 391e-3)
    assert named["text-384x6"].seconds() == pytest.approx(20 + 8 * 512e-3)


def test_a_probe_is_of_one_step_and_serves_all_methods_of_a_network():
    sizes = Sizes(changes={"model": "digits-mlp", "augmentation": "none"})
    compiling, step = pieces.probe(sizes.config("cifar10-vgg16-sgd"))
    assert 0 < step < compiling
    assert pieces.probe(sizes.config("cifar10-vgg16-mu0.6", seed=1)) == (
        compiling,
        step,
    )


def test_weights_are_kept_in_files_that_are_small_enough(tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "FILE", 2**20 + 4000)
    rng = np.random.default_rng(0)
    params = {
        "layers": {
            str(n): {"kernel": rng.random((20, 20), np.float32)} for n in range(5)
        }
    }
    pieces.keep_weights(params, tmp_path)
    files = sorted(tmp_path.iterdir())
    assert [path.name for path in files] == [
        f"weights-{n}.safetensors" for n in (1, 2, 3)
    ]
    kept = {}
    for path in files:
        assert path.stat().st_size < pieces.FILE
        kept |= packing.unpack(path)["layers"]
    jax.tree.map(np.testing.assert_array_equal, {"layers": kept}, params)


def test_the_arena_goes_on_after_the_methods_before_and_ends_with_the_time(
    tmp_path, monkeypatch
):
    def main(options):
        there = json.loads((options.output / "arena.json").read_text())
        assert [row["method"] for row in there["rows"]] == ["momentum"]
        assert (options.methods, options.minutes, options.resume) == (
            ("rigl",),
            2,
            True,
        )
        there["rows"].append({"method": "rigl", "phase": "tuning"})
        (options.output / "arena.json").write_text(json.dumps(there))
        raise UserError("minutes must let a method end")

    monkeypatch.setattr(pieces.arena, "main", main)
    named = {piece.name: piece for piece in pieces.pieces(Sizes())}
    earlier = {
        "arena-momentum": {"runs": [{"method": "momentum", "phase": "test"}]},
        "cifar10-vgg16-mu0.7": {},
    }
    result = named["arena-rigl"].run(Job(tmp_path / "keep", tmp_path, 120.0, earlier))
    assert result == {"runs": [{"method": "rigl", "phase": "tuning"}], "left": True}
