"""Networks that are narrower than a preset's: pruned, drawn anew, and trained."""

import dataclasses
import math

import jax
import numpy as np
from flax import nnx

from experiments.training.config import Config
from experiments.training.data import Dataset
from experiments.training.loop import passes_in_memory, run_epochs
from experiments.training.trainer import make_trainer
from optax_grda import sparsity_report
from optax_grda.units import Units


def train(
    config: Config, dataset: Dataset, name: str, start: nnx.Module | None = None
) -> tuple[nnx.Module, float]:
    """Trains a network; returns it in evaluation mode, and its test accuracy.

    Args:
      config: how.
      dataset: on which images.
      name: for the progress bar.
      start: the network in place of the configuration's, and its weights before the
        first step. By default a fresh one.
    """
    trainer = make_trainer(config, dataset.num_classes, dataset.num_examples)
    if start is not None:
        graph, arrays = nnx.split(start)

        def build(rngs: nnx.Rngs) -> nnx.Module:
            del rngs
            network = nnx.merge(graph, arrays)
            network.train()
            return network

        trainer = dataclasses.replace(trainer, build=build)
    passes, epochs = passes_in_memory(trainer, dataset), range(1, config.epochs + 1)
    *_, last = run_epochs(passes, jax.jit(trainer.init)(config.seed), epochs, name)
    passes.close()
    assert last.row is not None
    network = trainer.network(last.state.params, last.state.batch_stats)
    return network, float(last.row["test_accuracy"])


def drawn_anew(network: nnx.Module, wide: nnx.Module) -> nnx.Module:
    """A network of the widths of one, with initial weights as of another.

    Takes the first rows and columns of each array. Kernels grow as their fan-in falls,
    as in He's initialisation, so that activations stay as large.

    Args:
      network: what shrink made of a network like `wide`. It is not changed.
      wide: a fresh one.
    """

    def part(initial: jax.Array, like: jax.Array) -> jax.Array:
        taken = initial[tuple(map(slice, like.shape))]
        if initial.ndim == 1:  # a bias, or BatchNorm's
            return taken
        before, after = (math.prod(x.shape[:-1]) for x in (initial, taken))
        return taken * np.sqrt(before / max(after, 1)).astype(taken.dtype)

    graph, arrays = nnx.split(network)
    initial = nnx.to_pure_dict(nnx.state(wide))
    new = jax.tree.map(part, initial, nnx.to_pure_dict(arrays))
    return nnx.merge(graph, nnx.State(new))


def without_smallest(network: nnx.Module, units: Units, fraction: float) -> nnx.Module:
    """The network with its smallest units zero, the same fraction in every layer.

    A unit is as large as the root mean square of the entries that produce it. The
    largest of a layer stays: a network is not cut in two. This is how Li et al.,
    "Pruning Filters for Efficient ConvNets", ICLR 2017, prune, with another norm.

    Args:
      network: what to prune. It is not changed.
      units: as found in its state.
      fraction: of a layer's units, in [0, 1); rounded down to a whole unit.
    """
    graph, arrays, rest = nnx.split(network, nnx.Param, ...)
    params = nnx.to_pure_dict(arrays)
    names = [leaf.path for leaf in sparsity_report(params).leaves]
    leaves = dict(zip(names, map(np.asarray, jax.tree.leaves(params)), strict=True))
    groups = {n: group for n, group in units.groups().items() if n in leaves}
    squares, entries = (
        {group.layer: np.zeros(group.units) for group in groups.values()}
        for _ in range(2)
    )
    for name, group in groups.items():
        at, placed = group.index[group.index >= 0], group.index >= 0
        rows = np.moveaxis(leaves[name], group.axis, 0)[placed].reshape(len(at), -1)
        np.add.at(squares[group.layer], at, np.square(rows).sum(1))
        np.add.at(entries[group.layer], at, rows.shape[1])
    kept = {}
    for layer, total in squares.items():
        size = np.sqrt(total / entries[layer])
        kept[layer] = size >= np.sort(size)[int(fraction * len(size))]
    for name, group in groups.items():
        stays = np.where(group.index >= 0, kept[group.layer][group.index], True)
        others = [axis for axis in range(leaves[name].ndim) if axis != group.axis]
        leaves[name] = leaves[name] * np.expand_dims(stays, others)
    pruned = jax.tree.unflatten(
        jax.tree.structure(params), [jax.numpy.asarray(leaves[name]) for name in names]
    )
    return nnx.merge(graph, nnx.State(pruned), rest)
