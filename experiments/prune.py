"""Directional pruning by its definition, beside the usual rules and gRDA.

    python -m experiments.prune RUN [RUN ...] [--output DIRECTORY]

For every run of gRDA and its SGD twin: SGD's solution is pruned in one shot, without
retraining, to several sparsities, among them gRDA's own: by the definition (scores of
P_eps sign(w), for several cutoffs eps), by magnitude, and by Optimal Brain Damage.
After every epoch of which both have a checkpoint, gRDA's displacement is compared with
that of the definition at the strength that the theory names, the threshold. Writes
prune.json and figures/ to a directory.
"""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax.flatten_util import ravel_pytree
from rich.console import Console
from rich.table import Table

from experiments import analysis_figures, logger
from experiments.connect import metrics_at
from experiments.curvature import gauss_newton, gauss_newton_diagonal
from experiments.runs import Pair, find_pairs
from optax_grda import sparsity
from optax_grda.curvature import (
    agreement,
    directional_pruning,
    directional_scores,
    prune_smallest,
    strength_for_sparsity,
)

PyTree = Any
AS_GRDA = "gRDA's"  # the sparsity that gRDA reached


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


def prune(pair: Pair, options: Options) -> list[dict[str, Any]]:
    """Rows of method, sparsity, training loss and test accuracy."""
    task, (sgd, grda) = pair.sgd.task, pair.states(pair.epochs[-1])
    params, matrix = sgd.params, gauss_newton(task, sgd)
    evaluate = jax.jit(metrics_at, static_argnums=0)

    def row(method: str, pruned: PyTree, asked: float | str, **more) -> dict[str, Any]:
        metrics = evaluate(task.trainer, pruned, task.train, task.test)
        return {
            **pair.describe(),
            "method": method,
            "asked": asked,
            "sparsity": sparsity(pruned),
            "train_loss": metrics["train_loss"],
            "test_accuracy": 1 - metrics["test_error"],
            **more,
        }

    rows = [row("SGD", params, "none"), row("gRDA", grda.params, AS_GRDA)]
    wanted = {s: s for s in options.sparsities} | {AS_GRDA: float(rows[1]["sparsity"])}
    saliencies = {
        "magnitude": jax.tree.map(jnp.abs, params),
        "OBD": jax.tree.map(
            lambda h, w: h * jnp.square(w) / 2,
            gauss_newton_diagonal(task, sgd),
            params,
        ),
    }
    for method, saliency in saliencies.items():
        for asked, s in wanted.items():
            rows.append(row(method, prune_smallest(params, saliency, s), asked))
    for cutoff in options.cutoffs:
        scores, residual = scores_at(params, matrix, cutoff, options.products)
        for asked, s in wanted.items():
            try:
                strength = strength_for_sparsity(params, scores, s)
            except ValueError:  # more than the weights with a positive score
                continue
            pruned = directional_pruning(params, scores, strength)
            about = {"cutoff": cutoff, "residual": residual, "strength": strength}
            rows.append(row(f"definition, ε = {cutoff:g}", pruned, asked, **about))
    return rows


def agree(pair: Pair, options: Options) -> Iterator[dict[str, Any]]:
    """Rows of epoch, cosine and overlap, for the definition and two controls."""
    cutoff = sorted(options.cutoffs)[len(options.cutoffs) // 2]
    for epoch in pair.epochs:
        sgd, grda = pair.states(epoch)
        threshold = optax.tree.get(grda.opt_state, "threshold")
        matrix = gauss_newton(pair.sgd.task, sgd)
        scores = scores_at(sgd.params, matrix, cutoff, options.products).scores
        candidates = {
            "definition": scores,
            "shuffled scores": shuffle(scores),
            "all scores 1": jax.tree.map(jnp.ones_like, scores),
        }
        for name, candidate in candidates.items():
            pruned = directional_pruning(sgd.params, candidate, threshold)
            result = agreement(sgd.params, grda.params, pruned)
            yield {
                **pair.describe(),
                "epoch": epoch,
                "scores": name,
                "cutoff": cutoff,
                "strength": threshold,
                **result._asdict(),
                "sparsity": sparsity(pruned),
                "grda_sparsity": sparsity(grda.params),
            }


@functools.partial(jax.jit, static_argnums=3)
def scores_at(params: PyTree, matrix, cutoff, products: int):
    """The scores of directional pruning at a cutoff."""
    with jax.default_matmul_precision("highest"):
        return directional_scores(params, matrix, cutoff, max_products=products)


def shuffle(scores: PyTree) -> PyTree:
    """The same scores, each at some other weight."""
    flat, unravel = ravel_pytree(scores)
    return unravel(jax.random.permutation(jax.random.key(0), flat))


def table(rows: list[dict[str, Any]]) -> Table:
    """Means over the pairs, where all reach a sparsity: a row each, methods beside."""
    methods = list(
        dict.fromkeys(row["method"] for row in rows if row["asked"] != "none")
    )
    table = Table(title="Training loss (test accuracy, %), mean of all pairs")
    for header in ("zeros", *methods):
        table.add_column(header, justify="right")
    pairs = sum(row["method"] == "gRDA" for row in rows)
    levels: dict[Any, list] = {}
    for row in rows:
        levels.setdefault(row["asked"], []).append(row)
    for here in sorted(levels.values(), key=lambda here: here[0]["sparsity"]):
        cells = [f"{np.mean([row['sparsity'] for row in here]):.1%}"]
        for method in methods:
            found = [
                (row["train_loss"], 100 * row["test_accuracy"])
                for row in here
                if row["method"] in (method, "SGD")
            ]
            # A mean over those pairs that get there would flatter the method.
            reached = bool(found) and len(found) == pairs
            cells.append(
                "{:.3f} ({:.1f})".format(*np.mean(found, 0)) if reached else ""
            )
        table.add_row(*cells)
    return table


def main(options: Options) -> Path:
    """Prunes and compares all pairs, and returns the directory of the results."""
    pairs = find_pairs(options.runs, options.data_dir)
    directory = logger.new_directory(options.output, "prune")
    results: dict[str, list] = {"pruning": [], "agreement": []}
    with logger.progress_bar(len(pairs), "prune", unit="pair") as bar:
        for pair in pairs:
            results["pruning"] += map(logger.plain, prune(pair, options))
            results["agreement"] += map(logger.plain, agree(pair, options))
            logger.write_json(directory / "prune.json", results)
            bar.update()
    analysis_figures.draw_prune(directory)
    console = Console()
    console.print(table(results["pruning"]))
    console.print(f"Figures and numbers are in {directory}", highlight=False)
    return directory


if __name__ == "__main__":
    logger.run_command(main, Options, __doc__)
