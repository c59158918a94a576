"""Tests of experiments.checkpoint."""

import dataclasses
import functools
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.training.checkpoint import Checkpoints
from experiments.training.config import Config
from experiments.training.devices import data_mesh, replicated
from experiments.training.trainer import make_trainer
from optax_grda import grda_params


def start(config, devices=1):
    """The state before the first step, on some devices."""
    mesh = data_mesh(jax.devices()[:devices])
    trainer = Trainer(config, num_classes=10, num_examples=64, mesh=mesh)
    return trainer, jax.jit(trainer.init, out_shardings=replicated(mesh))(config.seed)


@functools.cache
def trained(config):
    """The state after three steps on random images of the digits' shape."""
    trainer, state = start(config)
    rng = np.random.default_rng(0)
    images = rng.random((3, 16, 8, 8, 1), np.float32)
    labels = rng.integers(0, 10, (3, 16)).astype(np.int32)
    return jax.jit(
        lambda state: jax.lax.scan(
            lambda state, batch: trainer.train_step(state, *batch),
            state,
            (images, labels),
        )[0]
    )(state)


def at_step(state, step):
    return state._replace(step=state.step * 0 + step)


def assert_equal(state, expected):
    """All arrays, their dtypes and the key are the same, to the bit."""
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    state, expected = (
        s._replace(key=jax.random.key_data(s.key)) for s in (state, expected)
    )
    for leaf, wanted in zip(
        jax.tree.leaves(state), jax.tree.leaves(expected), strict=True
    ):
        assert leaf.dtype == wanted.dtype
        assert np.asarray(leaf).tobytes() == np.asarray(wanted).tobytes()


GRDA = Config(batch_size=16, c=0.5)
TARGET = dataclasses.replace(GRDA, optimizer="target-sparsity", epochs=1)


@pytest.mark.parametrize(
    "config",
    [
        GRDA,
        dataclasses.replace(GRDA, dtype="bfloat16"),
        dataclasses.replace(GRDA, accumulation=2),
        dataclasses.replace(GRDA, groups="units"),
        dataclasses.replace(TARGET, accumulation=2),
        dataclasses.replace(TARGET, groups="units-and-weights"),
        dataclasses.replace(GRDA, optimizer="sgd"),
        dataclasses.replace(GRDA, optimizer="momentum"),
        dataclasses.replace(GRDA, optimizer="adam"),
    ],
    ids=lambda config: "-".join(
        (config.optimizer, config.groups, config.dtype, str(config.accumulation))
    ),
)
@pytest.mark.usefixtures("standard_promotion")
def test_what_is_restored_is_what_was_saved_to_the_bit(tmp_path, config):
    state = trained(config)
    Checkpoints(tmp_path, config, keep=2).save(state)
    _, template = start(config)
    assert_equal(Checkpoints(tmp_path, config, keep=2).restore(template), state)
    assert not np.array_equal(*map(first_kernel, (state, template)))


def first_kernel(state):
    return np.asarray(jax.tree.leaves(state.params)[1])


def test_running_statistics_are_restored(tmp_path, tiny_vgg):
    config = Config(model=tiny_vgg)
    _, state = start(config)
    moved = state._replace(batch_stats=jax.tree.map(lambda x: x + 1, state.batch_stats))
    Checkpoints(tmp_path, config, keep=1).save(moved)
    assert jax.tree.leaves(moved.batch_stats)
    assert_equal(Checkpoints(tmp_path, config, keep=1).restore(state), moved)


@pytest.mark.parametrize(("before", "after"), [(1, 8), (8, 1)])
def test_a_run_may_go_on_with_another_number_of_devices(tmp_path, before, after):
    _, state = start(GRDA, before)
    Checkpoints(tmp_path, GRDA, keep=1).save(state)
    _, template = start(GRDA, after)
    restored = Checkpoints(tmp_path, GRDA, keep=1).restore(template)
    assert_equal(restored, state)
    for leaf, wanted in zip(
        jax.tree.leaves(restored), jax.tree.leaves(template), strict=True
    ):
        assert leaf.sharding == wanted.sharding


def test_a_checkpoint_of_grda_holds_the_accumulator_and_no_weights(tmp_path):
    state = trained(GRDA)
    assert first_kernel(state).any()
    checkpoints = Checkpoints(tmp_path, GRDA, keep=1)
    checkpoints.save(state)
    metadata = (checkpoints.manager.directory / "3" / "state" / "_METADATA").read_text()
    assert "accumulator" in metadata
    assert "params" not in metadata


def test_a_checkpoint_of_grda_is_as_large_as_one_of_sgd(tmp_path):
    sizes = {}
    for optimizer in ("sgd", "grda", "momentum"):
        config = Config(model="mnist-mlp", optimizer=optimizer)
        Checkpoints(tmp_path / optimizer, config, keep=1).save(random_state(config))
        files = filter(Path.is_file, (tmp_path / optimizer).rglob("*"))
        sizes[optimizer] = sum(file.stat().st_size for file in files)
    weights = 4 * 407_050
    assert sizes["sgd"] == pytest.approx(weights, rel=0.02)
    assert sizes["grda"] == pytest.approx(weights, rel=0.02)
    assert sizes["momentum"] == pytest.approx(2 * weights, rel=0.02)


def random_state(config):
    """A state of random bits, which do not compress."""
    rng = np.random.default_rng(0)

    def fill(leaf):
        bits = rng.bytes(leaf.size * leaf.dtype.itemsize)
        return np.frombuffer(bits, leaf.dtype).reshape(leaf.shape)

    state = jax.eval_shape(Trainer(config, 10, 64).init, 0)._replace(key=None)
    return jax.tree.map(fill, state)._replace(key=jax.random.key(0))


def test_the_newest_are_kept(tmp_path):
    _, state = start(GRDA)
    checkpoints = Checkpoints(tmp_path, GRDA, keep=2)
    assert checkpoints.restore(state) is None
    for step in (10, 20, 100):
        checkpoints.save(at_step(state, step))
    assert checkpoints.steps == [20, 100]
    assert Checkpoints(tmp_path, GRDA, keep=2).restore(state).step == 100


def test_a_checkpoint_that_was_being_written_is_no_checkpoint(tmp_path):
    _, state = start(GRDA)
    checkpoints = Checkpoints(tmp_path, GRDA, keep=2)
    checkpoints.save(at_step(state, 10))
    directory = tmp_path / "checkpoints"
    shutil.copytree(directory / "10", directory / "20.orbax-checkpoint-tmp")
    again = Checkpoints(tmp_path, GRDA, keep=2)
    assert again.steps == [10]
    assert again.restore(state).step == 10
    again.save(at_step(state, 20))
    assert again.steps == [10, 20]


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
    """A run directory with two good checkpoints, and their state but for the step."""
    directory = tmp_path_factory.mktemp("run")
    _, state = start(GRDA)
    checkpoints = Checkpoints(directory, GRDA, keep=2)
    for step in (10, 20):
        checkpoints.save(at_step(state, step))
    return directory, state


def files_of_step_20(directory):
    newest = directory / "checkpoints" / "20"
    return sorted(path for path in newest.rglob("*") if path.is_file())


# Orbax gives up at the first array that fails, and leaves its other readers behind.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("keep_bytes", [lambda n: 0, lambda n: n // 2])
def test_a_truncated_newest_checkpoint_is_named_and_the_one_before_it_used(
    two_checkpoints, tmp_path, capsys, keep_bytes
):
    original, state = two_checkpoints
    skipped = []
    for number, file in enumerate(files_of_step_20(original)):
        run = tmp_path / str(number)
        shutil.copytree(original, run)
        cut = run / file.relative_to(original)
        cut.write_bytes(cut.read_bytes()[: keep_bytes(file.stat().st_size)])
        restored = Checkpoints(run, GRDA, keep=2).restore(state)
        message = capsys.readouterr().err
        if restored.step == 10:
            assert f"the checkpoint of step 20 in {run}" in message
            assert "is damaged and skipped" in message
            skipped.append(file.name)
        else:  # the file holds nothing that matters
            assert_equal(restored, at_step(state, 20))
            assert message == ""
        assert_equal(restored, at_step(state, int(restored.step)))
    assert "metadata" in skipped  # of the configuration
    assert "manifest.ocdbt" in skipped
    assert any(len(name) == 32 for name in skipped)  # the arrays


def test_a_run_that_skipped_a_damaged_checkpoint_saves_in_its_place(
    two_checkpoints, tmp_path
):
    original, state = two_checkpoints
    run = tmp_path / "run"
    shutil.copytree(original, run)
    (run / "checkpoints" / "20" / "config" / "metadata").write_text("{")
    checkpoints = Checkpoints(run, GRDA, keep=2)
    assert checkpoints.restore(state).step == 10
    checkpoints.save(at_step(state, 15))
    assert checkpoints.steps == [10, 15]
    checkpoints.save(at_step(state, 20))
    assert Checkpoints(run, GRDA, keep=2).restore(state).step == 20


def test_where_every_checkpoint_is_damaged_nothing_starts_anew(
    two_checkpoints, tmp_path
):
    original, state = two_checkpoints
    run = tmp_path / "run"
    shutil.copytree(original, run)
    for path in (run / "checkpoints").glob("*/config/metadata"):
        path.write_text("{")
    with pytest.raises(ValueError, match=r"none of the checkpoints in .* \[10, 20\]"):
        Checkpoints(run, GRDA, keep=2).restore(state)


def test_another_configuration_is_refused_with_the_fields_that_differ(two_checkpoints):
    directory, _ = two_checkpoints
    other = dataclasses.replace(
        GRDA, model="mnist-mlp", optimizer="sgd", dataset="mnist"
    )
    _, template = start(other)
    with pytest.raises(ValueError, match="is of another configuration") as error:
        Checkpoints(directory, other, keep=2).restore(template)
    for field in (
        "model: digits-mlp, not mnist-mlp",
        "dataset: digits, not mnist",
        "optimizer: grda, not sgd",
    ):
        assert field in str(error.value)
    assert "epochs" not in str(error.value)


def test_restored_weights_are_the_thresholded_accumulator(two_checkpoints):
    directory, state = two_checkpoints
    restored = Checkpoints(directory, GRDA, keep=2).restore(state)
    expected = grda_params(restored.opt_state, state.params)
    assert_equal(restored, restored._replace(params=expected))
