"""Tests of what is printed and drawn: in full, however narrow the terminal."""

import collections
import io

import pytest
from matplotlib.figure import Figure
from rich.console import Console

from experiments import analyses
from experiments.analyses import _show, connect, runs

WIDE = [
    {
        "made zero": kind,
        "c": "0.02",
        "zeros, %": "92.8",
        "parameters": number,
        "from scratch, %": "98.4",
    }
    for kind, number in (("single weights", "17,226"), ("units and weights", "2,471"))
]


def printed(cells, width):
    file = io.StringIO()
    _show.print_table(Console(file=file, width=width), "A title", cells)
    return file.getvalue()


def assert_whole(cells, width):
    """All words of headers and cells are printed, as often as they are there."""
    text = printed(cells, width)
    assert all(len(line) <= width for line in text.splitlines())
    texts = [*cells[0], *(cell for row in cells for cell in row.values())]
    assert not collections.Counter(" ".join(texts).split()) - collections.Counter(
        text.split()
    )


def test_a_table_that_fits_has_a_row_a_line():
    text = printed(WIDE, 80)
    lines = [line.split() for line in text.splitlines() if "92.8" in line]
    assert lines[0] == ["single", "weights", "0.02", "92.8", "17,226", "98.4"]
    assert len(lines) == 2


@pytest.mark.parametrize("width", [30, 40])
def test_a_table_that_does_not_fit_is_turned(width):
    assert_whole(WIDE, width)
    line = next(li for li in printed(WIDE, width).splitlines() if "parameters" in li)
    assert line.split()[1] == "17,226"


@pytest.mark.parametrize(
    "name", ["connected", "projected", "pruned", "carded", "united"]
)
def test_no_column_is_lost_at_80_columns(request, name):
    analysed = request.getfixturevalue(name)
    analysis = analyses.load(analysed.directory.name)
    tables = [s.table for s in analysis.sections(analysed.found()) if s.table]
    assert tables
    for cells in tables:
        assert_whole(cells, width=80)


def test_no_column_of_runs_is_lost(digits):
    table = runs.table(runs.read(digits)["results"])
    theirs = ("authors' accuracy, %", "accuracy: difference", "authors' zeros, %")
    assert_whole(table, width=80)
    assert_whole([row | dict.fromkeys(theirs, "90.86 ± 0.26") for row in table], 80)


def test_a_sentence_and_the_place_are_printed_as_they_are(tmp_path, capsys):
    directory = tmp_path / "[red]runs"
    directory.mkdir()
    lines = {"train_loss": [0.1, 0.2], "test_error": [0.1, 0.2]}
    path = lines | {"barrier_height": 0.25, "length": 1.0}
    pair = {"label": "gRDA [c]", "seed": 0, "t": [0, 1], "line": path, "curve": path}
    method = {"name": "grda", "c": 0.05, "mu": 0.6, "groups": "none"}
    pair |= {"preset": None, "method": method, "model": "m", "dataset": "d"}
    _show.show(connect, {"pairs": [pair]}, directory)
    text = capsys.readouterr().out
    assert "[c]" in text
    assert str(directory) in text.replace("\n", "")
    assert "at most 0.2500 along" in " ".join(text.split())
    figures = {path.name for path in (directory / "figures").iterdir()}
    assert figures == {"curve.png", "curve.svg"}


def test_a_figure_is_saved_as_png_and_svg(tmp_path):
    path = _show.save(Figure((1, 1)), tmp_path, "figure")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert "<svg" in path.with_suffix(".svg").read_text()


def test_texts_are_listed():
    assert [_show.listed(list(texts)) for texts in ("a", "ab", "abc")] == [
        *("a", "a and b", "a, b and c")
    ]
