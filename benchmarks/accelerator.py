"""All that a machine with an accelerator is for, in pieces that resume each other.

    python -m benchmarks.accelerator [--dataset cifar10.npz] [--minutes 9]

In this order: optimizer steps with the bandwidth they achieve; training steps of VGG16,
WideResNet-28-10 and ResNet-50 in bfloat16, gRDA beside SGD; then the paper's CIFAR-10
runs in full. It stops after some minutes with exit code 75; the same command goes on.
--output keeps what is done, the runs with their checkpoints, results.json and Markdown
tables beside the authors' figures.

An .npz file (experiments.data.load says of which arrays) needs neither TensorFlow
Datasets nor Grain. Where there are both, this makes one of CIFAR-10::

    import numpy
    from experiments.training import data
    arrays = vars(data.load("cifar10"))
    numpy.savez("cifar10.npz", **{name: arrays[name] for name in arrays if "_" in name})
"""

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from benchmarks import optimizer_step, train_step
from benchmarks.measure import markdown, write_result
from experiments.analyses import _authors as authors
from experiments.command_line import run_command
from experiments.training import session
from experiments.training.config import Config
from experiments.training.directory import environment, read_metrics, write_json
from experiments.training.presets import PRESETS

RUNS = (
    *("cifar10-vgg16-sgd", "cifar10-vgg16-mu0.6", "cifar10-vgg16-mu0.7"),
    *("cifar10-vgg16-mu0.51", "cifar10-vgg16-mu0.4", "cifar10-wrn28x10-mu0.501"),
)
# Kinds of pieces, and minutes that must be left to begin one.
KINDS = {"optimizer step": 3, "training step": 5, "run": 2}

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Options:
    """Measures an accelerator, and trains the paper's networks on it."""

    dataset: str = "cifar10"
    """CIFAR-10: "cifar10", prepared by TFDS, or the path of an .npz file."""
    data_dir: Path | None = None
    """Where TFDS keeps its data sets; by default TFDS's own choice."""
    output: Path = Path("runs/accelerator")
    """Directory of results and checkpoints."""
    minutes: float = 9
    """When to stop and save. Each time one piece is begun, whatever this says."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of activations in the runs; the authors' are float32."""
    dry_run: bool = False
    """Do the same with a tiny network on random images, to see that it works."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to measure, by kind of piece."""

    networks: tuple[str, ...]
    optimizer_steps: int  # of one timing
    training_steps: train_step.Options
    runs: dict[str, Config]

    def pieces(self) -> list[tuple[str, str]]:
        """Kind and name of every piece, in order of value."""
        names = (self.networks, self.networks, self.runs)
        return [(kind, n) for kind, of in zip(KINDS, names, strict=True) for n in of]


def make_plan(options: Options) -> Plan:
    """The whole plan, or one of the same pieces at tiny size."""
    if not options.dry_run:
        changes = {"dataset": options.dataset, "dtype": options.dtype}
        return Plan(
            networks=("vgg16", "wrn28x10", "resnet50"),
            optimizer_steps=50,
            training_steps=train_step.Options(dtype="bfloat16", steps=20, rounds=20),
            runs={n: dataclasses.replace(PRESETS[n], **changes) for n in RUNS},
        )
    images = options.output / "random.npz"
    rng = np.random.default_rng(0)
    np.savez(
        images,
        train_images=rng.integers(0, 256, (96, 8, 8, 1), np.uint8),
        train_labels=np.arange(96) % 10,
        test_images=rng.integers(0, 256, (32, 8, 8, 1), np.uint8),
        test_labels=np.arange(32) % 10,
    )
    tiny = dataclasses.replace(
        PRESETS["digits-mlp"], dataset=str(images), dtype=options.dtype, epochs=2
    )
    return Plan(
        networks=("digits-mlp",),
        optimizer_steps=2,
        training_steps=train_step.Options(dtype="bfloat16", batch_size=8, rounds=2),
        runs={n: dataclasses.replace(tiny, method=PRESETS[n].method) for n in RUNS},
    )


def perform(
    kind: str, name: str, plan: Plan, options: Options, end: float
) -> list[Row] | None:
    """Rows of one piece, or None if it is a run that had to stop before its end."""
    if kind == "optimizer step":
        rounds = plan.training_steps.rounds
        return optimizer_step.measure(name, plan.optimizer_steps, rounds)
    if kind == "training step":
        return train_step.measure(name, plan.training_steps)
    try:
        session.train(
            plan.runs[name],
            options.output / name,
            data_dir=options.data_dir,
            resume=True,
            stopping=too_late(end),
        )
    except SystemExit as stop:
        if stop.code != session.INTERRUPTED:
            raise
        return None
    return [run_row(name, plan, options)]


def too_late(end: float) -> Callable[[], bool]:
    """To be asked after each epoch: whether one more would go beyond the time `end`."""
    before = time.monotonic()

    def stopping() -> bool:
        nonlocal before
        now = time.monotonic()
        epoch, before = now - before, now
        return now + epoch > end

    return stopping


def run_row(name: str, plan: Plan, options: Options) -> Row:
    """How far a run came, beside what the authors' ended with."""
    rows = read_metrics(options.output / name)
    speeds = [row["examples_per_second"] for row in rows]
    theirs = authors.summary(PRESETS[name])
    return {
        "run": name,
        "epochs": f"{rows[-1]['epoch']} of {plan.runs[name].epochs}",
        "top-1 %": f"{100 * rows[-1]['test_accuracy']:.2f}",
        "authors' top-1 %": plus_minus(theirs, "test_acc_pct", 1),
        "zero %": f"{100 * rows[-1]['sparsity']:.2f}",
        "authors' zero %": plus_minus(theirs, "sparsity", 100),
        "images/s, median": f"{np.median(speeds):.0f}",
    }


def plus_minus(line: dict[str, str], name: str, factor: float) -> str:
    """Mean and standard deviation of one quantity of the authors' summary."""
    mean, deviation = (factor * float(line[f"{name}_{x}"]) for x in ("mean", "std"))
    return f"{mean:.2f} ± {deviation:.2f}"


def outcome_file(kind: str, name: str, options: Options) -> Path:
    """Where the outcome of a piece is kept."""
    return options.output / f"{kind}-{name}.json".replace(" ", "-")


def report(plan: Plan, options: Options) -> None:
    """Writes results.json and the tables of all that is known by now."""
    tables: dict[str, list[Row]] = {kind: [] for kind in KINDS}
    errors = []
    for kind, name in plan.pieces():
        path = outcome_file(kind, name, options)
        outcome = json.loads(path.read_text()) if path.exists() else {}
        if "rows" in outcome:
            tables[kind] += outcome["rows"]
        elif kind == "run" and (options.output / name / "metrics.jsonl").exists():
            tables[kind].append(run_row(name, plan, options))
        if "error" in outcome:
            errors.append(f"{kind} {name}: {outcome['error']}")
    run = next(iter(plan.runs.values()))
    about = (
        f"Runs: {run.dataset}, {run.dtype}, seed {run.seed}. The authors' figures are "
        "means ± standard deviations over ten runs, save nine of mu 0.7."
    )
    if options.dry_run:
        about = f"A dry run: a tiny network on random images. {about}"
    parts = [about, *(markdown(rows) for rows in tables.values() if rows), *errors]
    write_result("accelerator", "\n\n".join(parts), options.output)
    results = {**tables, "errors": errors, "environment": environment()}
    write_json(options.output / "results.json", results)


def main(options: Options) -> None:
    """Performs pieces until the time is up, and reports."""
    end = time.monotonic() + 60 * options.minutes
    options.output.mkdir(parents=True, exist_ok=True)
    # What was compiled once need not be again.
    jax.config.update("jax_compilation_cache_dir", str(options.output / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    plan = make_plan(options)
    left = [
        (kind, name)
        for kind, name in plan.pieces()
        if not outcome_file(kind, name, options).exists()
    ]
    for number, (kind, name) in enumerate(left):
        if number > 0 and end - time.monotonic() < 60 * KINDS[kind]:
            break
        print(f"{kind}: {name}", flush=True)
        try:
            rows = perform(kind, name, plan, options, end)
        except (session.DivergedError, jax.errors.JaxRuntimeError) as error:
            # NaN, or out of memory: the others may do.
            outcome = {"error": str(error).splitlines()[0]}
        else:
            if rows is None:
                break
            outcome = {"rows": rows}
        write_json(outcome_file(kind, name, options), outcome)
    else:
        left = []
    report(plan, options)
    if left:
        print("there is more to do: run the same command again", file=sys.stderr)
        sys.exit(session.INTERRUPTED)


if __name__ == "__main__":
    run_command(main, Options, __doc__)
