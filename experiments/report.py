"""One HTML file that says whether it worked, for a person with a minute.

    python -m experiments.report DIRECTORY [DIRECTORY ...] [--output report.html]

Takes the directories of experiments.train or compare, and any of connect, project,
prune, card and units for the same network, and shows what they hold: a sentence, a
table beside the authors' figures, pictures, configuration and hardware. The file needs
no network and nothing beside it.
"""

import base64
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import jinja2
import numpy as np
import tyro
from matplotlib.figure import Figure

from experiments.analyses import _authors as authors
from experiments.analyses import _plots as analysis_figures
from experiments.analyses import _training_plots as figures
from experiments.analyses import card, connect, project, prune, units
from experiments.analyses._files import by_setting, filled, read_analyses
from experiments.command_line import run_command
from experiments.training import config as configs
from experiments.training.runs import Result, headline, read_results

TEMPLATE = Path(__file__).with_name("report.html.jinja")
ANALYSES = ("connect", "project", "prune", "card", "units")
Table = Sequence[dict[str, str]]  # cells by header, a row after another


@dataclasses.dataclass(frozen=True)
class Options:
    """Writes a report about runs and analyses."""

    directories: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Of finished runs and of analyses."""
    output: Path = Path("report.html")
    """The file; one that exists is replaced."""


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure, a caption that says what one should see, and perhaps a table."""

    title: str
    figure: Figure
    caption: str
    table: Table = ()

    @property
    def data(self) -> str:
        """The figure as the address of an image."""
        file = io.BytesIO()
        self.figure.savefig(file, format="svg", bbox_inches="tight")
        code = base64.b64encode(file.getvalue()).decode()
        return f"data:image/svg+xml;base64,{code}"


def write_report(directories: tuple[Path, ...], output: Path) -> Path:
    """Writes the report; returns its path.

    Raises:
      ValueError: if the directories hold no finished run, or runs of several networks;
        if several analyses of one kind are of the same runs, or have other options.
      FileNotFoundError: if one does not exist.
    """
    for directory in directories:
        if not directory.is_dir():
            raise FileNotFoundError(f"there is no directory {directory}")
    results = read_results(directories)
    if not results:
        raise ValueError(
            "directories must hold a finished run, with summary.json: got "
            f"{[str(directory) for directory in directories]}"
        )
    read = {name: read_analyses(directories, name) for name in ANALYSES}
    analyses = {name: found for name, found in read.items() if found}
    tasks = {(r.config.model, Path(r.config.dataset).stem) for r in results} | {
        (row["model"], row["dataset"])
        for found in analyses.values()
        for rows in found.values()
        if isinstance(rows, list)
        for row in rows
        if "model" in row
    }
    if len(tasks) > 1:
        raise ValueError(
            "directories must hold runs of one network on one data set, got "
            f"{sorted(tasks)}"
        )
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(TEMPLATE.read_text()).render(
        headline=headline(results),
        findings=findings(analyses),
        table=table(results),
        cards=cards(analyses),
        pictures=[*run_pictures(results, directories), *analysis_pictures(analyses)],
        configurations={
            **{result.label: configs.to_dict(result.config) for result in results},
            **{f"experiments.{name}": a["options"] for name, a in analyses.items()},
        },
        environments=environments(results, analyses),
    )
    output.write_text(page)
    return output


def findings(analyses: dict[str, Any]) -> list[str]:
    """A sentence an analysis, with the numbers it found."""
    found = []
    if "connect" in analyses:
        pairs = analyses["connect"]["pairs"]
        curve, line = (
            max(pair[path]["barrier_height"] for pair in pairs)
            for path in ("curve", "line")
        )
        found.append(
            "Between the solutions of gRDA and SGD, the training loss rises above the "
            f"larger of the two by at most {curve:.4f} along the trained curve, and by "
            f"at most {line:.4f} along the straight line "
            f"({_pairs(len(pairs))})."
        )
    if "project" in analyses:
        rows, ratios = analyses["project"]["rows"], []
        for label, mine in _last(rows).items():
            share = np.mean([row["difference_fraction"] for row in mine])
            ratios.append(f"{share / mine[0]['random_fraction']:.2g} ({label})")
        found.append(
            "After the last epoch, the share of |w_gRDA − w_SGD|² in the space of the "
            f"top {len(rows[0]['eigenvalues'])} Hessian eigenvectors is "
            f"{_listed(ratios)} times that of a random direction."
        )
    if "prune" in analyses:
        cosines = []
        for label, mine in _last(analyses["prune"]["agreement"]).items():
            definition, shuffled, plain = (
                np.mean([row["cosine"] for row in mine if row["scores"] == scores])
                for scores in ("definition", "shuffled scores", "all scores 1")
            )
            cosines.append(f"{definition:.3f}, {shuffled:.3f}, {plain:.3f} ({label})")
        found.append(
            "After the last epoch, the cosines of gRDA's displacement from SGD with "
            "that of directional pruning by its definition, by the scores of other "
            f"weights, and by a plain soft threshold are {_listed(cosines)}."
        )
    return found


def _last(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The rows of each setting's last epoch."""
    return {
        label: [row for row in mine if row["epoch"] == max(r["epoch"] for r in mine)]
        for label, mine in by_setting(rows).items()
    }


def _listed(texts: list[str]) -> str:
    *texts, last = texts
    return f"{', '.join(texts)} and {last}" if texts else last


def cards(analyses: dict[str, Any]) -> dict[str, tuple[str, Table]]:
    """A sentence and a table by the run whose card it is."""
    rows_by_run: dict[str, list[dict[str, Any]]] = {}
    for row in analyses.get("card", {"rows": ()})["rows"]:
        rows_by_run.setdefault(row["grda"], []).append(row)
    return {
        run: (card.verdict(rows), card.table(rows)) for run, rows in rows_by_run.items()
    }


def environments(
    results: list[Result], analyses: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Hardware and versions by what was done there, each set once."""
    places: dict[str, tuple[list[str], dict[str, Any]]] = {}
    measured = [("runs", result.environment) for result in results]
    measured += [(n, e) for n, found in analyses.items() for e in found["environments"]]
    for name, environment in measured:
        names, _ = places.setdefault(repr(environment), ([], environment))
        names.append(name)
    return {
        ", ".join(dict.fromkeys(names)): environment
        for names, environment in places.values()
    }


def table(results: list[Result]) -> Table:
    """A row a configuration: ours, the authors', and the difference in deviations."""
    rows = []
    for result in results:
        accuracy = 100 * np.array(result.test_accuracy)
        sparsity = 100 * np.array(result.sparsity)
        row = {
            "method": result.label,
            "seeds": str(len(accuracy)),
            "test accuracy, %": _spread(accuracy),
            "weights exactly zero, %": _spread(sparsity),
            "training loss": f"{np.mean(result.train_loss):.4f}",
        }
        if theirs := authors.summary(result.config):
            for name, ours, scale in (
                ("test_acc_pct", accuracy, 1),
                ("sparsity", sparsity, 100),
            ):
                mean, deviation = (
                    scale * float(theirs[f"{name}_{x}"]) for x in ("mean", "std")
                )
                what = "accuracy" if scale == 1 else "zeros"
                row[f"authors' {what}, %"] = f"{mean:.2f} ± {deviation:.2f}"
                difference = ours.mean() - mean
                row[f"{what}: difference"] = (
                    f"{difference / deviation:+.1f} σ" if deviation else ""
                )
        rows.append(row)
    return filled(rows)


def run_pictures(results: list[Result], directories: tuple[Path, ...]) -> list[Picture]:
    """Pictures of training."""
    pictures = [
        Picture(
            "Training",
            figures.training_curves({r.label: r.metrics for r in results}),
            "Means over the seeds, and the range between them. The sparsity of gRDA "
            "should grow all the time, quickly at first, and its test accuracy stay "
            "beside that of SGD. Its training loss may stay above.",
        )
    ]
    sparse = [result for result in results if result.config.method.is_sparse]
    if sparse:
        sparsest = max(sparse, key=lambda result: np.mean(result.sparsity))
        pictures.append(
            Picture(
                f"Zeros by layer: {sparsest.label}",
                figures.sparsity_by_layer(sparsest.layers()),
                "The fraction of each array that is exactly zero. No layer was given a "
                "sparsity: one threshold serves all. A bar at 100 % would mean that "
                "nothing passes a kernel.",
            )
        )
    others = authors.tradeoff(results[0].config)
    if len(sparse) > 1 or others:
        caption = "The further to the upper right, the better."
        if others:
            caption += " Small marks: what others measured."
        figure = analysis_figures.tradeoff(results)
        pictures.append(Picture("Sparsity against accuracy", figure, caption))
    for directory in directories:
        if (directory / "weights.npz").exists():
            with np.load(directory / "weights.npz") as weights:
                figure = figures.first_layer(dict(weights))
            pictures.append(
                Picture(
                    f"The first layer: {directory}",
                    figure,
                    "Every tile is a hidden unit, every pixel in it a weight. After "
                    "gRDA most should be white, exactly zero, above all at the border "
                    "of the image, where digits have no ink.",
                )
            )
    return pictures


def analysis_pictures(analyses: dict[str, Any]) -> list[Picture]:
    """Pictures of the analyses that there are."""
    pictures = []
    if found := analyses.get("connect"):
        pairs = found["pairs"]
        pictures.append(
            Picture(
                "From gRDA to SGD",
                analysis_figures.loss_along_curves(pairs),
                "If both lie in one valley, the loss along the curve never rises above "
                "its ends; the straight line may have to climb.",
                connect.table(pairs),
            )
        )
        if "plane" in pairs[0]:
            pictures.append(
                Picture(
                    "The valley",
                    analysis_figures.plane(pairs[0]["plane"]),
                    "Training loss on the plane through both solutions and the bend of "
                    f"the curve (seed {pairs[0]['seed']}). Both should lie in one "
                    "basin, with no ridge across the curve.",
                )
            )
    if found := analyses.get("project"):
        rows = found["rows"]
        pictures += [
            Picture(
                "Flat directions",
                analysis_figures.projection(rows),
                "The share of gRDA's displacement in the steepest directions. If gRDA "
                "moves in flat directions only, it stays below the dotted line, the "
                "share of a random direction.",
                project.table(rows),
            ),
            Picture(
                "Concentration of the weights",
                analysis_figures.norms(rows),
                "It rises as gRDA puts the weights into fewer entries.",
            ),
        ]
    if found := analyses.get("prune"):
        pictures += [
            Picture(
                "Pruning SGD's solution in one shot",
                analysis_figures.pruning(found["pruning"]),
                "No retraining. Methods that know the curvature should lose less than "
                "magnitude pruning; gRDA, which trains while it prunes, least of all. "
                "Below: training loss, and test accuracy in percent; ε: the definition "
                f"at that cutoff. {prune.residuals(found['pruning'])}",
                prune.table(found["pruning"]),
            ),
            Picture(
                "gRDA and directional pruning by its definition",
                analysis_figures.agreement(found["agreement"]),
                "Equal displacements have cosine 1. The controls show what any method "
                "that shrinks weights would reach: only what the definition has beyond "
                "them is evidence for the theorem.",
            ),
        ]
    if found := analyses.get("units"):
        pictures.append(
            Picture(
                "Whole units",
                analysis_figures.units(found["rows"]),
                "Test error by what is left once dead units are cut out. Where whole "
                "units are thresholded, less should be left at the same error. "
                "Crosses: the same architecture trained from scratch by SGD; where "
                "they lie no higher, gRDA found widths that are enough rather than "
                "weights.",
                units.table(found["rows"]),
            )
        )
    return pictures


def _spread(values: np.ndarray) -> str:
    text = f"{values.mean():.2f}"
    return text if len(values) == 1 else f"{text} ± {values.std():.2f}"


def _pairs(number: int) -> str:
    return "one pair of runs" if number == 1 else f"over {number} pairs of runs"


def main(options: Options) -> Path:
    """Writes the report, and says where."""
    path = write_report(options.directories, options.output)
    print(f"the report is {path}")
    return path


if __name__ == "__main__":
    run_command(main, Options, __doc__)
