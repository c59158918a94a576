"""What gRDA adds to a training step, in time and memory, beside SGD and momentum SGD.

    python -m benchmarks.train_step [--networks vgg16 wrn28x10] [--dtype bfloat16]

Each network takes the steps of its preset, augmentation included, on a resident batch
of random images or texts, the optimizers in turn in one process. Goal: on a GPU at the
paper's batch sizes, gRDA at most 1.02 of SGD's time and one copy of the parameters
more.

Where the device's peak is known (benchmarks.roofline has a table, for bfloat16), the
share of its floating-point operations that a step uses stands beside, and the examples
a second that the roofline allows. For other devices, give --peak 312 2039: 1e12
operations and GB of memory a second.
"""

import dataclasses
from typing import Any, Literal

import jax
import numpy as np

import models
from benchmarks.measure import (
    markdown,
    peak_bytes,
    ratio,
    size,
    write_result,
)
from benchmarks.roofline import Peak, Work, known_peak, work
from experiments.analyses.timing import interleaved
from experiments.command_line import run_command
from experiments.training.config import METHODS, Config
from experiments.training.presets import PRESETS
from experiments.training.trainer import make_trainer

# In order of memory: see device_peak.
OPTIMIZERS = {"SGD": "sgd", "gRDA": "grda", "momentum SGD": "momentum"}
CLASSES = {"imagenet2012": 1000, "cifar100": 100}  # other images have 10


@dataclasses.dataclass(frozen=True)
class Options:
    """Times training steps."""

    networks: tuple[str, ...] = ("keras-cnn", "vgg16", "wrn28x10", "resnet50")
    """Networks to train, in order of memory, as device_peak needs it."""
    batch_size: int | None = None
    """Images or texts a step; by default its preset's: the paper's, 128, and 256 for
    ResNet-50."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of activations."""
    steps: int = 1
    """Steps of one timing. On a GPU 10 or so, so that it need not wait for the host."""
    rounds: int = 5
    """Times that every optimizer is timed."""
    peak: tuple[float, float] | None = None
    """The device's 1e12 floating-point operations in this dtype and GB of memory, a
    second; by default those of benchmarks.roofline, if it knows them."""

    def __post_init__(self):
        if self.peak is not None and not all(x > 0 for x in self.peak):
            raise ValueError(f"peak must be two numbers > 0, got {self.peak}")


class Stepper:
    """Trains on one batch; calling it takes some steps and returns the last metrics."""

    def __init__(self, config: Config, batch: tuple[jax.Array, jax.Array], steps: int):
        trainer = make_trainer(config, num_classes(config), config.batch_size)
        self.batch, self.steps = batch, steps
        self.init = jax.jit(trainer.init)
        state = jax.eval_shape(trainer.init, 0)
        step = jax.jit(trainer.train_step, donate_argnums=0)
        lowered = step.lower(state, *batch)
        self.program = lowered.compile()
        self.work = work(lowered, self.program)
        self.parameter_bytes = size(state.params)

    def start(self) -> None:
        """Goes to the initial state."""
        self.state = self.init(0)

    def stop(self) -> None:
        """Frees the state's memory."""
        del self.state

    def __call__(self):
        for _ in range(self.steps):
            self.state, metrics = self.program(self.state, *self.batch)
        return metrics


def preset(network: str, **changes) -> Config:
    """The first preset of a network, with a learning rate that leaves it as it is.

    So all optimizers compute with the same dense and finite weights: a processor that
    computes with zeros draws less power and may run faster.
    """
    known = {config.model: config for config in reversed(PRESETS.values())}
    if network not in known:
        raise ValueError(
            f"networks must be among {', '.join(reversed(known))}, got {network!r}"
        )
    changes |= {"learning_rate": 1e-6, "schedule": "constant"}
    return dataclasses.replace(known[network], **changes)


def is_text(config: Config) -> bool:
    """Whether a network reads texts, not images."""
    return len(models.spec(config.model).input_shape) == 1


def num_classes(config: Config) -> int:
    """Classes of a preset's data; those of texts are their bytes."""
    return 256 if is_text(config) else CLASSES.get(config.dataset, 10)


def random_batch(config: Config) -> tuple[jax.Array, jax.Array]:
    """Images or texts of random bytes, and labels, on the default device."""
    rng = np.random.default_rng(0)
    shape = (config.batch_size, *models.spec(config.model).input_shape)
    inputs = rng.integers(0, 256, shape, dtype=np.uint8)
    shape = shape if is_text(config) else shape[:1]
    labels = rng.integers(0, num_classes(config), shape, dtype=np.int32)
    return jax.device_put((inputs, labels))


def device_peak() -> int | None:
    """The most bytes that were ever in use on the device, where it counts them.

    It never falls: it tells about what ran last only where that made it rise.
    """
    statistics = jax.local_devices()[0].memory_stats()
    return statistics and statistics.get("peak_bytes_in_use")


def measure(network: str, options: Options) -> list[dict[str, Any]]:
    """Rows of the table: one an optimizer."""
    config = preset(network, dtype=options.dtype)
    if options.batch_size is not None:
        config = dataclasses.replace(config, batch_size=options.batch_size)
    batch = random_batch(config)
    steppers, peaks = {}, {}
    for name, optimizer in OPTIMIZERS.items():
        twin = dataclasses.replace(config, method=METHODS[optimizer]())
        steppers[name] = stepper = Stepper(twin, batch, options.steps)
        before = device_peak()
        stepper.start()
        jax.block_until_ready(stepper())
        peaks[name] = device_peak() if device_peak() != before else None
        stepper.stop()

    for stepper in steppers.values():
        stepper.start()
    seconds = interleaved(steppers, options.rounds)
    peak = Peak(*options.peak) if options.peak else known_peak(options.dtype)
    rows = []
    for name, stepper in steppers.items():
        median = float(np.median(seconds[name])) / options.steps
        memory = peak_bytes(stepper.program)
        more = memory - peak_bytes(steppers["SGD"].program)
        rows.append(
            {
                "network": network,
                "dtype": options.dtype,
                "batch": config.batch_size,
                "optimizer": name,
                "ms, median": f"{1e3 * median:.2f}",
                "examples/s": f"{config.batch_size / median:.1f}",
                **_used(stepper.work, median, config.batch_size, peak),
                "ratio to SGD (quartiles)": ratio(seconds[name], seconds["SGD"]),
                "program MB": f"{memory / 1e6:.1f}",
                "more than SGD, in copies of the parameters": (
                    f"{more / stepper.parameter_bytes:.3f}"
                ),
                "device MB": f"{peaks[name] / 1e6:.1f}" if peaks[name] else "",
            }
        )
    return rows


def _used(
    step: Work, seconds: float, examples: int, peak: Peak | None
) -> dict[str, str]:
    """Columns: what a step is made of, and how far its time is from the device's."""
    columns = {
        "GFLOP": f"{step.flops / 1e9:.4g}",
        "GB moved": f"{step.bytes / 1e9:.4g}",
    }
    if peak is None:
        return columns
    return columns | {
        "of peak FLOP/s, %": f"{100 * step.utilisation(seconds, peak):.1f}",
        "roofline, examples/s": f"{examples / step.bound(peak):.1f}",
    }


def main(options: Options) -> None:
    """Measures and writes the table."""
    rows = [row for network in options.networks for row in measure(network, options)]
    write_result("train_step", markdown(rows))


if __name__ == "__main__":
    run_command(main, Options, __doc__)
