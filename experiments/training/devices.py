"""The devices of one or many hosts: processes, the mesh, and what all share."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from experiments.training.errors import UserError


def start_processes(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> None:
    """Joins the processes of a job; does nothing where this process is alone.

    Call it before anything else uses JAX. With all arguments None, JAX itself finds
    out about Slurm (srun), TPU pods and MPI.

    Args:
      coordinator: HOST:PORT of process 0.
      num_processes: how many processes there are.
      process_id: which one this is, from 0.

    Raises:
      UserError: if some of the arguments are given, but not all.
    """
    given = (coordinator, num_processes, process_id)
    if any(value is not None for value in given) and None in given:
        raise UserError(
            "coordinator, num_processes and process_id must be given together, got "
            f"{coordinator}, {num_processes} and {process_id}"
        )
    try:
        # By default a process waits minutes for one that died.
        jax.distributed.initialize(
            *given, heartbeat_timeout_seconds=30, shutdown_timeout_seconds=30
        )
    except ValueError:  # JAX knows no cluster here
        if coordinator is not None:
            raise


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with the one axis "data" over devices: by default, all of all hosts."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh(
        (len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device of the mesh, in all processes, holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def split_batch(batch: dict[str, Any], mesh: Mesh | None) -> dict[str, Any]:
    """Gives each device its part of arrays that all processes hold.

    Or the whole, where they do not divide by the devices. Arrays that lie on devices
    already stay as they are.
    """

    def put(array: Any) -> Any:
        if mesh is None or isinstance(array, jax.Array):
            return array
        axis = "data" if len(array) % mesh.size == 0 else None
        sharding = NamedSharding(mesh, PartitionSpec(axis))
        return jax.make_array_from_callback(
            array.shape, sharding, lambda index: array[index]
        )

    return {name: put(array) for name, array in batch.items()}


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process; all processes must call this together."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.array(flag)).any())


def loops_are_slow(params: Any) -> bool:
    """Whether loops that train are better made outside of a program.

    On a CPU, gradients of convolutions are 10 to 20 times slower in a loop inside (JAX
    issue 12868).
    """
    kernels = jax.tree.leaves(params)
    return jax.default_backend() == "cpu" and any(leaf.ndim == 4 for leaf in kernels)
