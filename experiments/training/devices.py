"""The devices of one or many hosts: processes, the mesh, and what all share."""

from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


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
      ValueError: if some of the arguments are given, but not all.
    """
    given = (coordinator, num_processes, process_id)
    if any(value is not None for value in given) and None in given:
        raise ValueError(
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


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process; all processes must call this together."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.array(flag)).any())
