"""Training state, step, epoch and report, as pure functions of arrays.

Every random number is a function of (seed, epoch, step): permutations, augmentation
and dropout take their keys from the state's key, folded with the step.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import models
from experiments.training.augmentation import augment
from experiments.training.config import Config
from experiments.training.devices import fully_sharded, loops_are_slow, replicated
from experiments.training.errors import UserError
from experiments.training.objective import Metrics, Objective, split
from experiments.training.optimizer import make_optimizer, make_weights
from optax_grda.diagnostics import Health, health

PyTree = Any
Report = tuple[dict[str, jax.Array], Health]  # of an epoch: see Trainer.report


class TrainState(NamedTuple):
    """All that changes during training."""

    key: jax.Array  # of the run, never changed. shape=(), a typed PRNG key
    step: jax.Array  # batches seen. shape=(), dtype=jnp.int32
    params: PyTree  # nested dicts of float32 arrays
    batch_stats: PyTree  # running statistics of BatchNorm; {} where there is none
    opt_state: optax.OptState


@dataclasses.dataclass(frozen=True, eq=False)
class Trainer(Objective):
    """The fixed part of a training run: an objective, and how it is minimised.

    Like an objective's, its methods are pure and meant for jax.jit.
    """

    optimizer: optax.GradientTransformationExtraArgs
    num_examples: int  # training inputs an epoch: images, or texts
    batch_size: int  # inputs a step; the last batch of an epoch may be smaller
    accumulation: int = 1  # parts in which a batch passes one by one
    augmentation: str = "none"
    # Makes weights of the optimizer's state alone, where that can be: see make_weights.
    weights: Callable[[optax.OptState, PyTree], PyTree] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Steps an epoch."""
        return -(-self.num_examples // self.batch_size)

    def init(self, seed: jax.typing.ArrayLike) -> TrainState:
        """The state before the first step; its weights depend on the seed alone."""
        key, init_key = jax.random.split(jax.random.key(seed))
        _, params, batch_stats = split(self.build(nnx.Rngs(init_key)))
        opt_state = self.optimizer.init(params)
        return TrainState(key, jnp.zeros((), jnp.int32), params, batch_stats, opt_state)

    def state_sharding(self) -> Any:
        """Where the arrays of a state lie; None without a mesh."""
        if self.mesh is None or not self.sharded:
            return self.mesh and replicated(self.mesh)
        return fully_sharded(self.mesh, jax.eval_shape(self.init, 0))

    def train_epoch(
        self, state: TrainState, inputs: jax.Array, labels: jax.Array
    ) -> tuple[TrainState, Metrics]:
        """Makes one pass over data that lie on the device, in an order of its own.

        Args:
          state: training state, at the start of an epoch.
          inputs: (num_examples, height, width, channels), uint8 or float in [0, 1]; or
            texts (num_examples, length), uint8.
          labels: (num_examples,), or (num_examples, length) of texts; int32.

        Returns:
          The new state, and the metrics of each step, shape (steps_per_epoch,). The
          last batch, where it is smaller, is compiled as a step of its own: if it were
          filled up, BatchNorm, dropout and augmentation would not be those of a batch.
        """
        order = self.order(state.key, state.step // self.steps_per_epoch)
        full = self.num_examples // self.batch_size

        def step(state, index):
            index = self._shard(index)
            return self.train_step(state, inputs[index], labels[index])

        batches = order[: full * self.batch_size].reshape(full, self.batch_size)
        state, metrics = jax.lax.scan(step, state, batches)
        rest = order[full * self.batch_size :]
        if rest.size:
            state, last = step(state, rest)
            metrics = jax.tree.map(jnp.append, metrics, last)
        return state, metrics

    def order(self, key: jax.Array, epoch: jax.Array) -> jax.Array:
        """The order of the inputs in an epoch, from 0, of the run with a state's key.

        Shape (num_examples,), int32.
        """
        key = jax.random.fold_in(jax.random.fold_in(key, 0), epoch)
        return jax.random.permutation(key, self.num_examples)

    def report(self, state: TrainState, steps: Metrics, tested: Metrics) -> Report:
        """Says how an epoch went.

        Args:
          state: training state, at the end of the epoch.
          steps: the metrics of its last steps, shape (at most steps_per_epoch,): of all
            of them, unless the run was resumed within the epoch.
          tested: what evaluate returns for the state.

        Returns:
          Scalars for metrics.jsonl, and the health of the weights. The running loss and
          accuracy are means over the inputs of what each step saw, in training mode;
          those on the test inputs are of the weights at the end.
        """
        sizes = jnp.full(self.steps_per_epoch, self.batch_size, jnp.float32)
        sizes = sizes.at[-1].add(self.num_examples - sizes.sum())
        sizes = sizes[-len(steps.loss) :]
        running = jax.tree.map(lambda m: m @ sizes / sizes.sum(), steps)
        record = health(state.params)
        scalars = {
            "step": state.step,
            "train_loss_running": running.loss,
            "train_accuracy_running": running.accuracy,
            "test_loss": tested.loss,
            "test_accuracy": tested.accuracy,
            "sparsity": record.sparsity,
        }
        threshold = optax.tree.get(state.opt_state, "threshold")
        if threshold is not None:
            scalars["threshold"] = threshold
        return scalars, record

    def train_step(
        self, state: TrainState, inputs: jax.Array, labels: jax.Array
    ) -> tuple[TrainState, Metrics]:
        """Takes one step on a batch of inputs and labels, as of train_epoch.

        The loss is the mean cross-entropy of the whole batch, over all devices, and so
        are BatchNorm's statistics, but where a batch passes in parts: there each part
        is normalised by its own, which move the running ones in turn.

        Returns:
          The new state, and means over the inputs of the batch, at the weights before.
        """
        step_key = jax.random.fold_in(jax.random.fold_in(state.key, 1), state.step)
        augment_key, dropout_key = jax.random.split(step_key)
        inputs = augment(augment_key, inputs, self.augmentation)
        gradients, metrics, batch_stats = self._gradients(
            state, inputs, labels, dropout_key
        )
        updates, opt_state = self.optimizer.update(
            gradients, state.opt_state, state.params
        )
        if self.weights is None:
            params = optax.apply_updates(state.params, updates)
        else:  # what a checkpoint will be restored to
            params = self.weights(opt_state, state.params)
        state = TrainState(state.key, state.step + 1, params, batch_stats, opt_state)
        return state, metrics

    def _gradients(
        self, state: TrainState, inputs: jax.Array, labels: jax.Array, key: jax.Array
    ) -> tuple[PyTree, Metrics, PyTree]:
        """The gradient of a batch's loss, its metrics, and the new running statistics.

        Parts count by their inputs: their sizes differ by one where they must.
        """
        params = self._gathered(state.params)

        def part(batch_stats, inputs, labels, key):
            gradients, (metrics, batch_stats) = jax.grad(self.loss, has_aux=True)(
                params, batch_stats, inputs, labels, key
            )
            gradients = self._scattered(gradients)
            return (gradients, jax.tree.map(jnp.mean, metrics)), batch_stats

        if self.accumulation == 1:
            (gradients, metrics), batch_stats = part(
                state.batch_stats, inputs, labels, key
            )
            return gradients, metrics, batch_stats

        def add(carry, batch):
            total, batch_stats = carry
            share = len(batch[1]) / len(labels)
            found, batch_stats = part(batch_stats, *batch)
            total = jax.tree.map(lambda old, new: old + share * new, total, found)
            return (total, batch_stats), None

        zero = jnp.zeros((), jnp.float32)
        total = jax.tree.map(jnp.zeros_like, state.params), Metrics(zero, zero)
        carry = total, state.batch_stats
        keys = jax.random.split(key, self.accumulation)
        small, larger = divmod(len(labels), self.accumulation)
        start = larger * (small + 1)
        for size, rows, number in (
            (small + 1, slice(start), larger),
            (small, slice(start, None), self.accumulation - larger),
        ):
            if size and number:
                # Every number-th input: so each device has its share of each part.
                batches = [
                    jnp.moveaxis(x[rows].reshape(size, number, *x.shape[1:]), 1, 0)
                    for x in (inputs, labels)
                ]
                unroll = loops_are_slow(state.params)
                carry, _ = jax.lax.scan(
                    add, carry, (*batches, keys[:number]), unroll=unroll
                )
                keys = keys[number:]
        (gradients, metrics), batch_stats = carry
        return gradients, metrics, batch_stats

    def compact(self, state: TrainState) -> TrainState:
        """The state without weights that the optimizer's state stands for."""
        return state if self.weights is None else state._replace(params=None)

    def restored(self, compact: TrainState, like: TrainState) -> TrainState:
        """The state that compact made this of; `like` has its parameters' shapes."""
        if self.weights is None:
            return compact
        shardings = jax.tree.map(lambda leaf: leaf.sharding, like.params)
        weights = jax.jit(self.weights, out_shardings=shardings)(
            compact.opt_state, like.params
        )
        return compact._replace(params=weights)

    def check_inputs(
        self, input_shape: tuple[int, ...], label_shape: tuple[int, ...] = ()
    ) -> None:
        """Raises ValueError if the network cannot train on inputs of that shape.

        Or not on as few of them as the smallest part of a batch has, as BatchNorm; or
        if there is augmentation, and they are no images.
        """
        if self.augmentation != "none" and len(input_shape) != 3:
            raise ValueError(
                f"augmentation must be none unless of images, got {self.augmentation}"
            )
        last = self.num_examples % self.batch_size or self.batch_size
        size = max(1, last // self.accumulation)
        state = jax.eval_shape(self.init, 0)
        jax.eval_shape(
            self.loss,
            *(state.params, state.batch_stats),
            jax.ShapeDtypeStruct((size, *input_shape), jnp.uint8),
            *(jax.ShapeDtypeStruct((size, *label_shape), jnp.int32), state.key),
        )

    def _scattered(self, gradients: PyTree) -> PyTree:
        """Gradients as an optimizer takes them: as its state lies."""
        if self.mesh is None or not self.sharded:
            return gradients
        shardings = fully_sharded(self.mesh, gradients)
        return jax.lax.with_sharding_constraint(gradients, shardings)


def make_trainer(
    config: Config,
    num_classes: int,
    num_examples: int,
    mesh: jax.sharding.Mesh | None = None,
    *,
    sharded: bool = False,
    **settings: jax.Array,
) -> Trainer:
    """Builds the trainer of a configuration.

    Args:
      config: the experiment; its seed does not matter.
      num_classes: classes of its data.
      num_examples: training inputs an epoch.
      mesh: as of devices.data_mesh; None for one device.
      sharded: whether each device keeps but its part of the state: see
        devices.fully_sharded.
      **settings: traced values in place of fields of the method, such as c.

    Raises:
      UserError: if there is no network of that name.
    """
    spec = network_spec(config.model)

    def build(rngs: nnx.Rngs) -> nnx.Module:
        return models.create(
            config.model,
            num_classes=num_classes,
            dtype=jnp.dtype(config.dtype),
            rngs=rngs,
        )

    steps_per_epoch = -(-num_examples // config.batch_size)
    return Trainer(
        build,
        make_optimizer(config, steps_per_epoch, **settings),
        num_examples,
        config.batch_size,
        accumulation=config.accumulation,
        augmentation=config.augmentation,
        mean=spec.mean,
        std=spec.std,
        weights=make_weights(config),
        mesh=mesh,
        sharded=sharded,
    )


def network_spec(model: str) -> models.Spec:
    """The network of that name, and what inputs it takes.

    Raises:
      UserError: if there is none.
    """
    if model not in models.names():
        raise UserError(
            f"model must be one of {', '.join(models.names())}: got {model!r}"
        )
    return models.spec(model)
