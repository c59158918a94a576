"""Tests of experiments.training.checkpoint."""

import dataclasses
import functools
import os
import shutil
import subprocess
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from experiments.training import checkpoint
from experiments.training.checkpoint import Checkpoints
from experiments.training.config import Adam, Config, Grda, Momentum, Sgd, Target
from experiments.training.devices import data_mesh, fully_sharded, replicated
from experiments.training.errors import UserError
from experiments.training.trainer import make_trainer

GRDA = Config(batch_size=16, method=Grda(c=0.5))


def with_method(method):
    return dataclasses.replace(GRDA, method=method, epochs=1)


def checkpoints_of(directory, config=GRDA, keep=2):
    return Checkpoints(directory, config, make_trainer(config, 10, 64), keep)


@functools.cache
def start(config=GRDA):
    """A state of zeros."""
    shapes = jax.eval_shape(make_trainer(config, 10, 64).init, 0)._replace(key=None)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return zeros._replace(key=jax.random.key(0))


def random_state(config):
    """A state of random numbers, whose weights are those of the optimizer's state."""
    rng, trainer = np.random.default_rng(0), make_trainer(config, 10, 64)

    def fill(leaf):
        return jnp.asarray(rng.standard_normal(leaf.shape) * 9).astype(leaf.dtype)

    state = jax.tree.map(fill, start(config)._replace(key=None))
    state = state._replace(key=jax.random.key(7))
    return trainer.restored(trainer.compact(state), state)


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


@pytest.mark.parametrize(
    "method",
    [
        *(Grda(), Grda(groups="units"), Target(groups="units-and-weights")),
        *(Sgd(), Momentum(), Adam()),
    ],
    ids=lambda method: method.label,
)
def test_what_is_restored_is_what_was_saved_to_the_bit(tmp_path, method):
    config = with_method(method)
    state = at_step(random_state(config), 3)
    checkpoints_of(tmp_path, config).save(state)
    like = start(config)
    assert_equal(checkpoints_of(tmp_path, config).restore(like), state)
    assert not np.array_equal(*map(first_kernel, (state, like)))


def first_kernel(state):
    return np.asarray(jax.tree.leaves(state.params)[1])


def test_running_statistics_are_restored(tmp_path, tiny_vgg):
    config = Config(model=tiny_vgg)
    state = start(config)
    moved = state._replace(batch_stats=jax.tree.map(lambda x: x + 1, state.batch_stats))
    checkpoints_of(tmp_path, config).save(moved)
    assert jax.tree.leaves(moved.batch_stats)
    assert_equal(checkpoints_of(tmp_path, config).restore(state), moved)


def whole(mesh, state):
    return replicated(mesh)


@pytest.mark.parametrize("before", [(1, whole), (8, whole), (8, fully_sharded)])
@pytest.mark.parametrize("after", [(1, whole), (8, whole), (4, fully_sharded)])
def test_a_run_may_go_on_with_other_devices_and_another_sharding(
    tmp_path, before, after
):
    saved, like = (
        jax.device_put(state, sharding(data_mesh(jax.devices()[:devices]), state))
        for state, (devices, sharding) in (
            (random_state(GRDA), before),
            (start(), after),
        )
    )
    checkpoints_of(tmp_path).save(at_step(saved, 3))
    restored = checkpoints_of(tmp_path).restore(like)
    assert_equal(restored, at_step(saved, 3))
    for leaf, wanted in zip(
        jax.tree.leaves(restored), jax.tree.leaves(like), strict=True
    ):
        assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)


def test_a_checkpoint_of_grda_holds_the_accumulator_and_no_weights(tmp_path):
    checkpoints_of(tmp_path).save(at_step(start(), 3))
    arrays = safetensors.numpy.load_file(
        tmp_path / "checkpoints" / "3" / checkpoint.ARRAYS
    )
    assert any("accumulator" in name for name in arrays)
    assert not any("params" in name for name in arrays)


def test_a_checkpoint_of_grda_is_as_large_as_one_of_sgd(tmp_path):
    sizes = {}
    for method in (Sgd(), Grda(), Momentum()):
        config = Config(model="mnist-mlp", method=method)
        state = at_step(random_state(config), 1)
        checkpoints_of(tmp_path / method.name, config).save(state)
        files = filter(Path.is_file, (tmp_path / method.name).rglob("*"))
        sizes[method.name] = sum(file.stat().st_size for file in files)
    weights = 4 * 407_050
    assert sizes["sgd"] == pytest.approx(weights, rel=0.02)
    assert sizes["grda"] == pytest.approx(weights, rel=0.02)
    assert sizes["momentum"] == pytest.approx(2 * weights, rel=0.02)


def test_the_newest_are_kept(tmp_path):
    checkpoints = checkpoints_of(tmp_path)
    assert checkpoints.restore(start()) is None
    for step in (10, 20, 100):
        checkpoints.save(at_step(start(), step))
    assert checkpoints.steps == [20, 100]
    assert checkpoints_of(tmp_path).restore(start()).step == 100


def test_a_checkpoint_that_was_being_written_is_no_checkpoint(tmp_path):
    checkpoints_of(tmp_path).save(at_step(start(), 10))
    directory = tmp_path / "checkpoints"
    shutil.copytree(directory / "10", directory / "20.tmp")
    again = checkpoints_of(tmp_path)
    assert again.steps == [10]
    assert again.restore(start()).step == 10
    again.save(at_step(start(), 20))
    assert again.steps == [10, 20]
    assert {path.name for path in directory.iterdir()} == {"10", "20"}


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
    """A run directory with two good checkpoints, of steps 10 and 20."""
    directory = tmp_path_factory.mktemp("run")
    for step in (10, 20):
        checkpoints_of(directory).save(at_step(start(), step))
    return directory


@pytest.fixture
def run(two_checkpoints, tmp_path):
    """A copy of it."""
    return shutil.copytree(two_checkpoints, tmp_path / "run")


@pytest.mark.parametrize("name", [checkpoint.ARRAYS, checkpoint.CONFIG, "SHA256SUMS"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "bit", "bytes"])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_it_used(
    run, capsys, name, damage
):
    file = run / "checkpoints" / "20" / name
    data = bytearray(file.read_bytes())
    middle = len(data) // 2
    data[middle] ^= 1 if damage == "bit" else 0
    if damage == "bytes":  # as an array's would be: nothing but the numbers is wrong
        data[middle : middle + 8] = bytes(255 - x for x in data[middle : middle + 8])
    length = {"empty": 0, "cut": middle}.get(damage, len(data))
    file.write_bytes(data[:length])
    if damage == "missing":
        file.unlink()
    restored = checkpoints_of(run).restore(start())
    message = capsys.readouterr().err
    assert f"the checkpoint {file.parent} is damaged" in message
    assert "it is skipped" in message
    assert_equal(restored, at_step(start(), 10))


def test_the_digests_are_those_of_sha256sum(two_checkpoints):
    directory = two_checkpoints / "checkpoints" / "20"
    command = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    subprocess.run(command, cwd=directory, check=True, capture_output=True)


def test_a_run_that_skipped_a_damaged_checkpoint_saves_in_its_place(run):
    (run / "checkpoints" / "20" / "config.json").write_text("{")
    checkpoints = checkpoints_of(run)
    assert checkpoints.restore(start()).step == 10
    checkpoints.save(at_step(start(), 15))
    assert checkpoints.steps == [10, 15]
    checkpoints.save(at_step(start(), 20))
    assert checkpoints_of(run).restore(start()).step == 20


def test_where_every_checkpoint_is_damaged_nothing_starts_anew(run):
    for path in (run / "checkpoints").glob("*/config.json"):
        path.write_text("{")
    with pytest.raises(
        UserError, match=r"none of the checkpoints in .* be read: \[10, 20\]"
    ):
        checkpoints_of(run).restore(start())


def test_another_configuration_is_refused_with_the_fields_that_differ(two_checkpoints):
    other = dataclasses.replace(GRDA, model="mnist-mlp", method=Sgd(), dataset="mnist")
    with pytest.raises(UserError, match="is of another configuration") as error:
        checkpoints_of(two_checkpoints, other).restore(start(other))
    for field in (
        "model: digits-mlp, not mnist-mlp",
        "dataset: digits, not mnist",
        "method.name: grda, not sgd",
    ):
        assert field in str(error.value)
    assert "epochs" not in str(error.value)


def test_arrays_of_another_version_of_the_program_are_told_from_damage(
    two_checkpoints, monkeypatch
):
    like = start(with_method(Sgd()))
    with pytest.raises(UserError, match="was written by another version of the prog"):
        checkpoints_of(two_checkpoints, with_method(Sgd())).read(10, like)


def test_a_fault_of_the_program_is_not_taken_for_damage(two_checkpoints, monkeypatch):
    monkeypatch.setattr(Checkpoints, "_unpack", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        checkpoints_of(two_checkpoints).restore(start())


def test_a_state_may_be_donated_while_it_is_written(tmp_path, monkeypatch):
    donated = threading.Event()

    def write(path, data, original=Path.write_bytes):
        assert donated.wait(60)
        return original(path, data)

    monkeypatch.setattr(Path, "write_bytes", write)
    expected = at_step(random_state(GRDA), 3)
    state = jax.tree.map(jnp.copy, expected._replace(key=None))
    checkpoints = checkpoints_of(tmp_path)
    checkpoints.begin(state._replace(key=expected.key))
    assert checkpoints.steps == []  # incomplete, and so not there
    jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)(state)
    donated.set()
    checkpoints.wait()
    assert checkpoints.steps == [3]
    assert_equal(checkpoints.restore(start()), expected)


def test_checkpoints_are_written_one_after_the_other(tmp_path):
    checkpoints = checkpoints_of(tmp_path, keep=2)
    for step in (1, 2, 3):
        checkpoints.begin(at_step(start(), step))
        assert step == 1 or step - 1 in checkpoints.steps
    checkpoints.close()
    assert checkpoints.steps == [2, 3]


def test_what_could_not_be_written_is_told_before_the_next(tmp_path, monkeypatch):
    checkpoints = checkpoints_of(tmp_path)
    monkeypatch.setattr(Path, "write_bytes", lambda *_: os.read(-1, 1))
    checkpoints.begin(at_step(start(), 1))
    with pytest.raises(OSError, match="the checkpoint of step 1 could not be written"):
        checkpoints.begin(at_step(start(), 2))
    monkeypatch.undo()
    checkpoints.save(at_step(start(), 2))
    assert checkpoints.steps == [2]


def test_a_full_disk_leaves_the_checkpoints_before_as_they_were(run, monkeypatch):
    def write(path, data, original=Path.write_bytes):
        if path.name == "SHA256SUMS":
            raise OSError("No space left on device")
        return original(path, data)

    monkeypatch.setattr(Path, "write_bytes", write)
    with pytest.raises(OSError, match=r"step 30 could not .*: No space.*is of step 20"):
        checkpoints_of(run).save(at_step(start(), 30))
    monkeypatch.undo()
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"10", "20"}
    assert checkpoints_of(run).restore(start()).step == 20
