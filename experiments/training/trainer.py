"""Training state, step, epoch and evaluation, as pure functions of arrays.

Every random number is a function of (seed, epoch, step): permutations, augmentation
and dropout take their keys from the state's key, folded with the step.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

import models
from experiments.training.augmentation import augment, normalise
from experiments.training.config import Config
from experiments.training.optimizer import make_optimizer, make_proximal
from optax_grda import grda_params, sparsity

PyTree = Any


class TrainState(NamedTuple):
    """All that changes during training."""

    key: jax.Array  # of the run, never changed. shape=(), a typed PRNG key
    step: jax.Array  # batches seen. shape=(), dtype=jnp.int32
    params: PyTree  # nested dicts of float32 arrays
    batch_stats: PyTree  # running statistics of BatchNorm; {} where there is none
    opt_state: optax.OptState


class Metrics(NamedTuple):
    """What is measured on images, or its mean over a batch or a data set; float32."""

    loss: jax.Array  # cross-entropy, nats
    accuracy: jax.Array  # top-1, fraction


@dataclasses.dataclass(frozen=True, eq=False)
class Trainer:
    """The fixed part of a training run; its methods are pure and meant for jax.jit."""

    config: Config
    num_classes: int
    num_examples: int  # training images an epoch
    mesh: jax.sharding.Mesh | None = None  # axes ("data",); None: one device

    @property
    def batch_size(self) -> int:
        """Images a step."""
        return self.config.batch_size // self.config.accumulation

    @property
    def steps_per_epoch(self) -> int:
        """Steps an epoch; the last one may be smaller."""
        return -(-self.num_examples // self.batch_size)

    @property
    def optimizer(self) -> optax.GradientTransformationExtraArgs:
        """The optimizer whose state the training state holds."""
        return make_optimizer(self.config, self.steps_per_epoch)

    def init(self, seed: jax.typing.ArrayLike) -> TrainState:
        """The state before the first step; its weights depend on the seed alone."""
        key, init_key = jax.random.split(jax.random.key(seed))
        _, params, batch_stats = _split(self.fresh_network(nnx.Rngs(init_key)))
        opt_state = self.optimizer.init(params)
        return TrainState(key, jnp.zeros((), jnp.int32), params, batch_stats, opt_state)

    def train_epoch(
        self, state: TrainState, images: jax.Array, labels: jax.Array
    ) -> tuple[TrainState, Metrics]:
        """One pass over data that lie on the device, in an order of its own.

        Args:
          state: training state, at the start of an epoch.
          images: (num_examples, height, width, channels), uint8 or float in [0, 1].
          labels: (num_examples,), int32.

        Returns:
          The new state, and the metrics of each step, shape (steps_per_epoch,).
        """
        order = self.order(state)
        full = self.num_examples // self.batch_size

        def step(state, index):
            return self.train_step_at(state, images, labels, index)

        batches = order[: full * self.batch_size].reshape(full, self.batch_size)
        state, metrics = jax.lax.scan(step, state, batches)
        rest = order[full * self.batch_size :]
        if rest.size:
            state, last = step(state, rest)
            metrics = jax.tree.map(jnp.append, metrics, last)
        return state, metrics

    def order(self, state: TrainState) -> jax.Array:
        """The order of the training images in this epoch, (num_examples,), int32."""
        epoch = state.step // self.steps_per_epoch
        key = jax.random.fold_in(jax.random.fold_in(state.key, 0), epoch)
        return jax.random.permutation(key, self.num_examples)

    def train_step_at(
        self, state: TrainState, images: jax.Array, labels: jax.Array, index: jax.Array
    ) -> tuple[TrainState, Metrics]:
        """One step on the images of an index, shape (batch,), among all of them."""
        index = self._shard(index)
        return self.train_step(state, images[index], labels[index])

    def report(
        self, state: TrainState, steps: Metrics, tested: Metrics
    ) -> dict[str, jax.Array]:
        """Scalars that say how an epoch went, for metrics.jsonl.

        Training loss and accuracy are means over the images of what each step saw, in
        training mode; those on the test images are of the parameters at the end.

        Args:
          state: training state, at the end of the epoch.
          steps: the metrics of its last steps, shape (at most steps_per_epoch,): of all
            of them, unless the run was resumed within the epoch.
          tested: what evaluate returns for the state.
        """
        sizes = jnp.full(self.steps_per_epoch, self.batch_size, jnp.float32)
        sizes = sizes.at[-1].add(self.num_examples - sizes.sum())
        sizes = sizes[-len(steps.loss) :]
        trained = jax.tree.map(lambda m: m @ sizes / sizes.sum(), steps)
        scalars = {
            "step": state.step,
            "train_loss": trained.loss,
            "train_accuracy": trained.accuracy,
            "test_loss": tested.loss,
            "test_accuracy": tested.accuracy,
            "sparsity": sparsity(state.params),
        }
        threshold = optax.tree.get(state.opt_state, "threshold")
        return scalars if threshold is None else scalars | {"threshold": threshold}

    def train_step(
        self, state: TrainState, images: jax.Array, labels: jax.Array
    ) -> tuple[TrainState, Metrics]:
        """One step on a batch of images and labels, as train_epoch describes them.

        The loss is the mean cross-entropy of the whole batch, over all devices, and so
        are BatchNorm's statistics.
        """
        step_key = jax.random.fold_in(jax.random.fold_in(state.key, 1), state.step)
        augment_key, dropout_key = jax.random.split(step_key)
        images = augment(augment_key, images, self.config.augmentation)
        gradients, (metrics, batch_stats) = jax.grad(self.loss, has_aux=True)(
            state.params, state.batch_stats, images, labels, dropout_key
        )
        updates, opt_state = self.optimizer.update(
            gradients, state.opt_state, state.params
        )
        if optax.tree.get(opt_state, "threshold") is None:
            params = optax.apply_updates(state.params, updates)
        else:  # what a checkpoint will be restored to
            proximal = make_proximal(self.config)
            params = grda_params(opt_state, state.params, proximal)
        state = TrainState(state.key, state.step + 1, params, batch_stats, opt_state)
        return state, jax.tree.map(jnp.mean, metrics)

    def loss(
        self,
        params: PyTree,
        batch_stats: PyTree,
        images: jax.Array,
        labels: jax.Array,
        dropout_key: jax.Array,
    ) -> tuple[jax.Array, tuple[Metrics, PyTree]]:
        """Mean cross-entropy of a batch in training mode, after augmentation.

        Returns:
          The loss, and with it the metrics of each image and the new running statistics
          of BatchNorm.
        """
        model = _merge(self._graphs()[0], params, batch_stats)
        logits = model(self.normalised(images), rngs=nnx.Rngs(dropout=dropout_key))
        metrics = _metrics(logits, labels)
        return metrics.loss.mean(), (metrics, _split(model)[2])

    def estimate_batch_stats(self, params: PyTree, images: jax.Array) -> PyTree:
        """BatchNorm's statistics for any weights: a plain average over the images.

        For weights that no training came by. Without BatchNorm there is nothing to do.

        Args:
          params: parameters.
          images: (n, height, width, channels); those beyond a whole number of batches
            are left out.
        """
        model = nnx.eval_shape(lambda: self.fresh_network(nnx.Rngs(0)))
        model.eval()
        # Statistics of the batch, and no memory of those before.
        model.set_attributes(
            nnx.BatchNorm,
            raise_if_not_found=False,
            use_running_average=False,
            momentum=0.0,
        )
        graph, _, shapes = _split(model)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        if not zeros:
            return {}

        def add(total, batch):
            model = _merge(graph, params, zeros)
            model(self.normalised(batch))
            return jax.tree.map(jnp.add, total, _split(model)[2]), None

        size = min(self.batch_size, len(images))
        number = len(images) // size
        batches = images[: number * size].reshape(number, size, *images.shape[1:])
        total, _ = jax.lax.scan(add, zeros, batches)
        return jax.tree.map(lambda x: x / number, total)

    def evaluate(
        self,
        params: PyTree,
        batch_stats: PyTree,
        images: jax.Array,
        labels: jax.Array,
    ) -> Metrics:
        """Means over all images, with running statistics and without dropout.

        Args:
          params: parameters.
          batch_stats: running statistics of BatchNorm.
          images: (n, height, width, channels), uint8 or float in [0, 1].
          labels: (n,), int32.
        """
        size = min(1024, len(labels))
        steps = -(-len(labels) // size)
        index = jnp.arange(steps * size).reshape(steps, size)

        def step(total, index):
            index = self._shard(index)
            known = index < len(labels)
            index = jnp.minimum(index, len(labels) - 1)
            metrics = self.metrics(params, batch_stats, images[index], labels[index])
            sums = jax.tree.map(lambda m: jnp.sum(m, where=known), metrics)
            return jax.tree.map(jnp.add, total, sums), None

        zero = jnp.zeros((), jnp.float32)
        total, _ = jax.lax.scan(step, Metrics(zero, zero), index)
        return jax.tree.map(lambda x: x / len(labels), total)

    def metrics(
        self,
        params: PyTree,
        batch_stats: PyTree,
        images: jax.Array,
        labels: jax.Array,
    ) -> Metrics:
        """Metrics of each image, shape (batch,), as evaluate sees it."""
        return _metrics(self.logits(params, batch_stats, images), labels)

    def logits(
        self, params: PyTree, batch_stats: PyTree, images: jax.Array
    ) -> jax.Array:
        """Logits (batch, num_classes) with running statistics and without dropout."""
        return self.network(params, batch_stats)(self.normalised(images))

    def network(self, params: PyTree, batch_stats: PyTree) -> nnx.Module:
        """The network in evaluation mode, a function of normalised images."""
        return _merge(self._graphs()[1], params, batch_stats)

    def normalised(self, images: jax.Array) -> jax.Array:
        """Images as the network takes them: float32, mean and deviation taken off."""
        spec = models.spec(self.config.model)
        return normalise(images, spec.mean, spec.std)

    def fresh_network(self, rngs: nnx.Rngs) -> nnx.Module:
        """The network with initial weights, in training mode."""
        return models.create(
            self.config.model,
            num_classes=self.num_classes,
            dtype=jnp.dtype(self.config.dtype),
            rngs=rngs,
        )

    def _graphs(self) -> tuple[nnx.GraphDef, nnx.GraphDef]:
        """The network's structure in training and in evaluation mode."""
        model = nnx.eval_shape(lambda: self.fresh_network(nnx.Rngs(0)))
        graphs = []
        for switch in (model.train, model.eval):
            switch()
            graphs.append(_split(model)[0])
        return tuple(graphs)

    def _shard(self, index: jax.Array) -> jax.Array:
        """Gives each device its part of a batch."""
        if self.mesh is None or index.size % self.mesh.size:
            return index
        sharding = NamedSharding(self.mesh, PartitionSpec("data"))
        return jax.lax.with_sharding_constraint(index, sharding)


def _split(model: nnx.Module) -> tuple[nnx.GraphDef, PyTree, PyTree]:
    """The structure, the parameters and the running statistics, as plain dicts."""
    graph, params, batch_stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    return graph, nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats)


def _merge(graph: nnx.GraphDef, params: PyTree, batch_stats: PyTree) -> nnx.Module:
    return nnx.merge(graph, nnx.State(params), nnx.State(batch_stats))


def _metrics(logits: jax.Array, labels: jax.Array) -> Metrics:
    logits = logits.astype(jnp.float32)
    return Metrics(
        optax.softmax_cross_entropy_with_integer_labels(logits, labels),
        (logits.argmax(-1) == labels).astype(jnp.float32),
    )
