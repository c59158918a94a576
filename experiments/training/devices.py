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


def fully_sharded(mesh: Mesh, tree: Any) -> Any:
    """Every device of the mesh holds a part of each array of a tree.

    An array is split along its longest axis that the devices divide. Vectors and
    scalars, which are small, are whole everywhere, and so is what no axis divides.

    Args:
      mesh: as of data_mesh.
      tree: arrays, or their shapes and dtypes.

    Returns:
      A sharding for each array.
    """

    def split(leaf: Any) -> NamedSharding:
        lengths = [n if n % mesh.size == 0 else 0 for n in leaf.shape]
        if leaf.ndim < 2 or not any(lengths):
            return replicated(mesh)
        axis = lengths.index(max(lengths))
        return NamedSharding(mesh, PartitionSpec(*(None,) * axis, "data"))

    return jax.tree.map(split, tree)


def on_host(tree: Any) -> Any:
    """Copies of a tree's arrays, whole; all processes must call this together."""

    def whole(leaf: Any) -> np.ndarray:
        if isinstance(leaf, jax.Array) and not (
            leaf.is_fully_addressable or leaf.is_fully_replicated
        ):
            return multihost_utils.process_allgather(leaf, tiled=True)
        return np.array(leaf)  # a view of a CPU's memory would be donated with it

    return jax.tree.map(whole, tree)


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
