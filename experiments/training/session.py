"""One training run from its directory to its summary: stopped, resumed and checked."""

import contextlib
import dataclasses
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from experiments.training import config as configs
from experiments.training.checkpoint import Checkpoints
from experiments.training.config import Config
from experiments.training.data import Dataset
from experiments.training.devices import any_process, data_mesh, on_host
from experiments.training.directory import (
    MetricsFile,
    environment,
    lock,
    new_directory,
    plain,
    read_metrics,
    write_json,
)
from experiments.training.errors import UserError
from experiments.training.loop import (
    Epoch,
    FromHost,
    OnDevice,
    Trained,
    open_passes,
    run_epochs,
    train_together,
)
from experiments.training.objective import Metrics
from experiments.training.optimizer import learning_rates
from experiments.training.trainer import Trainer, TrainState, make_trainer
from optax_grda import sparsity_report
from optax_grda.diagnostics import health_warnings

INTERRUPTED = 75  # exit code: stopped by a signal, to be resumed (EX_TEMPFAIL)


class DivergedError(UserError):
    """The training loss, or a weight, became NaN or infinite."""


def train(
    config: Config,
    output: Path | None = None,
    *,
    data_dir: Path | None = None,
    resume: bool = False,
    checkpoint_every: int = 10,
    keep: int | None = 2,
    workers: int = 0,
    tensorboard: bool = False,
    sharded: bool = False,
    stopping: Callable[[], bool] = lambda: False,
) -> Path:
    """Trains a network, or goes on with its training; returns the run directory.

    Args:
      config: the experiment.
      output: the run directory; by default a new one under runs/.
      data_dir: where TFDS keeps its data sets.
      resume: go on from the newest checkpoint in output; start if there is none.
      checkpoint_every: epochs between checkpoints; the last epoch is always saved.
      keep: checkpoints to keep.
      workers: processes that decode a stream's images; 0 means a thread.
      tensorboard: write TensorBoard events too.
      sharded: each device keeps but its part of the state: see devices.fully_sharded.
      stopping: asked after each epoch whether to stop, as a signal does.

    Raises:
      UserError: if the options contradict each other or the run directory, the data are
        damaged, or the loss becomes NaN or infinite.
      FileNotFoundError: if the data are not there.
      OSError: if a checkpoint cannot be written.
      SystemExit: with code 75, if the run was stopped, after saving it.
    """
    mesh, first = data_mesh(), jax.process_index() == 0
    with contextlib.ExitStack() as stack:
        passes = open_passes(config, mesh, data_dir, workers, sharded=sharded)
        stack.enter_context(contextlib.closing(passes))
        directory = run_directory(config, output, resume)
        if first:
            stack.enter_context(lock(directory))
        init = passes.trainer.init
        init = jax.jit(init, out_shardings=passes.trainer.state_sharding())
        state, metrics = init(config.seed), None
        checkpoints = Checkpoints(directory, config, passes.trainer, keep)
        stack.enter_context(contextlib.closing(checkpoints))
        if resume and (restored := checkpoints.restore(state)) is not None:
            state = restored
        if first:
            configs.save(config, directory / "config.json")
            metrics = MetricsFile(directory, tensorboard)
            metrics.drop_after(int(state.step))
        signalled = stack.enter_context(stop_on_signals())
        state = _train_epochs(
            *(config, passes, state, checkpoints, metrics, checkpoint_every),
            stopping=lambda: signalled() or stopping(),
        )
        trained, params = passes.evaluate(state, "train"), on_host(state.params)
        if first:
            write_summary(directory, passes.trainer, trained, params)
    return directory


def _train_epochs(
    config: Config,
    passes: OnDevice | FromHost,
    state: TrainState,
    checkpoints: Checkpoints,
    metrics: MetricsFile | None,
    checkpoint_every: int,
    stopping: Callable[[], bool],
) -> TrainState:
    """Trains the epochs that are left; each is checked, told of, and perhaps saved."""
    rates, before = learning_rates(config), None
    done = int(state.step) // passes.trainer.steps_per_epoch
    left = range(done + 1, config.epochs + 1)
    name = checkpoints.directory.parent.name
    for epoch in run_epochs(passes, state, left, name, stopping):
        state, rate = epoch.state, float(rates[epoch.number - 1])
        check_finite(epoch, rate, checkpoints)
        if metrics is not None and epoch.row is not None:
            metrics.append(line_of_metrics(epoch, rate, passes.trainer))
            for warning in health_warnings(epoch.health, before, jump=0.5):
                text = f"warning: after epoch {epoch.number}, {warning}"
                tqdm.write(text, file=sys.stderr)
            before = epoch.health
        last = epoch.number == config.epochs and epoch.row is not None
        stop = epoch.row is None or (not last and any_process(stopping()))
        if stop or last or epoch.number % checkpoint_every == 0:
            checkpoints.begin(state)
        if stop or last:
            checkpoints.wait()
        if stop:
            print(
                f"stopped after step {int(state.step)} and saved; "
                f"go on with --output {checkpoints.directory.parent} --resume",
                file=sys.stderr,
            )
            sys.exit(INTERRUPTED)
    return state


def train_seeds(
    config: Config,
    dataset: Dataset,
    seeds: Sequence[int],
    output: Path,
    checkpoint_every: int = 10,
) -> Trained:
    """Trains one network with several seeds at once, in one program on one device.

    Args:
      config: of all runs, but for the seed.
      dataset: what they train on.
      seeds: a run each.
      output: OUTPUT-SEED is the run directory of each, as train would leave it.
      checkpoint_every: epochs between checkpoints; the last epoch is always saved.

    Returns:
      What train_together returns, with an axis of seeds.
    """
    configurations = [dataclasses.replace(config, seed=seed) for seed in seeds]
    directories = [output.with_name(f"{output.name}-{seed}") for seed in seeds]
    for configuration, directory in zip(configurations, directories, strict=True):
        (directory / "checkpoints").mkdir(parents=True)
        configs.save(configuration, directory / "config.json")
    rates = learning_rates(config)
    trainer = make_trainer(config, dataset.num_classes, dataset.num_examples)

    def after(epoch: Epoch) -> None:
        rate, last = float(rates[epoch.number - 1]), epoch.number == config.epochs
        if save := last or epoch.number % checkpoint_every == 0:
            key, state = epoch.state.key, jax.device_get(epoch.state._replace(key=()))
        for run, (configuration, directory) in enumerate(
            zip(configurations, directories, strict=True)
        ):
            mine = epoch._replace(
                row={name: values[run] for name, values in epoch.row.items()},
                steps=jax.tree.map(lambda x, run=run: x[run], epoch.steps),
                seconds=epoch.seconds / len(seeds),
            )
            MetricsFile(directory).append(line_of_metrics(mine, rate, trainer))
            if save:
                alone = jax.tree.map(lambda x, run=run: x[run], state)
                alone = alone._replace(key=key[run])
                checkpoints = Checkpoints(directory, configuration, trainer)
                with contextlib.closing(checkpoints):
                    checkpoints.save(alone)

    name = f"{config.method.name:4}"
    trained = train_together(config, dataset, [config.method], seeds, name, after)
    ends = trained.passes.evaluate(trained.state, "train"), trained.state.params
    ends = jax.device_get(ends)
    for run, directory in enumerate(directories):
        write_summary(
            directory, trainer, *jax.tree.map(lambda x, run=run: x[run], ends)
        )
    return trained


def line_of_metrics(epoch: Epoch, rate: float, trainer: Trainer) -> dict[str, Any]:
    """What metrics.jsonl tells of an epoch of one run at a learning rate."""
    examples = min(len(epoch.steps.loss) * trainer.batch_size, trainer.num_examples)
    return {
        "epoch": epoch.number,
        "learning_rate": rate,
        **plain(epoch.row),
        "examples_per_second": examples / epoch.seconds,
    }


def check_finite(epoch: Epoch, rate: float, checkpoints: Checkpoints) -> None:
    """Raises DivergedError unless all losses and all weights are finite.

    A step whose gradient is NaN has a finite loss: only the next loss would tell.
    """
    finite = np.append(np.isfinite(epoch.steps.loss), epoch.health.finite)
    if not finite.all():
        checkpoints.wait()
        step = int(epoch.state.step) - len(epoch.steps.loss) + int(finite.argmin())
        saved = checkpoints.steps
        raise DivergedError(
            f"the training loss or a weight became NaN or infinite after step {step}, "
            f"at learning rate {rate:g}. Try a smaller --learning-rate, or another "
            f"--seed. Newest checkpoint: {f'of step {saved[-1]}' if saved else 'none'}"
        )


def write_summary(
    directory: Path, trainer: Trainer, trained: Metrics, params: Any
) -> None:
    """Writes summary.json of a finished run.

    It holds the last line of metrics; loss and accuracy on all training inputs; the
    seconds that all epochs trained; sparsity leaf by leaf; hardware and versions.

    Args:
      directory: of the run.
      trainer: of the run.
      trained: of the final weights in evaluation mode on the training inputs.
      params: the final weights, on the host.
    """
    rows = read_metrics(directory)
    seconds = (trainer.num_examples / row["examples_per_second"] for row in rows)
    summary = {
        **rows[-1],
        "train_loss": float(trained.loss),
        "train_accuracy": float(trained.accuracy),
        "seconds": sum(seconds),
        "sparsity_report": sparsity_report(params).to_dict(),
        "environment": environment(),
    }
    write_json(directory / "summary.json", summary)


def run_directory(config: Config, output: Path | None, resume: bool) -> Path:
    """The run directory, new unless the run is resumed; process 0 makes it."""
    if output is None and jax.process_count() > 1:
        raise UserError("output must be given where several processes train together")
    resumed = resume and (output / "checkpoints").exists()
    if jax.process_index() == 0 and not resumed:
        output = new_directory(output, f"{config.model}-{config.method.name}")
        (output / "checkpoints").mkdir()
    return output


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
