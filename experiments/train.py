"""Trains one network: a row of the paper by its name, or any configuration.

    python -m experiments.train PRESET [--field value ...]
    python -m experiments.train runs/NAME/config.json [--field value ...]

Without a preset, or with --help in its place, the presets are listed. A run directory
holds config.json, metrics.jsonl (a line an epoch), checkpoints/ and, at the end,
summary.json. Ctrl-C and SIGTERM save a checkpoint and exit with code 75; --resume goes
on from the newest one, to the bit.
"""

import contextlib
import dataclasses
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import optax
import tyro

from experiments.training import config as configs
from experiments.training import logger
from experiments.training.checkpoint import Checkpoints
from experiments.training.config import Config
from experiments.training.devices import (
    any_process,
    data_mesh,
    replicated,
    start_processes,
)
from experiments.training.optimizer import learning_rates
from experiments.training.presets import PRESETS
from experiments.training.sources import Source, open_source
from experiments.training.trainer import Metrics, Trainer, TrainState
from optax_grda import sparsity_report
from optax_grda.diagnostics import health, health_warnings

INTERRUPTED = 75  # exit code: stopped by a signal, to be resumed (EX_TEMPFAIL)


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
    """Go on from the newest checkpoint in --output; start if there is none."""
    checkpoint_every: int = 10
    """Epochs between checkpoints; the last epoch is always saved."""
    keep: int = 2
    """Checkpoints to keep."""
    workers: int = 8
    """Processes of each host that decode ImageNet's images; 0 means a thread."""
    tensorboard: bool = False
    """Write TensorBoard events too."""
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


class DivergedError(ValueError):
    """The training loss became NaN or infinite."""


def train(options: Options, stopping: Callable[[], bool] = lambda: False) -> Path:
    """Trains a network, or goes on with its training; returns the run directory.

    Args:
      options: what to train, and where its files are.
      stopping: asked after each epoch whether to stop, as a signal does.

    Raises:
      ValueError: if the options contradict each other or the run directory, or the loss
        becomes NaN or infinite.
      FileNotFoundError: if the data are not there.
      OSError: if a checkpoint cannot be written.
      SystemExit: with code 75, if the run was stopped, after saving it.
    """
    config, mesh = options.config, data_mesh()
    source = open_source(config, options.data_dir, mesh, options.workers)
    init = jax.jit(source.trainer.init, out_shardings=replicated(mesh))
    state = init(config.seed)
    directory = run_directory(options)
    checkpoints = Checkpoints(directory, config, options.keep)
    if options.resume and (restored := checkpoints.restore(state)) is not None:
        state = restored
    if jax.process_index() == 0:
        configs.save(config, directory / "config.json")
    metrics = logger.MetricsFile(directory, options.tensorboard)
    metrics.drop_after(int(state.step))
    with stop_on_signals() as signalled, contextlib.closing(source):
        state = run_epochs(
            *(options, source, state, checkpoints, metrics),
            stopping=lambda: signalled() or stopping(),
        )
    if jax.process_index() == 0:
        summary = summarize(logger.read_metrics(directory), source.trainer, state)
        logger.write_json(directory / "summary.json", summary)
        print(f"finished; metrics and checkpoints are in {directory}")
    return directory


def run_epochs(
    options: Options,
    source: Source,
    state: TrainState,
    checkpoints: Checkpoints,
    metrics: logger.MetricsFile,
    stopping: Callable[[], bool],
) -> TrainState:
    """All epochs that are left, with a line of metrics each and checkpoints between."""
    trainer, epochs = source.trainer, options.config.epochs
    rates, report = learning_rates(options.config), jax.jit(trainer.report)
    check_up = jax.jit(health)
    done, record = int(state.step) // trainer.steps_per_epoch, None
    with logger.progress_bar(epochs, checkpoints.directory.name, done) as bar:
        for epoch in range(done + 1, epochs + 1):
            start = time.perf_counter()
            state, steps = source.epoch(state, stopping)
            check_finite(steps, state, rates[epoch - 1], checkpoints)
            whole = int(state.step) == epoch * trainer.steps_per_epoch
            if whole:
                seconds = time.perf_counter() - start
                row = {"epoch": epoch, "learning_rate": float(rates[epoch - 1])}
                scalars = report(state, steps, source.evaluate(state))
                row |= {name: x.item() for name, x in scalars.items()}
                images = min(len(steps.loss) * trainer.batch_size, trainer.num_examples)
                row |= {"images_per_second": images / seconds}
                metrics.append([row])
                before, record = record, jax.device_get(check_up(state.params))
                if jax.process_index() == 0:
                    for warning in health_warnings(record, before, jump=0.5):
                        text = f"warning: after epoch {epoch}, {warning}"
                        bar.write(text, file=sys.stderr)
                bar.set_postfix(
                    test=f"{row['test_accuracy']:.2%}", zero=f"{row['sparsity']:.2%}"
                )
                bar.update()
            stop = not whole or (epoch < epochs and any_process(stopping()))
            if stop or epoch == epochs or epoch % options.checkpoint_every == 0:
                checkpoints.save(state)
            if stop:
                print(
                    f"stopped after step {int(state.step)} and saved; "
                    f"go on with --output {checkpoints.directory} --resume",
                    file=sys.stderr,
                )
                sys.exit(INTERRUPTED)
    return state


def check_finite(
    steps: Metrics, state: TrainState, rate: float, checkpoints: Checkpoints
) -> None:
    """Raises DivergedError if a loss, or a weight now, is NaN or infinite."""
    # A step whose gradient is NaN has a finite loss: only the next loss would tell.
    values = np.append(steps.loss, jax.jit(optax.tree.norm)(state.params))
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        step = int(state.step) - len(steps.loss) + int(bad[0])
        saved = checkpoints.steps
        raise DivergedError(
            f"the training loss or a weight became {values[bad[0]]} after step {step}, "
            f"at learning rate {rate:g}. Try a smaller --learning-rate, or another "
            f"--seed. Newest checkpoint: {f'of step {saved[-1]}' if saved else 'none'}"
        )


def summarize(rows: list[dict], trainer: Trainer, state: TrainState) -> dict:
    """summary.json: the last line of metrics, the seconds that all epochs trained,
    sparsity leaf by leaf, hardware and versions.
    """
    seconds = sum(trainer.num_examples / row["images_per_second"] for row in rows)
    return {
        **rows[-1],
        "seconds": seconds,
        "sparsity_report": sparsity_report(jax.device_get(state.params)).to_dict(),
        "environment": logger.environment(),
    }


def run_directory(options: Options) -> Path:
    """The run directory, new unless the run is resumed; process 0 makes it."""
    directory = options.output
    if directory is None and jax.process_count() > 1:
        raise ValueError("output must be given where several processes train together")
    resumed = options.resume and (directory / "checkpoints").exists()
    if jax.process_index() == 0 and not resumed:
        name = f"{options.config.model}-{options.config.optimizer}"
        directory = logger.new_directory(directory, name)
    return directory


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Yields what tells whether SIGTERM or SIGINT came; a second one stops at once."""
    received = []

    def note(number, frame):
        if received:
            raise KeyboardInterrupt
        received.append(number)
        # Not print, which a handler must not call while the program prints.
        os.write(2, b"\nstopping after this epoch; again to stop at once\n")

    before = {s: signal.signal(s, note) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def read_options(arguments: list[str]) -> Options:
    """A preset or the path of a saved configuration, and flags that change it."""
    name, *flags = arguments
    if name in PRESETS:
        config = PRESETS[name]
    elif name.endswith(".json"):
        config = configs.load(Path(name))
    else:
        raise ValueError(
            f"PRESET must be a .json file or one of {', '.join(PRESETS)}: got {name!r}"
        )
    return tyro.cli(
        Options,
        args=flags,
        default=Options(config=config),
        prog=f"python -m experiments.train {name}",
    )


def main(arguments: list[str]) -> None:
    """The command line."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__, "presets:", *PRESETS, sep="\n  ")
        print("\nPRESET --help shows every field.")
        return
    with logger.friendly_errors():
        options = read_options(arguments)
        start_processes(options.coordinator, options.num_processes, options.process_id)
        train(options)


if __name__ == "__main__":
    main(sys.argv[1:])
