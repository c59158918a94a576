"""Tests of experiments.training.devices: real processes train one network together.

Run as a program, this file is one of them: the command line of experiments.train, which
also tells what it holds and writes.
"""

import dataclasses
import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from experiments.train import main
from experiments.training.checkpoint import Checkpoints
from experiments.training.config import Config
from experiments.training.devices import (
    any_process,
    data_mesh,
    fully_sharded,
    on_host,
    start_processes,
)
from experiments.training.directory import read_metrics
from experiments.training.errors import UserError
from experiments.training.session import run_directory
from experiments.training.trainer import make_trainer

CONFIG = Config(epochs=5000)
STEPS = 45  # an epoch of the digits


def digest(state):
    """What tells whether two states are the same to the bit."""
    arrays = jax.tree.leaves(on_host((state.step, state.params, state.opt_state)))
    return hashlib.sha256(b"".join(x.tobytes() for x in arrays)).hexdigest()


def process_main():
    """One of the processes: prints a digest a checkpoint, and the paths it opens."""

    def begin(self, state, original=Checkpoints.begin):
        print("holds", int(state.step), digest(state), flush=True)
        original(self, state)

    def audit(event, args):
        if event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR):
            opened.add(str(args[0]))

    opened = set()
    Checkpoints.begin = begin
    sys.addaudithook(audit)
    try:
        main(sys.argv[1:])
    finally:
        print("opened", *sorted(opened), sep="\n", flush=True)


class Pair:
    """Two processes that train together, from their start to their end."""

    def __init__(self, run, *flags):
        self.run = run
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        flags = (
            *("digits-mlp", "--epochs", str(CONFIG.epochs), "--output", str(run)),
            *("--checkpoint-every", "1", "--keep", "1000", "--coordinator", address),
            *(*flags, "--num-processes", "2", "--process-id"),
        )
        root = Path(__file__).parents[3]
        self.processes = [
            subprocess.Popen(
                [sys.executable, __file__, *flags, number],
                # Most of the time would go to optimising programs that run briefly.
                env=os.environ
                | {
                    "PYTHONPATH": str(root),
                    "XLA_FLAGS": "--xla_backend_optimization_level=0 "
                    "--xla_llvm_disable_expensive_passes=true",
                },
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for number in ("0", "1")
        ]

    def wait_for_lines(self, number):
        """Waits until metrics.jsonl has so many lines, and both processes still run."""
        deadline = time.monotonic() + 240
        path = self.run / "metrics.jsonl"
        while time.monotonic() < deadline and not any(p.poll() for p in self.processes):
            if path.exists() and len(path.read_text().splitlines()) >= number:
                return
            time.sleep(0.01)
        for process in self.processes:
            process.kill()
        pytest.fail(f"no {number} lines of metrics: {self.outputs()}")

    def outputs(self):
        """What each process printed, at its end."""
        return [process.communicate(timeout=240)[0] for process in self.processes]

    def codes(self):
        """Exit codes."""
        return [process.returncode for process in self.processes]


def digests(*outputs):
    lines = (line.split() for output in outputs for line in output.splitlines())
    return {int(line[1]): line[2] for line in lines if line[:1] == ["holds"]}


def written(output, run):
    lines = output.partition("opened\n")[2].splitlines()
    return {Path(line) for line in lines if Path(line).is_relative_to(run)}


@dataclasses.dataclass
class Together:
    """A run by two processes: one was killed; resumed, it was stopped through one.

    The second time, each keeps but its part of the state.
    """

    run: Path
    killed: list[str]  # what each process printed
    killed_codes: list[int]
    seconds: float  # that the other took to end
    stopped: list[str]
    stopped_codes: list[int]


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "together"
    first = Pair(run)
    first.wait_for_lines(2)
    first.processes[1].kill()
    start = time.monotonic()
    killed = first.outputs()
    seconds = time.monotonic() - start
    second = Pair(run, "--resume", "--sharding", "fully-sharded")
    second.wait_for_lines(len(digests(*killed)) + 2)
    second.processes[1].terminate()
    stopped = second.outputs()
    return Together(run, killed, first.codes(), seconds, stopped, second.codes())


def test_when_a_process_is_killed_the_other_ends_too(together):
    assert together.seconds < 60
    survivor, victim = together.killed_codes
    assert victim == -signal.SIGKILL
    assert survivor not in (0, 75)
    output = together.killed[0]
    assert "Connection reset by peer" in output or "another task died" in output


def test_a_signal_to_one_process_stops_both_at_the_same_step(together):
    assert together.stopped_codes == [75, 75], together.stopped
    steps = [max(digests(output)) for output in together.stopped]
    assert steps[0] == steps[1]
    for output in together.stopped:
        assert f"stopped after step {steps[0]} and saved" in output
        assert f"go on with --output {together.run} --resume" in output
        assert "is damaged" not in output


def test_two_processes_agree_with_each_other_to_the_bit(together):
    assert digests(together.stopped[0]) == digests(together.stopped[1])
    known = digests(*together.killed, *together.stopped)
    assert list(known) == list(range(STEPS, max(known) + 1, STEPS))
    run = checkpoints(together.run)
    assert set(run.steps) <= set(known)
    for step in (run.steps[0], run.steps[-1]):
        assert digest(run.read(step, first_state())) == known[step]


def test_two_processes_agree_with_one_to_rounding(together, demo_run):
    rows = read_metrics(together.run)[:5]
    # The demo's runs have one device, where sums differ by some roundings of 6e-8 a
    # step, which 225 steps pass on and enlarge.
    for row, expected in zip(rows, read_metrics(demo_run / "grda-0"), strict=False):
        assert row.keys() == expected.keys()
        for name in row.keys() - {"examples_per_second"}:
            np.testing.assert_allclose(row[name], expected[name], rtol=1e-3, atol=1e-4)


def checkpoints(run):
    return Checkpoints(run, CONFIG, make_trainer(CONFIG, 10, 1437))


def first_state():
    shapes = jax.eval_shape(make_trainer(CONFIG, 10, 1437).init, 0)._replace(key=None)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return zeros._replace(key=jax.random.key(0))


def test_process_0_alone_writes(together):
    zero, one = together.stopped
    assert together.run / "metrics.jsonl" in written(zero, together.run)
    assert written(one, together.run) == set()


def test_a_process_alone_is_asked_itself():
    assert any_process(True)
    assert not any_process(False)


def test_the_mesh_has_all_devices_or_those_given():
    assert data_mesh().shape == {"data": 8}
    assert data_mesh(jax.devices()[:2]).shape == {"data": 2}


def test_arrays_are_split_along_their_longest_axis_that_the_devices_divide():
    mesh = data_mesh()
    shapes = {"kernel": (3, 3, 16, 32), "wide": (64, 10), "odd": (9, 10), "bias": (64,)}
    tree = {
        name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()
    }
    specs = {name: place.spec for name, place in fully_sharded(mesh, tree).items()}
    assert specs == {
        "kernel": PartitionSpec(None, None, None, "data"),
        "wide": PartitionSpec("data"),
        "odd": PartitionSpec(),
        "bias": PartitionSpec(),
    }


def test_arrays_on_the_host_outlive_those_that_are_donated():
    array = jnp.arange(8.0)
    (copy,) = on_host([array])
    jax.jit(lambda x: x * 0, donate_argnums=0)(array)
    assert array.is_deleted()
    np.testing.assert_array_equal(copy, np.arange(8.0))


@pytest.mark.parametrize("given", [("localhost:1234", None, 0), (None, 2, None)])
def test_the_place_of_a_process_is_given_whole_or_not_at_all(given):
    with pytest.raises(UserError, match="must be given together, got"):
        start_processes(*given)


def test_several_processes_must_agree_on_a_directory(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="output must be given where several"):
        run_directory(CONFIG, None, resume=False)


if __name__ == "__main__":
    process_main()
