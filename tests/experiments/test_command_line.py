"""Tests of experiments.command_line: what a person sees when something fails."""

import subprocess
import sys
from pathlib import Path

import jax
import pytest

from experiments.command_line import did_you_mean, friendly_errors
from experiments.training.errors import UserError


@pytest.mark.parametrize(
    "error",
    [
        UserError("c must be >= 0"),
        FileNotFoundError("no file"),
        OSError("no space left on device"),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"),
    ],
)
def test_an_error_of_the_user_or_the_machine_ends_the_program_in_a_sentence(error):
    with pytest.raises(SystemExit) as end, friendly_errors():
        raise error
    assert end.value.code == f"error: {error}"


@pytest.mark.parametrize(
    "error", [KeyError, ValueError, TypeError, RuntimeError, ImportError]
)
def test_a_fault_of_the_program_keeps_its_traceback(error):
    with pytest.raises(error), friendly_errors():
        raise error("bug")


def test_ctrl_c_ends_the_program_with_130(capsys):
    with pytest.raises(SystemExit) as end, friendly_errors():
        raise KeyboardInterrupt
    assert end.value.code == 130
    assert "stopped" in capsys.readouterr().err


def test_a_name_that_is_nearly_known_is_asked_about():
    known = ("digits-mlp", "mnist-mlp", "cifar10-vgg16")
    assert did_you_mean("digits-mpl", known) == " Did you mean digits-mlp?"
    assert did_you_mean("resnet", known) == ""


HEAVY = ("jax", "flax", "optax", "numpy", "matplotlib", "tensorstore")


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ("experiments.train digits-mlp --help", "--method.c"),
        ("experiments.train digits-mpl", "Did you mean digits-mlp"),
        ("experiments.train digits-mlp --method.c -1", "c must be >= 0"),
        ("experiments.compare --seeds 0", "seeds must be >= 1"),
        ("experiments.sweep digits-mpl", "Did you mean digits-mlp?"),
    ],
)
def test_options_are_read_before_anything_heavy_is_imported(arguments, shown):
    code = (
        "import runpy, sys\n"
        f"sys.modules.update(dict.fromkeys({HEAVY}))  # importing them would fail\n"
        "name, *sys.argv[1:] = sys.argv[1:]\n"
        "runpy.run_module(name, run_name='__main__', alter_sys=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments.split()],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    text = " ".join((done.stdout + done.stderr).replace("│", " ").split())
    assert shown in text
    assert "Traceback" not in text
    assert done.returncode == (0 if arguments.endswith("--help") else done.returncode)
