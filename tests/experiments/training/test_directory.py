"""Tests of experiments.training.directory."""

import io
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.training import directory
from experiments.training.directory import MetricsFile, new_directory, read_metrics
from experiments.training.errors import UserError


def test_without_a_path_runs_are_numbered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = [str(new_directory(None, "digits")) for _ in range(3)]
    assert made == ["runs/digits", "runs/digits-2", "runs/digits-3"]
    assert str(new_directory(None, "mnist")) == "runs/mnist"


def test_a_new_or_an_empty_directory_is_taken(tmp_path):
    new_directory(tmp_path, "digits")
    assert new_directory(tmp_path / "a" / "b", "digits").is_dir()


@pytest.mark.parametrize("name", ["directory", "directory/file"])
def test_what_exists_is_not_overwritten(tmp_path, name):
    (tmp_path / "directory").mkdir()
    (tmp_path / "directory" / "file").write_text("kept")
    with pytest.raises(UserError, match="output must be a new or an empty directory"):
        new_directory(tmp_path / name, "digits")
    assert (tmp_path / "directory" / "file").read_text() == "kept"


def test_a_directory_is_locked_until_its_program_is_killed(tmp_path):
    code = (
        "import sys, pathlib; from experiments.training.directory import lock\n"
        "with lock(pathlib.Path(sys.argv[1])): print('locked', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout.readline() == b"locked\n"
        with (
            pytest.raises(UserError, match=f"another program is writing to {tmp_path}"),
            directory.lock(tmp_path),
        ):
            pass
        other.kill()
    with directory.lock(tmp_path):
        pass


def test_arrays_are_written_as_numbers_and_lists(tmp_path):
    value = {"a": jnp.arange(2), "b": [np.float32(0.5), (1, "x")], "c": None}
    directory.write_json(tmp_path / "x.json", value)
    expected = {"a": [0, 1], "b": [0.5, [1, "x"]], "c": None}
    assert directory.read_json(tmp_path / "x.json") == expected
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.parametrize("data", [b"", b'{"a": 1', b"null", b"[1]", b'{"a": "\xff"}'])
def test_a_damaged_file_is_named(tmp_path, data):
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(UserError, match=r"x\.json is damaged: it must"):
        directory.read_json(tmp_path / "x.json")


ROWS = [{"epoch": n, "step": 10 * n, "loss": 1 / n} for n in (1, 2, 3)]


def write(path, rows=ROWS):
    metrics = MetricsFile(path)
    for row in rows:
        metrics.append(row)
    return path / "metrics.jsonl"


def test_rows_are_read_as_they_were_written(tmp_path):
    metrics = MetricsFile(tmp_path)
    for number, row in enumerate(ROWS, start=1):
        metrics.append(row)
        assert read_metrics(tmp_path) == ROWS[:number]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("cut", [1, 5, len(json.dumps(ROWS[2]))])
def test_a_last_line_that_was_cut_short_is_left_out(tmp_path, cut):
    path = write(tmp_path)
    path.write_bytes(path.read_bytes()[: -1 - cut])
    assert read_metrics(tmp_path) == ROWS[:2]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "has none"),
        ('{"epo', "has none"),
        ("null\n", "line 1 is no JSON object"),
        ('{"epoch": 1}\n{"epo\n{"epoch": 3}\n', "line 2 is no JSON object"),
    ],
)
def test_metrics_that_are_damaged_are_named(tmp_path, text, rule):
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(UserError, match=rf"metrics\.jsonl .*{rule}"):
        read_metrics(tmp_path)


def test_a_resumed_run_drops_the_lines_that_it_will_write_again(tmp_path):
    metrics = MetricsFile(tmp_path)
    metrics.drop_after(0)  # nothing is there yet
    with write(tmp_path).open("a") as file:
        file.write('{"epoch": 4, "st')
    metrics.drop_after(20)
    assert read_metrics(tmp_path) == ROWS[:2]
    metrics.append(ROWS[2])
    assert read_metrics(tmp_path) == ROWS
    metrics.drop_after(0)
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_tensorboard_gets_every_number(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    metrics = MetricsFile(tmp_path, tensorboard=True)
    for row in ROWS:
        metrics.append(row)
    metrics.writer.close()  # as at the end of the program
    (file,) = (tmp_path / "tensorboard").iterdir()
    data, values = file.read_bytes(), {}
    while data:  # records: length, checksum of it, event, checksum of that
        size = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + size])
        for value in event.summary.value:
            values[value.tag, event.step] = value.simple_value
        data = data[12 + size + 4 :]
    assert values.keys() == {(name, n) for name in ROWS[0] for n in (1, 2, 3)}
    for row in ROWS:
        assert values["loss", row["epoch"]] == np.float32(row["loss"])


def test_without_the_option_there_are_no_tensorboard_events(tmp_path):
    write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_progress_bar_shows_the_time_left_on_a_terminal(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with directory.progress_bar(4, "digits", initial=1) as bar:
        bar.update()
        bar.refresh()
    assert "digits:  50%" in terminal.getvalue()
    assert "2/4 [00:00<00:0" in terminal.getvalue()


def test_the_progress_bar_shows_on_a_terminal_of_unknown_size(monkeypatch):
    # So are those of containers and of script(1); tqdm alone prints nothing there.
    import fcntl
    import os
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 0, 0, 0, 0))
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        with directory.progress_bar(4, "digits") as bar:
            bar.update()
            bar.refresh()
        assert b"digits: " in os.read(ours, 4096)
    os.close(ours)


def test_the_progress_bar_is_silent_where_there_is_no_terminal(capsys):
    with directory.progress_bar(4, "digits") as bar:
        bar.update()
    assert capsys.readouterr() == ("", "")


def test_the_progress_bar_is_silent_where_it_is_not_to_be_shown(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with directory.progress_bar(4, "digits", shown=False) as bar:
        bar.update()
    assert terminal.getvalue() == ""


def test_hardware_and_versions_are_plain_json():
    environment = json.loads(json.dumps(directory.environment()))
    assert environment["devices"] == [d.device_kind for d in jax.devices()]
    assert {"jax", "jaxlib", "flax", "optax", "numpy", "python"} <= environment.keys()
