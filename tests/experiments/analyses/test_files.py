"""Tests of the files of analyses, read together."""

import json

import pytest

from experiments import analyses


@pytest.fixture
def write(tmp_path):
    """A function that writes project.json to a new directory, and returns that."""

    def write(name="first", rows=(), options=None, environment=None):
        directory = tmp_path / name
        directory.mkdir(exist_ok=True)
        found = {"options": options or {}, "environment": environment or {}}
        (directory / "project.json").write_text(json.dumps(found | {"rows": rows}))
        return directory

    return write


def row(grda, **more):
    return {"grda": grda, "epoch": 1, "model": "mlp", "dataset": "digits", **more}


def test_analyses_of_one_kind_are_shown_together(write):
    first, other = row("/runs/a"), row("/runs/b")
    directories = [write(rows=[first], environment={"cpus": 2})]
    directories.append(write("again", rows=[other], environment={"cpus": 1}))
    found = analyses.read("project", directories)
    assert found["rows"] == [first, other]
    assert found["environments"] == [{"cpus": 2}, {"cpus": 1}]
    assert found["networks"] == {("mlp", "digits")}
    assert found["configurations"] == {"experiments.project": {}}
    assert analyses.read("connect", directories) is None


def test_a_directory_counts_once(write):
    directory = write(rows=[row("/runs/a")])
    again = directory.parent / "." / "x" / ".." / directory.name
    (directory.parent / "x").mkdir()
    assert len(analyses.read("project", [directory, again])["rows"]) == 1


@pytest.mark.parametrize("spelling", ["runs/a", "./runs/../runs/a", "{}/runs/a"])
def test_a_run_is_one_however_its_path_is_spelled(
    write, tmp_path, monkeypatch, spelling
):
    monkeypatch.chdir(tmp_path)
    directories = [write(rows=[row("runs/a", difference_fraction=0.5)])]
    found = analyses.read("project", directories)
    assert found["rows"][0]["grda"] == str(tmp_path / "runs" / "a")
    again = row(spelling.format(tmp_path), difference_fraction=0.1)
    directories.append(write("again", rows=[again]))
    with pytest.raises(ValueError, match=r"of different runs: .*first.*again"):
        analyses.read("project", directories)


def test_rows_differ_by_what_they_are_of_and_not_by_what_was_measured(write):
    # The epoch of one is 2; that of the other is equal to a whole number measured.
    directories = [write(rows=[row("/a", eigenvalues=1)])]
    directories.append(write("again", rows=[row("/a", eigenvalues=1) | {"epoch": 2}]))
    assert len(analyses.read("project", directories)["rows"]) == 2
    directories.append(write("third", rows=[row("/a", eigenvalues=2)]))
    with pytest.raises(ValueError, match="of different runs"):
        analyses.read("project", directories)


def test_other_options_are_refused(write):
    directories = [write(), write("again", options={"k": 3})]
    with pytest.raises(ValueError, match="with the same options"):
        analyses.read("project", directories)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("{", "must be a JSON file"),
        ("null", "must hold a JSON object"),
        ('{"rows": []}', "must hold options, environment and rows"),
        ('{"options": {}, "environment": {}, "rows": [{"epoch": 1}]}', "grda, epoch"),
    ],
)
def test_a_damaged_file_is_named(write, text, rule):
    directory = write()
    (directory / "project.json").write_text(text)
    with pytest.raises(ValueError, match=rf"first/project.json .*{rule}"):
        analyses.read("project", [directory])
