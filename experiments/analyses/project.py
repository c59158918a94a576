"""Whether gRDA left SGD's solution in flat directions only.

    python -m experiments.project RUN [RUN ...] [--output DIRECTORY]

For every run of gRDA and its SGD twin, after every epoch of which both have a
checkpoint: the k largest eigenpairs of the Hessian at SGD's weights, and the share of
|w_gRDA - w_SGD|^2 that lies in their space, beside the share a random direction has;
and |w|_2 / |w|_1 of both. Writes project.json and figures/ to a directory.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro

from experiments.analyses import _plots as analysis_figures
from experiments.analyses._curvature import hessian
from experiments.analyses._files import analyse, by_setting, print_table
from experiments.training.runs import Pair, Run, by_sgd_epoch, displacement, find_pairs
from optax_grda.curvature import projection_fraction, top_eigenpairs
from optax_grda.landscape import l2_over_l1


@dataclasses.dataclass(frozen=True)
class Options:
    """Projects gRDA's displacement on SGD's top eigenspace."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run directories, or directories of them."""
    k: int = 10
    """Eigenpairs."""
    data_dir: Path | None = None
    """Where TFDS keeps its data sets; by default TFDS's own choice."""
    output: Path | None = None
    """Directory of the results; by default a new one under runs/."""

    def __post_init__(self):
        if self.k < 1:
            raise ValueError(f"k must be >= 1, got {self.k}")


def project(sgd: Run, epoch: int, pairs: list[Pair], k: int) -> Iterator[dict]:
    """A row a pair of one run of SGD, after an epoch."""
    solution = sgd.state(epoch)
    params = solution.params
    with jax.default_matmul_precision("highest"):
        # Float32 products of convolutions allow no smaller residuals.
        top = top_eigenpairs(hessian(sgd.task, solution), params, k, tolerance=1e-4)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    for pair in pairs:
        grda = pair.grda.state(epoch).params
        vectors = {
            "difference": displacement(pair, params, grda),
            "sgd": params,
            "grda": grda,
        }
        yield {
            **pair.describe(),
            "epoch": epoch,
            "parameters": size,
            "random_fraction": k / size,
            **{
                f"{name}_fraction": projection_fraction(vector, top.eigenvectors)
                for name, vector in vectors.items()
            },
            "sgd_l2_over_l1": l2_over_l1(params),
            "grda_l2_over_l1": l2_over_l1(grda),
            "eigenvalues": top.eigenvalues,
            "residual_norms": top.residual_norms,
        }


def table(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
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


def main(options: Options) -> Path:
    """Projects all pairs, and returns the directory of the results."""
    work = by_sgd_epoch(find_pairs(options.runs, options.data_dir))
    directory, found = analyse(
        "project",
        options,
        ({"rows": list(project(*part, options.k))} for part in work),
        len(work),
        analysis_figures.draw_project,
    )
    title = "Share of |w_gRDA - w_SGD|² in SGD's top eigenspace"
    print_table(title, table(found["rows"]), directory)
    return directory
