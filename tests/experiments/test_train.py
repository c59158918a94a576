"""Tests of experiments.train: its command line, and processes that are stopped.

Run as a program, this file is that command line with slow epochs.
"""

import ast
import inspect
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from experiments.train import Options, main, read_options
from experiments.training import config as configs
from experiments.training import session
from experiments.training.config import Adam, Config, Grda, Sgd, Target
from experiments.training.devices import data_mesh
from experiments.training.directory import MetricsFile, read_metrics
from experiments.training.presets import PRESETS

STEPS = 45  # an epoch of the digits


def process_main():
    """The command line on one device, with epochs that leave time for a signal."""

    def append(self, row, original=MetricsFile.append):
        original(self, row)
        time.sleep(0.3)

    MetricsFile.append = append
    session.data_mesh = lambda: data_mesh(jax.devices()[:1])
    main(sys.argv[1:])


def start(*flags, prefix=()):
    """Starts a process with the command line, perhaps by another program."""
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        [*prefix, sys.executable, __file__, *map(str, flags)],
        # As many devices as here: so programs that were compiled serve there too.
        env=os.environ | {"PYTHONPATH": str(root), "JAX_NUM_CPU_DEVICES": "8"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_lines(directory, number, process):
    """Waits until metrics.jsonl has so many lines, and the process still runs."""
    path, deadline = directory / "metrics.jsonl", time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists() and len(path.read_text().splitlines()) >= number:
            return
        time.sleep(0.01)
    process.kill()
    pytest.fail(f"no {number} lines of metrics: {process.communicate()[1]}")


def rows(directory):
    """The lines of metrics.jsonl without the speed."""
    return [
        {name: value for name, value in row.items() if name != "examples_per_second"}
        for row in read_metrics(directory)
    ]


def arrays(directory, epoch):
    """The file with all arrays of a checkpoint."""
    return directory / "checkpoints" / str(epoch * STEPS) / "arrays.safetensors"


def test_a_run_stopped_by_kill_9_and_a_full_disk_ends_as_if_it_had_not(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(session, "data_mesh", lambda: data_mesh(jax.devices()[:1]))
    monkeypatch.setattr("experiments.training.devices.start_processes", lambda *_: None)
    run, whole = tmp_path / "run", tmp_path / "whole"
    flags = ("digits-mlp", "--epochs", "8", "--checkpoint-every", "1", "--output")

    main([*flags, str(whole)])
    process = start(*flags, run)
    wait_for_lines(run, 2, process)
    process.send_signal(signal.SIGSTOP)  # while it sleeps, the directory is its own
    with pytest.raises(SystemExit, match=f"error: another program is writing to {run}"):
        main([*flags, str(run), "--resume"])
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    done = len(rows(run))
    assert 2 <= done < 8
    assert not (run / "summary.json").exists()
    with (run / "metrics.jsonl").open("a") as file:  # cut while it was written
        file.write('{"epoch": 9')

    # Files of at most 16 KiB, a quarter of the weights: writing fails as if full.
    limit = ("bash", "-c", 'ulimit -f 16 && exec "$@"', "bash")
    before = max(int(path.name) for path in (run / "checkpoints").glob("[0-9]*"))
    assert before // STEPS in (done - 1, done)
    process = start(*flags, run, "--resume", prefix=limit)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    (message,) = errors.splitlines()
    assert message.startswith(f"error: the checkpoint of step {before + STEPS} could")
    assert message.endswith(f"The newest complete one is of step {before}")

    main([*flags, str(run), "--resume"])
    printed = capsys.readouterr().out
    assert printed.count("test accuracy 9") == 2
    assert printed.count("of the weights are zero") == 2
    assert rows(run) == rows(whole)
    assert arrays(run, 8).read_bytes() == arrays(whole, 8).read_bytes()


# The command line


def test_a_saved_configuration_is_read_and_changed_by_flags(tmp_path):
    config = Config(method=Target(0.5), epochs=3)
    configs.save(config, tmp_path / "config.json")
    options = read_options([str(tmp_path / "config.json"), "--keep", "4"])
    assert options == Options(config, keep=4)


@pytest.mark.parametrize(
    ("flags", "method"),
    [
        ("digits-mlp", Grda(0.05, 0.6)),
        ("cifar10-vgg16 --method.mu 0.5", Grda(0.0005, 0.5)),
        ("digits-mlp-sgd", Sgd()),
        ("digits-mlp method:adam --epochs 3", Adam()),
        (
            "digits-mlp --epochs 3 method:target --method.sparsity 0.8 --keep 1"
            " --method.groups units",
            Target(0.8, groups="units"),
        ),
        ("digits-mlp-sgd method:grda --method.c 0.01", Grda(0.01)),
    ],
)
def test_a_method_is_that_of_the_preset_or_another(flags, method):
    options = read_options(flags.split())
    assert options.config.method == method
    if "--epochs" in flags:
        assert options.config.epochs == 3


@pytest.mark.parametrize(
    ("flags", "rule"),
    [
        ("--method.c -1", "c must be >= 0 and finite, got -1.0"),
        ("--method.mu 2", "mu must be in (0, 1], got 2.0"),
        ("method:target --method.sparsity 1", "sparsity must be in [0, 1), got 1.0"),
        ("method:sgd --method.c 1", "Unrecognized or misplaced options: --method.c"),
        ("--method.sparsity 0.8", "--method.sparsity FLOAT"),
        ("method:sdg", "method:sgd, method:momentum, method:adam, method:grda"),
        ("--keep 0", "keep must be >= 1, got 0"),
        ("--checkpoint-every 0", "checkpoint_every must be >= 1, got 0"),
        ("--workers -1", "workers must be >= 0, got -1"),
        ("--resume", "resume needs output, the run directory: got None"),
    ],
)
def test_a_wrong_flag_is_answered_with_its_rule(capsys, flags, rule):
    with pytest.raises(SystemExit) as end:
        main(["digits-mlp", *flags.split()])
    assert end.value.code == 2
    assert rule in " ".join(capsys.readouterr().err.replace("│", " ").split())


@pytest.mark.parametrize(
    ("flags", "rule"),
    [
        ("digits-mpl", "got 'digits-mpl'. Did you mean digits-mlp or digits-mlp-sgd?"),
        ("missing.json", "No such file"),
        ("digits-mlp --batch-size 0", "batch_size must be >= 1, got 0"),
        ("digits-mlp --epochs 0", "epochs must be >= 1, got 0"),
        ("digits-mlp --seed -1", "seed must be in [0, 2**31), got -1"),
        ("digits-mlp --dataset missing.npz", "no file "),
        ("digits-mlp --dataset imagenet", "got 'imagenet'"),
        ("digits-mlp --model vgg11", "got 'vgg11'"),
    ],
)
def test_what_cannot_be_used_ends_in_a_sentence_before_anything_is_written(
    tmp_path, monkeypatch, flags, rule
):
    monkeypatch.setattr("experiments.training.devices.start_processes", lambda *_: None)
    preset, *flags = flags.split()
    with pytest.raises(SystemExit) as error:
        main([preset, "--output", str(tmp_path / "run"), *flags])
    assert error.value.code.startswith("error: ")  # printed, and the exit code is 1
    assert rule in error.value.code
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_without_a_preset_the_presets_are_listed(arguments, capsys):
    main(arguments)
    listed = capsys.readouterr().out.split()
    assert set(PRESETS) <= set(listed)


def described_fields(cls):
    """The name of each field of a dataclass, and the string below it."""
    body = ast.parse(inspect.getsource(cls)).body[0].body
    for field, text in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
            yield field.target.id, inspect.cleandoc(ast.literal_eval(text.value))


def test_help_shows_every_field_with_its_meaning_and_default(capsys):
    with pytest.raises(SystemExit) as end:
        main(["cifar10-vgg16", "--help"])
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    fields = {**dict(described_fields(Config)), **dict(described_fields(Options))}
    fields.pop("config")
    fields.pop("method")
    fields |= {f"method.{name}": text for name, text in described_fields(Grda)}
    assert len(fields) >= 22
    for name, meaning in fields.items():
        assert f"--{name.replace('_', '-')}" in text
        assert " ".join(meaning.split()) in text
    assert "(default: vgg16)" in text
    assert "(default: 0.0005)" in text
    assert "method:target gRDA whose threshold is steered" in text


if __name__ == "__main__":
    process_main()
