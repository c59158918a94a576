"""Whether gRDA left SGD's solution in flat directions only."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from matplotlib.figure import Figure

from experiments.analyses import _authors as authors
from experiments.analyses._curvature import hessian
from experiments.analyses._files import Found, Rows, by_setting, of_last_epoch
from experiments.analyses._plots import band, figure_of, over_epochs, panels
from experiments.analyses._show import Cells, Section, listed
from experiments.analyses.options import Project
from experiments.training.runs import Pair, Run, by_sgd_epoch, displacement, find_pairs
from optax_grda.curvature import projection_fraction, top_eigenpairs
from optax_grda.landscape import l2_over_l1

KEYS = {"rows": ("grda", "epoch")}


def parts(options: Project) -> list[Callable[[Path], dict[str, Rows]]]:
    """A part a run of SGD and an epoch."""
    work = by_sgd_epoch(find_pairs(options.runs, options.data_dir))
    return [functools.partial(project, *part, options.k) for part in work]


def project(
    sgd: Run, epoch: int, pairs: list[Pair], k: int, _: Path
) -> dict[str, Rows]:
    """A row a pair of one run of SGD, after an epoch."""
    solution = sgd.state(epoch)
    params = solution.params
    with jax.default_matmul_precision("highest"):
        # Float32 products of convolutions allow no smaller residuals.
        top = top_eigenpairs(hessian(sgd.task, solution), params, k, tolerance=1e-4)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    rows = []
    for pair in pairs:
        grda = pair.grda.state(epoch).params
        vectors = {
            "difference": displacement(pair, params, grda),
            "sgd": params,
            "grda": grda,
        }
        shares = {
            f"{name}_fraction": projection_fraction(vector, top.eigenvectors)
            for name, vector in vectors.items()
        }
        rows.append(
            {
                **pair.describe(),
                "epoch": epoch,
                "parameters": size,
                "random_fraction": k / size,
                **shares,
                "sgd_l2_over_l1": l2_over_l1(params),
                "grda_l2_over_l1": l2_over_l1(grda),
                "eigenvalues": top.eigenvalues,
                "residual_norms": top.residual_norms,
            }
        )
    return {"rows": rows}


def sentence(found: Found) -> str:
    """The share after the last epoch, in terms of that of a random direction."""
    rows, ratios = found["rows"], []
    for label, mine in by_setting(rows).items():
        share = np.mean([row["difference_fraction"] for row in of_last_epoch(mine)])
        ratios.append(f"{share / mine[0]['random_fraction']:.2g} ({label})")
    return (
        "After the last epoch, the share of |w_gRDA − w_SGD|² in the space of the top "
        f"{len(rows[0]['eigenvalues'])} Hessian eigenvectors is {listed(ratios)} times "
        "that of a random direction."
    )


def sections(found: Found) -> Iterator[Section]:
    """Shares and norms, over training."""
    rows = found["rows"]
    yield Section(
        "Flat directions",
        "The share of gRDA's displacement in the steepest directions. If gRDA moves in "
        "flat directions only, it stays below the dotted line, the share of a random "
        "direction.",
        projection(rows),
        "projection",
        table(rows),
        "Share of |w_gRDA − w_SGD|² in SGD's top eigenspace",
    )
    yield Section(
        "Concentration of the weights",
        "It rises as gRDA puts the weights into fewer entries.",
        norms(rows),
        "norms",
    )


def table(rows: Rows) -> Cells:
    """A row an epoch of each setting: the mean share of |w_gRDA - w_SGD|^2.

    Beside it, its ratio to the share of a random direction: mean and range.
    """
    cells = []
    for label, mine in by_setting(rows).items():
        for epoch in sorted({row["epoch"] for row in mine}):
            here = [row for row in mine if row["epoch"] == epoch]
            eigenvalues = np.mean([row["eigenvalues"] for row in here], axis=0)
            shares = np.array([row["difference_fraction"] for row in here])
            times = shares / here[0]["random_fraction"]
            cells.append(
                {
                    "network": label,
                    "epoch": str(epoch),
                    "pairs": str(len(here)),
                    "eigenvalues": f"{eigenvalues[0]:.3g} to {eigenvalues[-1]:.3g}",
                    "share": f"{shares.mean():.1e}",
                    "of random": f"{times.mean():.2f}",
                    "range": f"{times.min():.2f} to {times.max():.2f}",
                }
            )
    return cells


def projection(rows: Rows) -> Figure:
    """The share of gRDA's displacement in the top eigenspace, over training."""
    (ax,), theirs = panels(), authors.projections(rows)
    for number, (label, mine) in enumerate(by_setting(rows).items()):
        band(ax, *over_epochs(mine, "difference_fraction"), f"C{number}", label)
        if label in theirs:
            text = f"the authors', {label}"
            ax.plot(*theirs[label], ":", color=f"C{number}", label=text)
    random = rows[0]["random_fraction"]
    ax.axhline(random, color="0.5", linestyle=":", label="random direction")
    k = len(rows[0]["eigenvalues"])
    ax.set(xlabel="epoch", yscale="log", title=f"share in SGD's top {k} eigenspace")
    return figure_of([ax])


def norms(rows: Rows) -> Figure:
    """How concentrated the weights are, over training."""
    (ax,) = panels()
    band(ax, *over_epochs(rows, "sgd_l2_over_l1", run="sgd"), "0.4", "SGD")
    for number, (label, mine) in enumerate(by_setting(rows).items()):
        band(ax, *over_epochs(mine, "grda_l2_over_l1"), f"C{number}", label)
    for number, (label, theirs) in enumerate(authors.norms(rows).items()):
        ax.plot(*theirs, ":", color=f"C{number}", label=f"the authors', {label}")
    least = rows[0]["parameters"] ** -0.5
    ax.axhline(least, color="0.5", linestyle=":", label="$d^{-1/2}$: all moduli equal")
    ax.set(xlabel="epoch", title="|w|₂ / |w|₁", ylim=(0, None))
    return figure_of([ax])
