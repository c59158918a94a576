"""Tests of experiments.devices: two real processes train one network together.

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
import numpy as np
import pytest

from experiments.train import Options, main, run_directory, train
from experiments.training.checkpoint import Checkpoints
from experiments.training.config import Config
from experiments.training.devices import any_process, data_mesh, start_processes
from experiments.training.directory import read_metrics

CONFIG = Config(epochs=8)


def digest(state):
    """What tells whether two states are the same to the bit."""
    arrays = map(
        np.asarray, jax.tree.leaves((state.step, state.params, state.opt_state))
    )
    return hashlib.sha256(b"".join(x.tobytes() for x in arrays)).hexdigest()


def process_main():
    """One of the processes: prints a digest a checkpoint, and the paths it opens."""

    def save(self, state, original=Checkpoints.save):
        print("holds", int(state.step), digest(state), flush=True)
        original(self, state)

    def audit(event, args):
        if event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR):
            opened.add(str(args[0]))

    opened = set()
    Checkpoints.save = save
    sys.addaudithook(audit)
    try:
        main(sys.argv[1:])
    finally:
        print("opened", *sorted(opened), sep="\n", flush=True)


class Pair:
    """Two processes that train together, from their start to their end."""

    def __init__(self, run, epochs, *flags):
        self.run = run
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        flags = (
            *("digits-mlp", "--epochs", str(epochs), "--output", str(run), *flags),
            *("--checkpoint-every", "1", "--coordinator", address),
            *("--num-processes", "2", "--process-id"),
        )
        root = Path(__file__).parents[3]
        self.processes = [
            subprocess.Popen(
                [sys.executable, __file__, *flags, number],
                env=os.environ | {"PYTHONPATH": str(root)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for number in ("0", "1")
        ]

    def wait_for_lines(self, number):
        """Waits until metrics.jsonl has so many lines, and both processes still run."""
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline and not any(p.poll() for p in self.processes):
            path = self.run / "metrics.jsonl"
            if path.exists() and len(read_metrics(self.run)) >= number:
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


def digests(output):
    lines = (line.split() for line in output.splitlines())
    return {int(line[1]): line[2] for line in lines if line[:1] == ["holds"]}


def written(output, run):
    lines = output.partition("opened\n")[2].splitlines()
    return {Path(line) for line in lines if Path(line).is_relative_to(run)}


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """A run by two processes, stopped through the second and resumed by both."""
    run = tmp_path_factory.mktemp("runs") / "together"
    first = Pair(run, CONFIG.epochs)
    first.wait_for_lines(2)
    first.processes[1].terminate()
    stopped = first.outputs()
    second = Pair(run, CONFIG.epochs, "--resume")
    finished = second.outputs()
    return run, (first.codes(), stopped), (second.codes(), finished)


def test_a_signal_to_one_process_stops_both_at_the_same_step(together):
    _, (codes, outputs), _ = together
    assert codes == [75, 75], outputs
    steps = [max(digests(output)) for output in outputs]
    assert steps[0] == steps[1] < 45 * CONFIG.epochs
    for output in outputs:
        assert f"stopped after step {steps[0]} and saved" in output


def test_two_processes_agree_with_each_other_to_the_bit(together):
    _, (_, stopped), (codes, finished) = together
    assert codes == [0, 0], finished
    assert digests(stopped[0]) == digests(stopped[1])
    assert digests(finished[0]) == digests(finished[1])
    steps = digests(stopped[0]) | digests(finished[0])
    assert list(steps) == [45 * epoch for epoch in range(1, CONFIG.epochs + 1)]


def test_two_processes_agree_with_one_to_rounding(together, tmp_path):
    run = together[0]
    alone = train(Options(CONFIG, output=tmp_path / "alone"))
    # Sums over 8 devices here and over 2 there differ by some roundings of 6e-8 a step,
    # which 360 steps pass on and enlarge.
    tolerances = {"rtol": 1e-3, "atol": 1e-4}
    for row, expected in zip(read_metrics(run), read_metrics(alone), strict=True):
        assert row.keys() == expected.keys()
        for name in row.keys() - {"images_per_second"}:
            np.testing.assert_allclose(row[name], expected[name], **tolerances)
    state, expected = restore(run), restore(alone)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, **tolerances),
        state.params,
        expected.params,
    )


def restore(run, config=CONFIG):
    template = jax.jit(Trainer(config, 10, 1437).init)(0)
    return Checkpoints(run, config, keep=2).restore(template)


def test_process_0_alone_writes(together):
    run, *parts = together
    for _, (zero, one) in parts:
        assert run / "metrics.jsonl" in written(zero, run)
        assert written(one, run) == set()
    files = [path.relative_to(run) for path in run.rglob("*") if path.is_file()]
    assert not any("process_1" in str(path) for path in files)


def test_when_a_process_is_killed_the_other_ends_and_checkpoints_are_whole(
    tmp_path, capsys
):
    pair = Pair(tmp_path / "run", 5000)
    pair.wait_for_lines(2)
    pair.processes[1].kill()
    start = time.monotonic()
    survivor, victim = pair.outputs()
    assert time.monotonic() - start < 60
    assert pair.codes()[1] == -signal.SIGKILL
    assert pair.codes()[0] not in (0, 75)
    assert "Connection reset by peer" in survivor or "another task died" in survivor

    state = restore(pair.run, dataclasses.replace(CONFIG, epochs=5000))
    assert capsys.readouterr().err == ""  # none is damaged
    held = digests(survivor) | digests(victim)
    assert digest(state) == held[int(state.step)]


def test_a_process_alone_is_asked_itself():
    assert any_process(True)
    assert not any_process(False)


def test_the_mesh_has_all_devices_or_those_given():
    assert data_mesh().shape == {"data": 8}
    assert data_mesh(jax.devices()[:2]).shape == {"data": 2}


@pytest.mark.parametrize("given", [("localhost:1234", None, 0), (None, 2, None)])
def test_the_place_of_a_process_is_given_whole_or_not_at_all(given):
    with pytest.raises(ValueError, match="must be given together, got"):
        start_processes(*given)


def test_several_processes_must_agree_on_a_directory(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="output must be given where several"):
        run_directory(Options(CONFIG))


if __name__ == "__main__":
    process_main()
