"""Directional pruning by its definition, beside the usual rules and gRDA.

    python -m experiments.prune RUN [RUN ...] [--output DIRECTORY]

For every run of gRDA and its SGD twin: SGD's solution is pruned in one shot, without
retraining, to several sparsities, among them gRDA's own: by the definition (scores of
P_eps sign(w), for several cutoffs eps), by magnitude, and by Optimal Brain Damage.
After every epoch of which both have a checkpoint, gRDA's displacement is compared with
that of the definition at the strength that the theory names, the threshold. (The theory
is that of gRDA: of runs that were steered to a sparsity, or in which whole units were
thresholded, it says nothing.) Writes prune.json and figures/ to a directory.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax.flatten_util import ravel_pytree

from experiments.analyses import _plots as analysis_figures
from experiments.analyses._curvature import gauss_newton, gauss_newton_diagonal
from experiments.analyses._files import analyse, by_level, print_table
from experiments.analyses.connect import metrics_at
from experiments.training.runs import (
    Pair,
    Run,
    Task,
    by_sgd_epoch,
    displacement,
    find_pairs,
    last_common_epoch,
)
from experiments.training.trainer import TrainState
from optax_grda import sparsity
from optax_grda.curvature import (
    DirectionalScores,
    agreement,
    directional_pruning,
    directional_scores,
    prune_smallest,
    strength_for_sparsity,
)

PyTree = Any
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Options:
    """Prunes SGD's solution by directional pruning's definition, and by other rules."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run directories, or directories of them."""
    sparsities: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
    """Fractions of weights to prune, besides that of gRDA."""
    cutoffs: tuple[float, ...] = (1e-3, 1e-4, 1e-5)
    """Curvatures that count as half flat; agreement is measured at the middle one."""
    products: int = 100
    """Products with the Gauss-Newton matrix for one set of scores, at most."""
    data_dir: Path | None = None
    """Where TFDS keeps its data sets; by default TFDS's own choice."""
    output: Path | None = None
    """Directory of the results; by default a new one under runs/."""

    def __post_init__(self):
        if not all(0 < s < 1 for s in self.sparsities):
            raise ValueError(f"sparsities must be in (0, 1), got {self.sparsities}")
        if not self.cutoffs or min(self.cutoffs) <= 0:
            raise ValueError(f"cutoffs must be > 0, got {self.cutoffs}")
        if self.products < 1:
            raise ValueError(f"products must be >= 1, got {self.products}")


def analyse_epoch(
    sgd: Run, epoch: int, pairs: list[Pair], options: Options, last: int
) -> dict[str, list[Row]]:
    """Agreement of the pairs of one run of SGD after an epoch; pruning, if the last.

    Returns:
      Rows by "agreement" and "pruning".
    """
    state = sgd.state(epoch)
    matrix = gauss_newton(sgd.task, state)
    middle = sorted(options.cutoffs)[len(options.cutoffs) // 2]
    scores = {
        cutoff: scores_at(state.params, matrix, cutoff, options.products)
        for cutoff in (options.cutoffs if epoch == last else (middle,))
    }
    found: dict[str, list[Row]] = {"agreement": [], "pruning": []}
    grdas = [pair.grda.state(epoch) for pair in pairs]
    for pair, grda in zip(pairs, grdas, strict=True):
        displacement(pair, state.params, grda.params)  # raises if there is none
        about = {**pair.describe(), "epoch": epoch, "cutoff": middle}
        rows = agree(state.params, grda, scores[middle].scores)
        found["agreement"] += [about | row for row in rows]
    if epoch == last:
        labelled = {
            pair.grda.config.label: grda.params
            for pair, grda in zip(pairs, grdas, strict=True)
        }
        about = {**sgd.describe(), "epoch": epoch}
        rows = prune(sgd.task, state, labelled, scores, options)
        found["pruning"] += [about | row for row in rows]
    return found


def prune(
    task: Task,
    state: TrainState,
    grdas: dict[str, PyTree],
    scores: dict[float, DirectionalScores],
    options: Options,
) -> Iterator[Row]:
    """Rows of method, sparsity, training loss and test accuracy.

    "asked" is the sparsity, or the label of that gRDA whose sparsity was asked for.
    """
    params, evaluate = state.params, jax.jit(metrics_at, static_argnums=0)

    def row(method: str, pruned: PyTree, asked: float | str, **more) -> Row:
        metrics = evaluate(task.trainer, pruned, task.train, task.test)
        return {
            "method": method,
            "asked": asked,
            "sparsity": sparsity(pruned),
            "train_loss": metrics["train_loss"],
            "test_accuracy": 1 - metrics["test_error"],
            **more,
        }

    yield row("SGD", params, "none")
    wanted: dict[float | str, float] = {s: s for s in options.sparsities}
    for label, weights in grdas.items():
        grda = row("gRDA", weights, label)
        wanted[label] = float(grda["sparsity"])
        yield grda
    saliencies = {
        "magnitude": jax.tree.map(jnp.abs, params),
        "OBD": jax.tree.map(
            lambda h, w: h * jnp.square(w) / 2,
            gauss_newton_diagonal(task, state),
            params,
        ),
    }
    for method, saliency in saliencies.items():
        for asked, s in wanted.items():
            yield row(method, prune_smallest(params, saliency, s), asked)
    for cutoff, (by_weight, residual) in scores.items():
        for asked, s in wanted.items():
            try:
                strength = strength_for_sparsity(params, by_weight, s)
            except ValueError:  # more than the weights with a positive score
                continue
            pruned = directional_pruning(params, by_weight, strength)
            about = {"cutoff": cutoff, "residual": residual, "strength": strength}
            yield row(f"definition, ε = {cutoff:g}", pruned, asked, **about)


def agree(sgd: PyTree, grda: TrainState, scores: PyTree) -> Iterator[Row]:
    """Rows of cosine and overlap, for the definition and two controls."""
    threshold = optax.tree.get(grda.opt_state, "threshold")
    candidates = {
        "definition": scores,
        "shuffled scores": shuffle(scores),
        "all scores 1": jax.tree.map(jnp.ones_like, scores),
    }
    for name, candidate in candidates.items():
        pruned = directional_pruning(sgd, candidate, threshold)
        yield {
            "scores": name,
            "strength": threshold,
            **agreement(sgd, grda.params, pruned)._asdict(),
            "sparsity": sparsity(pruned),
            "grda_sparsity": sparsity(grda.params),
        }


def scores_at(params: PyTree, matrix, cutoff, products: int):
    """The scores of directional pruning at a cutoff."""
    with jax.default_matmul_precision("highest"):
        return directional_scores(matrix, params, cutoff, max_products=products)


def shuffle(scores: PyTree) -> PyTree:
    """The same scores, each at some other weight."""
    flat, unravel = ravel_pytree(scores)
    return unravel(jax.random.permutation(jax.random.key(0), flat))


def table(rows: list[Row]) -> list[dict[str, str]]:
    """Means over the runs, where all reach a sparsity: a row each, methods beside.

    Training loss, and test accuracy in percent. ε: the definition at that cutoff.
    """
    levels = by_level(rows)
    methods = dict.fromkeys(name for level in levels.values() for name in level)
    del methods["SGD"]  # a row of its own: what all methods start from

    def zeros(level):
        return np.mean([row["sparsity"] for mine in level.values() for row in mine])

    def cell(mine):
        if not mine:
            return ""
        loss, accuracy = (
            np.mean([row[name] for row in mine])
            for name in ("train_loss", "test_accuracy")
        )
        return f"{loss:.3f} ({100 * accuracy:.1f})"

    def header(name):  # a narrow one
        return name.removeprefix("definition, ")

    return [
        {"zeros": f"{zeros(level):.1%}{', SGD' * ('SGD' in level)}"}
        | {header(name): cell(level.get(name, level.get("SGD"))) for name in methods}
        for level in sorted(levels.values(), key=zeros)
    ]


def residuals(rows: list[Row]) -> str:
    """How far conjugate gradients came with the scores of each cutoff."""
    found: dict[float, list[float]] = {}
    for row in rows:
        if "residual" in row:
            found.setdefault(row["cutoff"], []).append(row["residual"])
    largest = (f"{max(found[c]):.1g} at ε = {c:g}" for c in sorted(found, reverse=True))
    return (
        f"Largest relative residual of the scores: {', '.join(largest)}; where it is "
        "not small, more products would change them."
    )


def main(options: Options) -> Path:
    """Prunes and compares all pairs, and returns the directory of the results."""
    pairs = find_pairs(options.runs, options.data_dir)
    work, last = by_sgd_epoch(pairs), last_common_epoch(pairs)
    directory, found = analyse(
        "prune",
        options,
        (analyse_epoch(*part, options, last) for part in work),
        len(work),
        analysis_figures.draw_prune,
    )
    title = "Training loss (test accuracy, %); ε: the definition at that cutoff"
    print_table(title, table(found["pruning"]), directory)
    print(residuals(found["pruning"]))
    return directory
