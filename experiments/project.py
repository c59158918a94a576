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
import jax.numpy as jnp
import tyro
from rich.console import Console
from rich.table import Table

from experiments import analysis_figures, logger
from experiments.curvature import hessian
from experiments.runs import Pair, find_pairs
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


def project(pair: Pair, k: int) -> Iterator[dict[str, Any]]:
    """A row an epoch that was saved."""
    for epoch in pair.epochs:
        sgd, grda = pair.states(epoch)
        with jax.default_matmul_precision("highest"):
            pairs = top_eigenpairs(hessian(pair.sgd.task, sgd), sgd.params, k)
        delta = jax.tree.map(jnp.subtract, grda.params, sgd.params)
        size = sum(leaf.size for leaf in jax.tree.leaves(delta))
        vectors = {"difference": delta, "sgd": sgd.params, "grda": grda.params}
        yield {
            **pair.describe(),
            "epoch": epoch,
            "parameters": size,
            "random_fraction": k / size,
            **{
                f"{name}_fraction": projection_fraction(vector, pairs.eigenvectors)
                for name, vector in vectors.items()
            },
            "sgd_l2_over_l1": l2_over_l1(sgd.params),
            "grda_l2_over_l1": l2_over_l1(grda.params),
            "eigenvalues": pairs.eigenvalues,
            "residual_norms": pairs.residual_norms,
        }


def table(rows: list[dict[str, Any]]) -> Table:
    """A row an epoch of every pair."""
    table = Table(title="Share of |w_gRDA - w_SGD|² in SGD's top eigenspace")
    for header in (
        *("seed", "c", "μ", "epoch", "eigenvalues", "share"),
        "of a random direction's",
    ):
        table.add_column(header, justify="right")
    for row in rows:
        largest, smallest = row["eigenvalues"][0], row["eigenvalues"][-1]
        times = row["difference_fraction"] / row["random_fraction"]
        table.add_row(
            *(str(row["seed"]), f"{row['c']:g}", f"{row['mu']:g}", str(row["epoch"])),
            *(f"{largest:.3g} to {smallest:.3g}", f"{row['difference_fraction']:.2e}"),
            f"{times:.1f} times",
        )
    return table


def main(options: Options) -> Path:
    """Projects all pairs, and returns the directory of the results."""
    pairs = find_pairs(options.runs, options.data_dir)
    directory = logger.new_directory(options.output, "project")
    rows = []
    total = sum(len(pair.epochs) for pair in pairs)
    with logger.progress_bar(total, "project") as bar:
        for pair in pairs:
            for row in project(pair, options.k):
                rows.append(logger.plain(row))
                logger.write_json(directory / "project.json", rows)
                bar.update()
    analysis_figures.draw_project(directory)
    console = Console()
    console.print(table(rows))
    console.print(f"Figures and numbers are in {directory}", highlight=False)
    return directory


if __name__ == "__main__":
    logger.run_command(main, Options, __doc__)
