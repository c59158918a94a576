"""A network's loss, metrics and evaluation, as pure functions of arrays."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from experiments.training.augmentation import normalise
from experiments.training.devices import replicated

PyTree = Any


class Metrics(NamedTuple):
    """What is measured on inputs, or its mean over a batch or a data set; float32.

    Of a text it is the mean over its bytes.
    """

    loss: jax.Array  # cross-entropy, nats
    accuracy: jax.Array  # top-1, fraction


@dataclasses.dataclass(frozen=True, eq=False)
class Objective:
    """What a network loses on inputs; its methods are pure and meant for jax.jit.

    Its parameters and BatchNorm's running statistics are nested dicts of arrays.
    """

    build: Callable[[nnx.Rngs], nnx.Module]  # makes the network, in training mode
    _: dataclasses.KW_ONLY
    mean: tuple[float, ...] = (0.0,)  # per channel, of images in [0, 1]; subtracted,
    std: tuple[float, ...] = (1.0,)  # and then divided by. () of text
    mesh: jax.sharding.Mesh | None = None  # axes ("data",); None: one device
    sharded: bool = False  # each device keeps a part of the state between its uses

    def loss(
        self,
        params: PyTree,
        batch_stats: PyTree,
        inputs: jax.Array,
        labels: jax.Array,
        dropout_key: jax.Array,
    ) -> tuple[jax.Array, tuple[Metrics, PyTree]]:
        """Mean cross-entropy of a batch in training mode.

        Returns:
          The loss, and with it the metrics of each input and the new running statistics
          of BatchNorm.
        """
        model = merge(self._graphs()[0], params, batch_stats)
        logits = model(self.normalised(inputs), rngs=nnx.Rngs(dropout=dropout_key))
        metrics = _metrics(logits, labels)
        return metrics.loss.mean(), (metrics, split(model)[2])

    def estimate_batch_stats(
        self, params: PyTree, inputs: jax.Array, batch_size: int
    ) -> PyTree:
        """BatchNorm's statistics for any weights: a plain average over the inputs.

        For weights that no training came by. Without BatchNorm there is nothing to do.

        Args:
          params: parameters.
          inputs: (n, ...); those beyond a whole number of batches are left out.
          batch_size: inputs that BatchNorm sees together: all n, if there are fewer.
        """
        model = self._abstract()
        model.eval()
        # Statistics of the batch, and no memory of those before.
        model.set_attributes(
            nnx.BatchNorm,
            raise_if_not_found=False,
            use_running_average=False,
            momentum=0.0,
        )
        graph, _, shapes = split(model)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        if not zeros:
            return {}

        def of_batch(batch, centre):
            model = merge(graph, params, centre)
            model(self.normalised(batch))
            return split(model)[2]

        size = min(batch_size, len(inputs))
        number = len(inputs) // size
        batches = inputs[: number * size].reshape(number, size, *inputs.shape[1:])
        # Variances are taken about the running mean, and cancel where that is far off.
        centre = of_batch(batches[0], zeros)

        def add(total, batch):
            return jax.tree.map(jnp.add, total, of_batch(batch, centre)), None

        total, _ = jax.lax.scan(add, zeros, batches)
        return jax.tree.map(lambda x: x / number, total)

    def evaluate(
        self,
        params: PyTree,
        batch_stats: PyTree,
        inputs: jax.Array,
        labels: jax.Array,
    ) -> Metrics:
        """Means over all inputs, with running statistics and without dropout.

        Args:
          params: parameters.
          batch_stats: running statistics of BatchNorm.
          inputs: (n, height, width, channels), uint8 or float in [0, 1]; or texts
            (n, length), uint8.
          labels: (n,), or (n, length) of texts; int32.
        """
        size = min(1024, len(labels))
        steps = -(-len(labels) // size)
        index = jnp.arange(steps * size).reshape(steps, size)

        def step(total, index):
            index = self._shard(index)
            known = index < len(labels)
            index = jnp.minimum(index, len(labels) - 1)
            metrics = self.metrics(params, batch_stats, inputs[index], labels[index])
            sums = jax.tree.map(lambda m: jnp.sum(m, where=known), metrics)
            return jax.tree.map(jnp.add, total, sums), None

        zero = jnp.zeros((), jnp.float32)
        total, _ = jax.lax.scan(step, Metrics(zero, zero), index)
        return jax.tree.map(lambda x: x / len(labels), total)

    def metrics(
        self,
        params: PyTree,
        batch_stats: PyTree,
        inputs: jax.Array,
        labels: jax.Array,
    ) -> Metrics:
        """Metrics of each input, shape (batch,), as evaluate sees it."""
        return _metrics(self.logits(params, batch_stats, inputs), labels)

    def logits(
        self, params: PyTree, batch_stats: PyTree, inputs: jax.Array
    ) -> jax.Array:
        """Logits (batch, ..., num_classes), running statistics in and dropout off."""
        return self.network(params, batch_stats)(self.normalised(inputs))

    def network(self, params: PyTree, batch_stats: PyTree) -> nnx.Module:
        """The network in evaluation mode, a function of what `normalised` makes."""
        return merge(self._graphs()[1], self._gathered(params), batch_stats)

    def normalised(self, inputs: jax.Array) -> jax.Array:
        """Inputs as the network takes them.

        Images as float32, mean and deviation taken off; bytes of texts as int32.
        """
        if inputs.ndim == 2:
            return inputs.astype(jnp.int32)
        return normalise(inputs, self.mean, self.std)

    def _abstract(self) -> nnx.Module:
        """The network without arrays, in training mode."""
        return nnx.eval_shape(lambda: self.build(nnx.Rngs(0)))

    def _graphs(self) -> tuple[nnx.GraphDef, nnx.GraphDef]:
        """The network's structure in training and in evaluation mode."""
        model = self._abstract()
        graphs = []
        for switch in (model.train, model.eval):
            switch()
            graphs.append(split(model)[0])
        return tuple(graphs)

    def _shard(self, index: jax.Array) -> jax.Array:
        """Gives each device its part of a batch."""
        if self.mesh is None or index.size % self.mesh.size:
            return index
        sharding = NamedSharding(self.mesh, PartitionSpec("data"))
        return jax.lax.with_sharding_constraint(index, sharding)

    def _gathered(self, params: PyTree) -> PyTree:
        """Parameters as a network takes them: whole on each device."""
        if self.mesh is None or not self.sharded:
            return params
        return jax.lax.with_sharding_constraint(params, replicated(self.mesh))


def split(model: nnx.Module) -> tuple[nnx.GraphDef, PyTree, PyTree]:
    """The structure, the parameters and the running statistics, as plain dicts."""
    graph, params, batch_stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    return graph, nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats)


def merge(graph: nnx.GraphDef, params: PyTree, batch_stats: PyTree) -> nnx.Module:
    """The network that split took apart."""
    return nnx.merge(graph, nnx.State(params), nnx.State(batch_stats))


def _metrics(logits: jax.Array, labels: jax.Array) -> Metrics:
    """Of each input, shape (batch,): those of a text are means over its bytes."""
    logits = logits.astype(jnp.float32)
    of_label = Metrics(
        optax.softmax_cross_entropy_with_integer_labels(logits, labels),
        (logits.argmax(-1) == labels).astype(jnp.float32),
    )
    return jax.tree.map(lambda m: m.mean(tuple(range(1, m.ndim))), of_label)
