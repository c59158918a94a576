"""What was found, shown: sections of a report, printed tables, files of figures."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

from experiments.analyses._files import Found

Cells = Sequence[dict[str, str]]  # by header, a row after another


@dataclasses.dataclass(frozen=True)
class Section:
    """A figure or a table, or both, and what one should see there."""

    title: str
    caption: str
    figure: Figure | None = None
    name: str = ""  # of the figure's files
    table: Cells = ()
    about: str = ""  # title of the table, where that of the section does not say it


def show(analysis: ModuleType, found: Found, directory: Path) -> None:
    """Prints tables and sentence, and writes the figures to DIRECTORY/figures."""
    console = Console(markup=False, highlight=False)
    for section in analysis.sections(found):
        if section.figure is not None:
            save(section.figure, directory, section.name)
        if section.table:
            print_table(console, section.about or section.title, section.table)
    console.print(analysis.sentence(found))
    console.print(f"Figures and numbers are in {directory}")


def save(figure: Figure, directory: Path, name: str) -> Path:
    """Writes DIRECTORY/figures/NAME as PNG and as SVG; returns the path of the PNG."""
    path = directory / "figures" / f"{name}.png"
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=150, bbox_inches="tight")
    figure.savefig(path.with_suffix(".svg"), bbox_inches="tight")
    return path


def filled(rows: Sequence[dict[str, str]]) -> Cells:
    """The rows of a table with all headers of any of them, in the order they come."""
    headers = dict.fromkeys(header for row in rows for header in row)
    return [{header: row.get(header, "") for header in headers} for row in rows]


def listed(texts: Sequence[str]) -> str:
    """The texts as "a, b and c"."""
    *texts, last = texts
    return f"{', '.join(texts)} and {last}" if texts else last


def print_table(console: Console, title: str, cells: Cells) -> None:
    """Prints a table, in full however narrow the console is.

    One that is too wide is turned, so that a row becomes a column, if its lines then
    need no breaks; if words would have to break, it is turned and printed as several,
    one below the other.
    """
    columns = [[header, *(row[header] for row in cells)] for header in cells[0]]
    turned = [list(row) for row in zip(*columns, strict=True)]
    (least, natural), (_, natural_turned) = (
        _widths(table, console) for table in (columns, turned)
    )
    room = console.width
    if natural > room and (natural_turned <= room or least > room):
        columns = turned
    names, *columns = columns
    while columns:
        fitting = len(columns)
        while fitting > 1 and _widths([names, *columns[:fitting]], console)[0] > room:
            fitting -= 1
        console.print(_table(title, [names, *columns[:fitting]]))
        columns = columns[fitting:]


def _widths(columns: list[list[str]], console: Console) -> tuple[int, int]:
    """The least width of a table whose words are whole, and that without breaks."""
    wide = console.options.update(width=10**4)
    return console.measure(_table("", columns), options=wide)


def _table(title: str, columns: list[list[str]]) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD)
    for number, (header, *cells) in enumerate(columns):
        # Lines may break, but not within a word.
        words = " ".join([header, *cells]).split()
        table.add_column(
            header,
            justify="right" if number else "left",
            min_width=max(map(len, words), default=0),
        )
    for row in zip(*(cells for _, *cells in columns), strict=True):
        table.add_row(*row)
    return table
