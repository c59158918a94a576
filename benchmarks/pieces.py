"""What is worth measuring on an accelerator, in order: a list of pieces.

A piece has a name, says how many seconds it will take, and returns what it found. What
else is worth keeping, such as weights, it leaves in a directory of its own, in files of
less than 16 MiB.
"""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import optimizer_step, train_step
from experiments.analyses import _authors as authors
from experiments.analyses import _files
from experiments.analyses.options import Connect, Project
from experiments.arena import __main__ as arena
from experiments.arena.networks import NETWORKS
from experiments.training import session
from experiments.training.config import Config, Grda, Sgd
from experiments.training.directory import read_json, read_metrics, write_json
from experiments.training.errors import UserError
from experiments.training.presets import PRESETS
from experiments.training.runs import Run
from experiments.training.text import LENGTH, STDLIB
from optax_grda import packing

Result = dict[str, Any]  # plain, as in a JSON file; "rows", if any, are a table's

FILE = 16 * 2**20  # bytes, more than any file to be kept has
PROBE = 20  # steps from which the time of a run is predicted


class Job(NamedTuple):
    """What a piece is given."""

    keep: Path  # directory for what should be kept, not made yet
    scratch: Path  # directory for what need not be
    left: float  # seconds
    earlier: dict[str, Result]  # of all pieces, by name


class Piece(NamedTuple):
    """Something to measure."""

    name: str
    seconds: Callable[[], float]  # that it will take
    run: Callable[[Job], Result]  # with "left": true if there is more to do


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How large the pieces are."""

    dataset: str = "cifar10"  # CIFAR-10 or an .npz file, as of data.load
    data_dir: Path | None = None  # where TFDS keeps its data sets
    images: int = 50_000  # that it has to train on
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)  # of their runs
    text: str = STDLIB  # or a folder
    windows: int = 16_383  # of it, to train on
    transformer: str = "text-384x6"  # a preset, beside which NAME-adam is trained
    optimizer_steps: tuple[str, ...] = ("vgg16", "resnet50")
    training_steps: tuple[str, ...] = (
        "vgg16",
        "resnet50",
        "wrn28x10",
        "transformer-384x6",
    )
    steps: int = 20  # of one timing
    rounds: int = 20
    batch_size: int | None = None  # of training steps; by default the preset's
    pair_epochs: int = 30  # of the short pair
    bend_epochs: int = 6
    points: int = 11
    eigenpairs: int = 10
    arena: str = "cifar10-vgg16bn"
    rivals: tuple[str, ...] = (
        *("momentum", "dial-clipped", "gradual-global", "ac-dc", "rigl", "dial-power3"),
        *("dial-soft", "grda", "top-kast"),
    )
    sparsities: tuple[float, ...] = (0.9, 0.95)
    seeds: int = 3

    def config(self, preset: str, **changes) -> Config:
        """A run of a preset in bfloat16, of the size of this."""
        config, changes = PRESETS[preset], {"dtype": "bfloat16"} | changes
        if train_step.is_text(config):
            changes |= {"dataset": self.text}
        else:
            changes = {"dataset": self.dataset} | changes | self.changes
        return dataclasses.replace(config, **changes)


def tiny(scratch: Path) -> Sizes:
    """Sizes with which all pieces take seconds on a CPU; writes images and texts."""
    path, rng = scratch / "random.npz", np.random.default_rng(0)
    np.savez(
        path,
        train_images=rng.integers(0, 256, (96, 8, 8, 1), np.uint8),
        train_labels=np.arange(96) % 10,
        test_images=rng.integers(0, 256, (32, 8, 8, 1), np.uint8),
        test_labels=np.arange(32) % 10,
    )
    text = scratch / "text"
    text.mkdir(exist_ok=True)
    for name in ("one", "two"):
        (text / name).write_bytes(rng.bytes(40 * LENGTH + 1))
    changes = {"model": "digits-mlp", "augmentation": "none", "epochs": 2}
    return Sizes(
        dataset=str(path),
        images=96,
        changes=changes,
        text=str(text),
        windows=40,
        transformer="text-64x2",
        optimizer_steps=("digits-mlp",),
        training_steps=("digits-mlp", "transformer-64x2"),
        steps=2,
        rounds=2,
        batch_size=8,
        bend_epochs=1,
        points=3,
        eigenpairs=2,
        arena="digits-mlp",
        rivals=("momentum",),
        sparsities=(0.9,),
        seeds=1,
    )


def pieces(sizes: Sizes) -> list[Piece]:
    """All pieces, the most valuable first."""
    vgg16 = "cifar10-vgg16"
    units = dataclasses.replace(PRESETS[vgg16].method, groups="units")
    return [
        *(_optimizer_step(network, sizes) for network in sizes.optimizer_steps),
        *(_training_step(network, sizes) for network in sizes.training_steps),
        _pair(vgg16, sizes),
        *(_arena(method, sizes) for method in sizes.rivals),
        *(_run(f"{vgg16}-mu{mu}", sizes) for mu in (0.7, 0.51, 0.4)),
        *(_run(f"{vgg16}-{row}", sizes, "-seed1", seed=1) for row in ("sgd", "mu0.6")),
        _run(f"{vgg16}-mu0.6", sizes, "-units", method=units),
        *(_run(sizes.transformer + twin, sizes) for twin in ("", "-adam")),
    ]


def _optimizer_step(network: str, sizes: Sizes) -> Piece:
    def run(job: Job) -> Result:
        return {"rows": optimizer_step.measure(network, sizes.steps, sizes.rounds)}

    # Most of it goes to compiling.
    return Piece(f"optimizer-step-{network}", lambda: 60.0, run)


def _training_step(network: str, sizes: Sizes) -> Piece:
    options = train_step.Options(
        dtype="bfloat16",
        batch_size=sizes.batch_size,
        steps=sizes.steps,
        rounds=sizes.rounds,
    )

    def seconds() -> float:
        config = train_step.preset(network, dtype=options.dtype)
        compiling, step = probe(config)
        return 3 * (compiling + (1 + options.rounds) * options.steps * step)

    def run(job: Job) -> Result:
        return {"rows": train_step.measure(network, options)}

    return Piece(f"training-step-{network}", seconds, run)


def _pair(preset: str, sizes: Sizes) -> Piece:
    """Trains a short pair, and asks how its two solutions lie to each other."""
    configs = {
        name: sizes.config(f"{preset}-{name}", epochs=sizes.pair_epochs)
        for name in ("sgd", "mu0.6")
    }

    def seconds() -> float:
        # Passes over the images, or what takes as long: a product with the Hessian is 3
        # gradients in float32, and ten eigenpairs take some 60.
        passes = sizes.bend_epochs + sizes.points + 60 * 3 * 2
        return _run_seconds(configs["sgd"], sizes, 2 * sizes.pair_epochs + passes)

    def run(job: Job) -> Result:
        places = {"data_dir": sizes.data_dir}
        directories = tuple(
            session.train(
                config, job.scratch / name, checkpoint_every=config.epochs, **places
            )
            for name, config in configs.items()
        )
        asked = (
            Connect(
                directories,
                epochs=sizes.bend_epochs,
                points=sizes.points,
                grid=0,
                output=job.scratch / "connect",
                **places,
            ),
            Project(
                directories,
                k=sizes.eigenpairs,
                output=job.scratch / "project",
                **places,
            ),
        )
        return {
            options.name: read_json(_files.write(options) / f"{options.name}.json")
            for options in asked
        }

    return Piece("connect-and-project", seconds, run)


def _arena(method: str, sizes: Sizes) -> Piece:
    """One method in the arena, after those that others had there before."""

    def seconds() -> float:
        network = NETWORKS[sizes.arena]
        config = Config(
            model=network.model, method=Sgd(), batch_size=network.batch_size
        )
        # Until the learning rate is chosen; then it is asked again, by the arena.
        return _run_seconds(config, sizes, len(network.paces) * network.epochs)

    def run(job: Job) -> Result:
        output = job.scratch / "arena"
        output.mkdir()
        rows = [
            row
            for name, result in job.earlier.items()
            if name.startswith("arena-")
            for row in result["runs"]
        ]
        write_json(output / "arena.json", {"options": {}, "rows": rows})
        options = arena.Options(
            networks=(sizes.arena,),
            methods=(method,),
            sparsity=sizes.sparsities,
            seeds=sizes.seeds,
            tuning_seeds=1,
            minutes=job.left / 60,
            cifar10=None if sizes.dataset == "cifar10" else Path(sizes.dataset),
            data_dir=sizes.data_dir,
            output=output,
            resume=True,
        )
        with contextlib.suppress(UserError):  # not even one method came to its end
            arena.main(options)
        found = read_json(output / "arena.json")["rows"]
        mine = [row for row in found if row["method"] == method]
        tested = [row for row in mine if row["phase"] == "test"]
        dense = method in ("momentum", "sgd")
        wanted = sizes.seeds * (1 if dense else len(sizes.sparsities))
        return {"runs": mine, "left": len(tested) < wanted}

    return Piece(f"arena-{method}", seconds, run)


def _run(preset: str, sizes: Sizes, suffix: str = "", **changes) -> Piece:
    """A run of a preset in full, or with changes that a suffix names."""
    name, config = preset + suffix, sizes.config(preset, **changes)

    def run(job: Job) -> Result:
        directory = session.train(
            config,
            job.scratch / name,
            data_dir=sizes.data_dir,
            checkpoint_every=config.epochs,
        )
        job.keep.mkdir(parents=True, exist_ok=True)
        keep_weights(Run(directory, sizes.data_dir).state().params, job.keep)
        metrics = read_metrics(directory)
        return {
            "rows": [{"run": name, **_row(preset, metrics)}],
            "config": read_json(directory / "config.json"),
            "summary": read_json(directory / "summary.json"),
            "metrics": [
                row for row in metrics if row["epoch"] % 10 == 0 or row is metrics[-1]
            ],
        }

    return Piece(name, lambda: _run_seconds(config, sizes, config.epochs), run)


def _row(preset: str, metrics: list[dict[str, Any]]) -> dict[str, Any]:
    """What a run ended with; of images, beside what the authors' did."""
    last, config = metrics[-1], PRESETS[preset]
    zero = f"{100 * last['sparsity']:.2f}"
    speed = f"{np.median([row['examples_per_second'] for row in metrics]):.0f}"
    if train_step.is_text(config):
        return {
            "epochs": last["epoch"],
            "nats a byte": f"{last['test_loss']:.3f}",
            "perplexity": f"{np.exp(last['test_loss']):.3f}",
            "zero %": zero,
            "texts/s, median": speed,
        }
    theirs = authors.summary(config)
    return {
        "epochs": last["epoch"],
        "top-1 %": f"{100 * last['test_accuracy']:.2f}",
        "authors' top-1 %": plus_minus(theirs, "test_acc_pct", 1),
        "zero %": zero,
        "authors' zero %": plus_minus(theirs, "sparsity", 100),
        "images/s, median": speed,
    }


def plus_minus(line: dict[str, str], name: str, factor: float) -> str:
    """Mean and standard deviation of one quantity of the authors' summary."""
    mean, deviation = (factor * float(line[f"{name}_{x}"]) for x in ("mean", "std"))
    return f"{mean:.2f} ± {deviation:.2f}"


def keep_weights(params: Any, directory: Path) -> None:
    """Packs weights into weights-1.safetensors and so on, each smaller than FILE.

    Unless one array alone is larger.
    """
    for number, part in enumerate(_parts(params), start=1):
        packing.pack(part, directory / f"weights-{number}.safetensors")


def _parts(params: Any) -> Iterator[dict[str, np.ndarray]]:
    """The leaves by path, as many together as surely fit into a file."""
    part, size = {}, 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if part and size + leaf.nbytes > FILE - 2**20:
            yield part
            part, size = {}, 0
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        part[name] = np.asarray(leaf)
        size += leaf.nbytes
    yield part


def _run_seconds(config: Config, sizes: Sizes, epochs: int) -> float:
    """How long so many epochs of a run will take."""
    compiling, step = probe(config)
    # An epoch is compiled for whole batches and for the rest; evaluation takes about as
    # long as a loop saves, which does not return to Python after a step.
    inputs = sizes.windows if train_step.is_text(config) else sizes.images
    return 2 * compiling + epochs * -(-inputs // config.batch_size) * step


def probe(config: Config) -> tuple[float, float]:
    """Seconds to compile a training step, and seconds of one, from 20 of them."""
    same = dataclasses.replace(config, method=Grda(), seed=0, epochs=1)
    return _probe(same)


@functools.cache
def _probe(config: Config) -> tuple[float, float]:
    start = time.monotonic()
    batch = train_step.random_batch(config)
    stepper = train_step.Stepper(config, batch, steps=PROBE)
    stepper.start()
    jax.block_until_ready(stepper())
    compiled = time.monotonic()
    jax.block_until_ready(stepper())
    return compiled - start, (time.monotonic() - compiled) / PROBE
