"""Directional pruning by its definition, beside the usual rules and gRDA.

The theory is that of gRDA: of runs that were steered to a sparsity, or in which whole
units were thresholded, it says nothing.
"""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from matplotlib.figure import Figure

from experiments.analyses._curvature import gauss_newton, gauss_newton_diagonal
from experiments.analyses._files import Found, Rows, by_setting, of_last_epoch
from experiments.analyses._plots import COLORS, band, figure_of, over_epochs, panels
from experiments.analyses._show import Cells, Section, listed
from experiments.analyses.connect import metrics_at
from experiments.analyses.options import Prune
from experiments.training.runs import (
    Pair,
    Run,
    Task,
    by_sgd_epoch,
    displacement,
    find_pairs,
    last_common_epoch,
)
from experiments.training.trainer import Trainer, TrainState
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
Level = tuple[float | None, str | None]  # "asked" and "like" of rows of pruning
KEYS = {
    "agreement": ("grda", "epoch", "scores"),
    # rule: SGD (that is, none), gRDA, magnitude, OBD, or definition at a cutoff.
    # asked: a sparsity, or None where it was that of the gRDA whose label is "like".
    "pruning": ("sgd", "epoch", "rule", "cutoff", "asked", "like"),
}


def parts(options: Prune) -> list[Callable[[Path], dict[str, Rows]]]:
    """A part a run of SGD and an epoch."""
    pairs = find_pairs(options.runs, options.data_dir)
    last = last_common_epoch(pairs)
    work = by_sgd_epoch(pairs)
    return [functools.partial(analyse, *part, options, last) for part in work]


def analyse(
    sgd: Run, epoch: int, pairs: list[Pair], options: Prune, last: int, _: Path
) -> dict[str, Rows]:
    """Agreement of the pairs of one run of SGD after an epoch; pruning, if the last."""
    state = sgd.state(epoch)
    matrix = gauss_newton(sgd.task, state)
    middle = sorted(options.cutoffs)[len(options.cutoffs) // 2]
    with jax.default_matmul_precision("highest"):
        scores = {
            cutoff: directional_scores(
                matrix, state.params, cutoff, max_products=options.products
            )
            for cutoff in (options.cutoffs if epoch == last else (middle,))
        }
    found: dict[str, Rows] = {"agreement": [], "pruning": []}
    grdas = [pair.grda.state(epoch) for pair in pairs]
    for pair, grda in zip(pairs, grdas, strict=True):
        displacement(pair, state.params, grda.params)  # raises if there is none
        about = {**pair.describe(), "epoch": epoch, "cutoff": middle}
        rows = agree(state.params, grda, scores[middle].scores)
        found["agreement"] += [about | row for row in rows]
    if epoch == last:
        labels = [pair.grda.config.method.label for pair in pairs]
        sparse = dict(zip(labels, [grda.params for grda in grdas], strict=True))
        about = {**sgd.describe(), "epoch": epoch}
        rows = prune(sgd.task, state, sparse, scores, options)
        found["pruning"] += [about | row for row in rows]
    return found


def prune(
    task: Task,
    state: TrainState,
    sparse: dict[str, PyTree],
    scores: dict[float, DirectionalScores],
    options: Prune,
) -> Iterator[Row]:
    """Rows of rule, sparsity, training loss and test accuracy.

    Args:
      task: network and data.
      state: SGD's.
      sparse: weights of gRDA, by label.
      scores: those of SGD's weights, by cutoff.
      options: the sparsities to prune to, besides those of gRDA.
    """
    params = state.params

    def row(rule: str, pruned: PyTree, level: Level, cutoff=None, **more) -> Row:
        about = {"rule": rule, "cutoff": cutoff, "asked": level[0], "like": level[1]}
        return about | evaluate(task.trainer, pruned, task.train, task.test) | more

    yield row("SGD", params, (None, None))
    wanted: dict[Level, float] = {(s, None): s for s in options.sparsities}
    for label, weights in sparse.items():
        grda = row("gRDA", weights, (None, label))
        wanted[None, label] = float(grda["sparsity"])
        yield grda
    for rule, saliency in saliencies(
        params, gauss_newton_diagonal(task, state)
    ).items():
        for level, s in wanted.items():
            yield row(rule, prune_smallest(params, saliency, s), level)
    for cutoff, (by_weight, residual) in scores.items():
        for level, s in wanted.items():
            try:
                strength = strength_for_sparsity(params, by_weight, s)
            except ValueError:  # more than the weights with a positive score
                continue
            pruned = directional_pruning(params, by_weight, strength)
            about = {"residual": residual, "strength": strength}
            yield row("definition", pruned, level, cutoff, **about)


@functools.partial(jax.jit, static_argnums=0)
def evaluate(trainer: Trainer, params: PyTree, train, test) -> dict[str, jax.Array]:
    """What a row of pruning tells of weights."""
    metrics = metrics_at(trainer, params, train, test)
    return {
        "sparsity": sparsity(params),
        "train_loss": metrics["train_loss"],
        "test_accuracy": 1 - metrics["test_error"],
    }


@jax.jit
def saliencies(params: PyTree, diagonal: PyTree) -> dict[str, PyTree]:
    """Those of the usual rules; the diagonal is that of the Gauss-Newton matrix."""
    return {
        "magnitude": jax.tree.map(jnp.abs, params),
        "OBD": jax.tree.map(lambda h, w: h * jnp.square(w) / 2, diagonal, params),
    }


def agree(sgd: PyTree, grda: TrainState, scores: PyTree) -> Iterator[Row]:
    """Rows of cosine and overlap, for the definition and two controls."""
    threshold = optax.tree.get(grda.opt_state, "threshold")
    flat, unravel = ravel_pytree(scores)
    candidates = {
        "definition": scores,
        "shuffled scores": unravel(jax.random.permutation(jax.random.key(0), flat)),
        "all scores 1": unravel(jnp.ones_like(flat)),
    }
    for name, candidate in candidates.items():
        found = agree_with(sgd, grda.params, candidate, threshold)
        yield {"scores": name, "strength": threshold} | found


@jax.jit
def agree_with(sgd: PyTree, grda: PyTree, scores: PyTree, strength: jax.Array) -> Row:
    """What a row of agreement tells of scores."""
    pruned = directional_pruning(sgd, scores, strength)
    return {
        **agreement(sgd, grda, pruned)._asdict(),
        "sparsity": sparsity(pruned),
        "grda_sparsity": sparsity(grda),
    }


def by_level(rows: Rows) -> dict[Level, dict[tuple[str, float | None], Rows]]:
    """Rows of pruning by what sparsity was asked for, and by rule and cutoff.

    Without rules that only some of the runs got there with: a mean over those would
    flatter the rule.
    """
    levels: dict[Level, dict[tuple[str, float | None], Rows]] = {}
    for row in rows:
        rules = levels.setdefault((row["asked"], row["like"]), {})
        rules.setdefault((row["rule"], row["cutoff"]), []).append(row)
    for level, rules in levels.items():
        runs = max(map(len, rules.values()))
        levels[level] = {rule: rs for rule, rs in rules.items() if len(rs) == runs}
    return levels


def sentence(found: Found) -> str:
    """How far gRDA went where the definition says, and how far the scores converged."""
    cosines = []
    for label, mine in by_setting(found["agreement"]).items():
        last = of_last_epoch(mine)
        means = [
            np.mean([row["cosine"] for row in last if row["scores"] == scores])
            for scores in ("definition", "shuffled scores", "all scores 1")
        ]
        cosines.append(f"{', '.join(f'{mean:.3f}' for mean in means)} ({label})")
    return (
        "After the last epoch, the cosines of gRDA's displacement from SGD with that "
        "of directional pruning by its definition, by the scores of other weights, and "
        f"by a plain soft threshold are {listed(cosines)}. "
        + residuals(found["pruning"])
    )


def residuals(rows: Rows) -> str:
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


def sections(found: Found) -> Iterator[Section]:
    """Pruning in one shot, and gRDA beside the definition."""
    yield Section(
        "Pruning SGD's solution in one shot",
        "No retraining. Rules that know the curvature should lose less than magnitude "
        "pruning. gRDA is beside them for what one shot gives up: it trains while it "
        "prunes.",
        pruning(found["pruning"]),
        "pruning",
        table(found["pruning"]),
        "Training loss (test accuracy, %); ε: the definition at that cutoff",
    )
    yield Section(
        "gRDA and directional pruning by its definition",
        "Equal displacements have cosine 1. The controls show what any method that "
        "shrinks weights would reach: only what the definition has beyond them is "
        "evidence for the theorem.",
        agreements(found["agreement"]),
        "agreement",
    )


def table(rows: Rows) -> Cells:
    """Means over the runs, where all reach a sparsity: a row each, rules beside.

    Training loss, and test accuracy in percent. ε: the definition at that cutoff.
    """
    levels, dense = by_level(rows), ("SGD", None)
    rules = dict.fromkeys(rule for level in levels.values() for rule in level)
    del rules[dense]  # a row of its own: what all rules start from

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

    return [
        {"zeros": f"{zeros(level):.1%}{', SGD' * (dense in level)}"}
        | {
            rule if cutoff is None else f"ε = {cutoff:g}": cell(
                level.get((rule, cutoff), level.get(dense))
            )
            for rule, cutoff in rules
        }
        for level in sorted(levels.values(), key=zeros)
    ]


def pruning(rows: Rows) -> Figure:
    """Training loss and test accuracy by sparsity, one line a rule."""
    titles = {
        "train_loss": ("training loss", 1),
        "test_accuracy": ("test accuracy, %", 100),
    }
    levels = by_level(rows)
    asked = {level[0]: levels[level] for level in levels if level[0] is not None}
    rules = dict.fromkeys(rule for s in sorted(asked) for rule in asked[s])
    axes = panels(2, size=(11, 4.2))
    for ax, (name, (title, scale)) in zip(axes, titles.items(), strict=True):

        def mean(mine, name=name, scale=scale):
            return scale * float(np.mean([row[name] for row in mine]))

        sgd = mean(levels[None, None]["SGD", None])
        ax.axhline(sgd, color="0.5", linestyle=":", label="SGD, not pruned")
        grda = [row for row in rows if row["rule"] == "gRDA"]
        x = [100 * row["sparsity"] for row in grda]
        y = [scale * row[name] for row in grda]
        ax.plot(x, y, "*", color=COLORS["grda"], markersize=11, label="gRDA")
        for rule in rules:
            here = {100 * s: asked[s][rule] for s in sorted(asked) if rule in asked[s]}
            label = rule[0] if rule[1] is None else f"{rule[0]}, ε = {rule[1]:g}"
            ax.plot(*(list(here), [*map(mean, here.values())], "o-"), label=label, ms=3)
        ax.set(xlabel="weights exactly zero, %", title=title)
    axes[0].set_yscale("log")
    return figure_of(axes)


def agreements(rows: Rows) -> Figure:
    """Cosine and overlap of zeros between gRDA and the definition, over training.

    A column of panels a setting of c and mu.
    """
    settings = by_setting(rows)
    figure = Figure(figsize=(1.5 + 3.4 * len(settings), 6.4), layout="constrained")
    axes = figure.subplots(2, len(settings), sharex=True, sharey="row", squeeze=False)
    names = {"cosine": "cosine", "overlap": "share of gRDA's zeros"}
    for column, (title, here) in zip(axes.T, settings.items(), strict=True):
        for ax, name in zip(column, names, strict=True):
            for number, scores in enumerate(dict.fromkeys(r["scores"] for r in here)):
                mine = [row for row in here if row["scores"] == scores]
                band(ax, *over_epochs(mine, name), f"C{number}", scores)
            ax.grid(alpha=0.3)
        column[0].set_title(title)
        column[1].set_xlabel("epoch")
    for ax, label in zip(axes[:, 0], names.values(), strict=True):
        ax.set_ylabel(label)
    axes[0, 0].legend(frameon=False)
    return figure
