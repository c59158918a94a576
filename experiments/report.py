"""One HTML file that says whether it worked, for a person with a minute.

    python -m experiments.report DIRECTORY [DIRECTORY ...] [--output report.html]

Takes the directories of experiments.train or compare, and any of connect, project,
prune, card and units for the same network, and shows what they hold: sentences, tables
beside the authors' figures, pictures, configuration and hardware. The file needs no
network and nothing beside it.
"""

import base64
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from experiments import analyses
from experiments.command_line import run_command
from experiments.training.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATE = Path(__file__).with_name("report.html.jinja")


@dataclasses.dataclass(frozen=True)
class Options:
    """Writes a report about runs and analyses."""

    directories: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Of finished runs and of analyses."""
    output: Path = Path("report.html")
    """The file; one that exists is replaced."""


def write_report(directories: Sequence[Path], output: Path) -> Path:
    """Writes the report; returns its path.

    Raises:
      UserError: if the directories hold no finished run, or runs of several networks;
        if several analyses of one kind are of the same runs, or have other options; if
        a file is damaged.
      FileNotFoundError: if one does not exist.
    """
    import jinja2

    for directory in directories:
        if not directory.is_dir():
            raise FileNotFoundError(f"there is no directory {directory}")
    read = {name: analyses.read(name, directories) for name in analyses.NAMES}
    found = {name: what for name, what in read.items() if what is not None}
    if "runs" not in found:
        raise UserError(
            "directories must hold a finished run: got "
            f"{[str(directory) for directory in directories]}"
        )
    networks = {network for what in found.values() for network in what["networks"]}
    if len(networks) > 1:
        raise UserError(
            "directories must hold runs of one network on one data set, got "
            f"{sorted(networks)}"
        )
    modules = {analyses.load(name): what for name, what in found.items()}
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(TEMPLATE.read_text()).render(
        sentences=[analysis.sentence(what) for analysis, what in modules.items()],
        sections=[
            s for analysis, what in modules.items() for s in analysis.sections(what)
        ],
        address=address,
        configurations={
            label: fields
            for what in found.values()
            for label, fields in what["configurations"].items()
        },
        environments=environments(found),
    )
    output.write_text(page)
    return output


def address(figure: "Figure") -> str:
    """A figure as the address of an image."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", bbox_inches="tight")
    code = base64.b64encode(file.getvalue()).decode()
    return f"data:image/svg+xml;base64,{code}"


def environments(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Hardware and versions by what was done there, each set once."""
    places: dict[str, tuple[list[str], dict[str, Any]]] = {}
    for name, what in found.items():
        for environment in what["environments"]:
            names, _ = places.setdefault(repr(environment), ([], environment))
            names.append(name)
    return {
        ", ".join(dict.fromkeys(names)): environment
        for names, environment in places.values()
    }


def main(options: Options) -> Path:
    """Writes the report, and says where."""
    path = write_report(options.directories, options.output)
    print(f"the report is {path}")
    return path


if __name__ == "__main__":
    run_command(main, Options, __doc__)
