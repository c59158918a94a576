"""Trains one network: a row of the paper by its name, or any configuration.

    python -m experiments.train PRESET [METHOD] [--field value ...]
    python -m experiments.train runs/NAME/config.json [--field value ...]

Without a preset, or with --help in its place, the presets are listed. METHOD is another
method than the preset's, as in

    python -m experiments.train digits-mlp method:target --method.sparsity 0.8

A run directory holds config.json, metrics.jsonl (a line an epoch), checkpoints/ and, at
the end, summary.json. Ctrl-C and SIGTERM save a checkpoint and exit with code 75;
--resume goes on from the newest one, to the bit.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from experiments.command_line import did_you_mean, friendly_errors
from experiments.training import config as configs
from experiments.training.config import Config
from experiments.training.errors import UserError
from experiments.training.presets import PRESETS


@dataclasses.dataclass(frozen=True)
class Options:
    """What to train, and where its files are."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    """The experiment."""
    data_dir: Path | None = None
    """Where TFDS keeps its data sets; by default TFDS's own choice."""
    output: Path | None = None
    """Run directory; by default a new one under runs/. Nothing is overwritten."""
    resume: bool = False
    """Go on from the newest checkpoint in --output; start if there is none. More
    --epochs than before are fine, where the epochs so far do not depend on them."""
    checkpoint_every: int = 10
    """Epochs between checkpoints; the last epoch is always saved."""
    keep: int = 2
    """Checkpoints to keep."""
    workers: int = 8
    """Processes of each host that decode ImageNet's images; 0 means a thread."""
    tensorboard: bool = False
    """Write TensorBoard events too."""
    sharding: Literal["replicated", "fully-sharded"] = "replicated"
    """What each device keeps between steps: the whole state, or its part of it."""
    coordinator: str | None = None
    """Several hosts: HOST:PORT of process 0. Not needed on Slurm and TPU pods."""
    num_processes: int | None = None
    """Several hosts: how many processes train together."""
    process_id: int | None = None
    """Several hosts: which of them this is, from 0."""

    def __post_init__(self):
        for name in ("checkpoint_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.workers < 0:
            raise ValueError(f"workers must be >= 0, got {self.workers}")
        if self.resume and self.output is None:
            raise ValueError("resume needs output, the run directory: got None")


def read_options(arguments: list[str]) -> Options:
    """A preset or the path of a saved configuration, and flags that change it."""
    name, *flags = arguments
    if name in PRESETS:
        config = PRESETS[name]
    elif name.endswith(".json"):
        config = configs.load(Path(name))
    else:
        raise UserError(
            f"PRESET must be a preset or a .json file, got {name!r}."
            f"{did_you_mean(name, PRESETS)} python -m experiments.train lists them all"
        )
    try:
        return tyro.cli(
            Options,
            args=flags,
            default=Options(config=config),
            prog=f"python -m experiments.train {name}",
            config=(tyro.conf.CascadeSubcommandArgs,),
        )
    except ValueError as error:  # a value breaks a rule of Config
        raise UserError(str(error)) from error


def run(options: Options) -> None:
    """Trains, and says what came of it."""
    import math

    import jax

    import models
    from experiments.training.devices import start_processes
    from experiments.training.directory import read_json
    from experiments.training.session import train

    start_processes(options.coordinator, options.num_processes, options.process_id)
    directory = train(
        options.config,
        options.output,
        data_dir=options.data_dir,
        resume=options.resume,
        checkpoint_every=options.checkpoint_every,
        keep=options.keep,
        workers=options.workers,
        tensorboard=options.tensorboard,
        sharded=options.sharding == "fully-sharded",
    )
    if jax.process_index() == 0:
        summary = read_json(directory / "summary.json")
        perplexity = ""
        if models.spec(options.config.model).is_text:
            perplexity = f"perplexity {math.exp(summary['test_loss']):.2f} a byte, "
        print(
            f"test accuracy {summary['test_accuracy']:.2%}, {perplexity}"
            f"{summary['sparsity']:.2%} of the weights are zero; "
            f"metrics and checkpoints are in {directory}"
        )


def main(arguments: list[str]) -> None:
    """The command line."""
    if not arguments or arguments[0] in ("-h", "--help"):
        lines = (f"  {name:38} {PRESETS[name].method.label}" for name in PRESETS)
        print(__doc__, "Presets:", *lines, "", sep="\n")
        print("PRESET --help shows every field.")
        return
    with friendly_errors():
        run(read_options(arguments))


if __name__ == "__main__":
    main(sys.argv[1:])
