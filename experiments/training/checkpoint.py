"""Checkpoints of a training run: arrays and configuration, and digests of both.

DIRECTORY/checkpoints/STEP holds arrays.safetensors, config.json and SHA256SUMS, of
which `sha256sum --check` makes sense as well. The place in the data follows from the
step, so that the training state is all there is. A checkpoint of gRDA, or of its
threshold steered to a sparsity, does not hold the weights: they are the accumulator,
thresholded.
"""

import hashlib
import json
import shutil
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import safetensors.numpy

from experiments.training.config import Config, obstacles, to_dict
from experiments.training.devices import any_process, on_host
from experiments.training.errors import UserError
from experiments.training.trainer import Trainer, TrainState

ARRAYS, CONFIG, SUMS = "arrays.safetensors", "config.json", "SHA256SUMS"


class DamagedError(UserError):
    """A checkpoint whose files are not as they were written."""


class Checkpoints:
    """The checkpoints of a run directory, one an epoch at most.

    A checkpoint is written beside its final name and renamed when it is complete, so
    that a run that dies while it writes leaves the checkpoints before it as they were.
    What a machine lost that died, the digests tell.

    Writing takes place in a thread, so that training goes on meanwhile: what `begin`
    was given is complete, or the error is raised, when `wait` returns.
    """

    def __init__(
        self,
        directory: Path,
        config: Config,
        trainer: Trainer,
        keep: int | None = None,
    ):
        """Names where they are; reads and writes nothing.

        Args:
          directory: of the run.
          config: of the run, to be kept with each.
          trainer: of the run.
          keep: how many to keep, the newest; None means all.
        """
        self.directory = directory / "checkpoints"
        self.config = config
        self.trainer = trainer
        self.keep = keep
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._begun: tuple[int, Future[None] | None] | None = None

    @property
    def steps(self) -> list[int]:
        """The steps after which complete checkpoints were made, oldest first."""
        names = (path.name for path in self.directory.glob("*/"))
        return sorted(int(name) for name in names if name.isdecimal())

    def begin(self, state: TrainState) -> None:
        """Begins to write a checkpoint in process 0, when the one before is complete.

        All processes call this together. On return the state may be donated.

        Args:
          state: the training state.

        Raises:
          OSError: see wait, of the one before.
        """
        self.wait()
        step, arrays, written = int(state.step), on_host(self._compact(state)), None
        if jax.process_index() == 0:
            written = self._thread.submit(self._write, step, arrays)
        self._begun = step, written

    def wait(self) -> None:
        """Returns when what was begun is complete, and those too many are removed.

        All processes call this together.

        Raises:
          OSError: if it cannot be written, for example because the disk is full. The
            checkpoints before it remain.
        """
        if self._begun is None:
            return
        (step, written), self._begun = self._begun, None
        error = written and written.exception()
        if error is not None and not isinstance(error, OSError):
            raise error
        if any_process(error is not None):
            raise OSError(
                f"the checkpoint of step {step} could not be written to "
                f"{self.directory}: {error or 'process 0 failed'}. The newest complete "
                f"one is of step {self.steps[-1] if self.steps else 'none'}"
            ) from error

    def save(self, state: TrainState) -> None:
        """Writes a checkpoint, and returns when it is complete.

        Raises:
          OSError: see wait.
        """
        self.begin(state)
        self.wait()

    def close(self) -> None:
        """Ends the thread, after what it writes."""
        self._thread.shutdown()

    def restore(self, like: TrainState) -> TrainState | None:
        """Reads the newest checkpoint that can be read.

        One that is damaged is named on standard error, and the one before it is tried.

        Args:
          like: a state with the shapes, dtypes and shardings to restore to.

        Returns:
          The training state, or None if there is no checkpoint.

        Raises:
          UserError: if a checkpoint is of another configuration, with which the run
            cannot go on; the error names the fields that differ. If there are
            checkpoints and all are damaged.
        """
        for step in reversed(self.steps):
            try:
                files = self._read(step)
            except DamagedError as error:
                print(f"warning: {error}; it is skipped", file=sys.stderr)
                continue
            if fields := obstacles(json.loads(files[CONFIG]), self.config):
                raise UserError(
                    f"the checkpoint of step {step} in {self.directory} is of another "
                    f"configuration and is not resumed; {'; '.join(fields)}"
                )
            return self._unpack(files[ARRAYS], like)
        if self.steps:
            raise UserError(
                f"none of the checkpoints in {self.directory} can be read: {self.steps}"
            )
        return None

    def read(self, step: int, like: TrainState) -> TrainState:
        """Reads the checkpoint of one step, into arrays like those of a state.

        Raises:
          DamagedError: if its files are not as they were written.
        """
        return self._unpack(self._read(step)[ARRAYS], like)

    def _write(self, step: int, arrays: TrainState) -> None:
        config = json.dumps(to_dict(self.config), indent=2)
        files = {ARRAYS: safetensors.numpy.save(dict(_named(arrays)))}
        files[CONFIG] = config.encode()
        sums = (f"{_digest(data)}  {name}\n" for name, data in files.items())
        files[SUMS] = "".join(sums).encode()
        self.directory.mkdir(parents=True, exist_ok=True)
        temporary = self.directory / f"{step}.tmp"
        for path in self.directory.glob("*.tmp"):  # of runs that died
            shutil.rmtree(path)
        temporary.mkdir()
        try:
            for name, data in files.items():
                (temporary / name).write_bytes(data)
            for skipped in self.steps:  # damaged ones, or else this would be the past
                if skipped >= step:
                    shutil.rmtree(self.directory / str(skipped))
            temporary.rename(self.directory / str(step))
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        for old in self.steps[: -self.keep] if self.keep else ():
            shutil.rmtree(self.directory / str(old))

    def _read(self, step: int) -> dict[str, bytes]:
        """The files of a checkpoint, which are as they were written."""
        directory = self.directory / str(step)
        try:
            files = {name: (directory / name).read_bytes() for name in (ARRAYS, CONFIG)}
            lines = (directory / SUMS).read_text().splitlines()
        except (FileNotFoundError, UnicodeDecodeError) as error:
            raise DamagedError(
                f"the checkpoint {directory} is damaged: {error}"
            ) from None
        sums = [f"{_digest(data)}  {name}" for name, data in files.items()]
        if sums != lines:
            raise DamagedError(
                f"the checkpoint {directory} is damaged: its files do not have the "
                f"digests in {SUMS}"
            )
        return files

    def _unpack(self, data: bytes, like: TrainState) -> TrainState:
        """The state whose arrays were written, on the devices of another."""
        arrays, compact = safetensors.numpy.load(data), self._compact(like)
        named = dict(_named(compact))
        found, wanted = (
            {name: (x.shape, x.dtype) for name, x in tree.items()}
            for tree in (arrays, named)
        )
        if found != wanted:
            raise UserError(
                f"a checkpoint in {self.directory} was written by another version of "
                f"the program: it holds other arrays, {found.items() ^ wanted.items()}"
            )
        leaves = [
            jax.device_put(arrays[name], leaf.sharding) for name, leaf in named.items()
        ]
        state = jax.tree.unflatten(jax.tree.structure(compact), leaves)
        state = state._replace(key=jax.random.wrap_key_data(state.key))
        return self.trainer.restored(state, like)

    def _compact(self, state: TrainState) -> TrainState:
        """What is written of a state: nothing that the optimizer can rebuild."""
        state = self.trainer.compact(state)
        return state._replace(key=jax.random.key_data(state.key))


def _named(tree: Any) -> list[tuple[str, Any]]:
    return [
        (jax.tree_util.keystr(path, simple=True, separator="."), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
