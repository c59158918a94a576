"""Checkpoints of a training run; the only file that knows Orbax.

The place in the data follows from the step, so that the training state is all there is.
A checkpoint of gRDA, or of its threshold steered to a sparsity, does not hold the
weights: they are the accumulator, thresholded.
"""

import dataclasses
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp

from experiments.training.config import Config, differences
from experiments.training.optimizer import make_proximal
from experiments.training.trainer import TrainState
from optax_grda import grda_params

logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax warns of what it is asked for


class Checkpoints:
    """The checkpoints of a run directory, one an epoch at most.

    A checkpoint is written beside its final name and renamed when it is complete, so
    that a run that dies while it writes leaves the checkpoints before it as they were.
    """

    def __init__(
        self,
        directory: Path,
        config: Config,
        keep: int | None = None,
        read_only: bool = False,
    ):
        self.directory = directory
        self.config = config
        self.manager = ocp.CheckpointManager(
            (directory / "checkpoints").absolute(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                enable_async_checkpointing=False,
                cleanup_tmp_directories=not read_only,
                read_only=read_only,
            ),
            item_names=("state", "config"),
        )

    @property
    def steps(self) -> list[int]:
        """The steps after which complete checkpoints were made, oldest first."""
        return sorted(self.manager.all_steps())

    def save(self, state: TrainState) -> None:
        """Writes a checkpoint, and then removes those too many.

        Args:
          state: the training state.

        Raises:
          OSError: if it cannot be written, for example because the disk is full. The
            checkpoints before it remain.
        """
        step = int(state.step)
        for skipped in self.steps:  # damaged ones, which stand in Orbax's way
            if skipped >= step:
                self.manager.delete(skipped)
        args = {
            "state": ocp.args.StandardSave(_pack(state)),
            "config": ocp.args.JsonSave(dataclasses.asdict(self.config)),
        }
        try:
            self.manager.save(step, args=ocp.args.Composite(**args))
        except Exception as error:  # Orbax raises what its file systems raise
            raise OSError(
                f"the checkpoint of step {step} could not be written to "
                f"{self.manager.directory}: {_first_line(error)}. The newest complete "
                f"one is of step {self.steps[-1] if self.steps else 'none'}"
            ) from error

    def restore(self, template: TrainState) -> TrainState | None:
        """Reads the newest checkpoint that can be read.

        One that cannot is named on standard error, and the one before it is tried.

        Args:
          template: a state with the shapes, dtypes and shardings to restore to.

        Returns:
          The training state, or None if there is no checkpoint.

        Raises:
          ValueError: if a checkpoint is of another configuration; the error names the
            fields that differ. If there are checkpoints and none can be read.
        """
        for step in reversed(self.steps):
            try:
                config = self._read(step, "config", ocp.args.JsonRestore())
                fields = differences(config, self.config)
                if not fields:
                    return self.read(step, template)
            except Exception as error:  # any kind of damage, as above
                print(
                    f"warning: the checkpoint of step {step} in "
                    f"{self.manager.directory} is damaged and skipped: "
                    f"{_first_line(error)}",
                    file=sys.stderr,
                )
            else:
                raise ValueError(
                    f"the checkpoint of step {step} in {self.manager.directory} is of "
                    f"another configuration and is not resumed; {'; '.join(fields)}"
                )
        if self.steps:
            raise ValueError(
                f"none of the checkpoints in {self.manager.directory} can be read: "
                f"{self.steps}"
            )
        return None

    def read(self, step: int, template: TrainState) -> TrainState:
        """Reads the checkpoint of one step, into arrays like those of the template."""
        args = ocp.args.StandardRestore(_pack(template))
        arrays = self._read(step, "state", args)
        return _unpack(arrays, template, make_proximal(self.config))

    def _read(self, step: int, item: str, args: ocp.args.CheckpointArgs) -> Any:
        args = ocp.args.Composite(**{item: args})
        return self.manager.restore(step, args=args)[item]


def _pack(state: TrainState) -> dict[str, np.ndarray]:
    """The arrays to write, by name, but no weights that the optimizer can rebuild.

    As NumPy arrays, which process 0 alone writes and any set of devices can go on from.
    """
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(_saved_part(state))
    }


def _unpack(
    arrays: dict[str, np.ndarray], template: TrainState, proximal: Callable | None
) -> TrainState:
    """The state whose arrays _pack listed, on the devices of the template."""

    def read(path, leaf):
        array = arrays[jax.tree_util.keystr(path, simple=True, separator=".")]
        return jax.device_put(array, leaf.sharding)

    state = jax.tree_util.tree_map_with_path(read, _saved_part(template))
    if state.params is None:
        rebuild = jax.jit(grda_params, static_argnames="proximal")
        params = rebuild(state.opt_state, template.params, proximal=proximal)
        state = state._replace(params=params)
    return state._replace(key=jax.random.wrap_key_data(state.key))


def _saved_part(state: TrainState) -> TrainState:
    state = state._replace(key=jax.random.key_data(state.key))
    if optax.tree.get(state.opt_state, "threshold") is None:
        return state
    return state._replace(params=None)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
