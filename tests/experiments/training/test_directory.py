"""Tests of experiments.logger."""

import io
import json

import jax
import numpy as np
import pytest

from experiments.training import logger
from experiments.training.directory import (
    MetricsFile,
    friendly_errors,
    new_directory,
    read_metrics,
)


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
    with pytest.raises(ValueError, match="output must be a new or an empty directory"):
        new_directory(tmp_path / name, "digits")
    assert (tmp_path / "directory" / "file").read_text() == "kept"


ROWS = [{"epoch": n, "step": 10 * n, "loss": 1 / n} for n in (1, 2, 3)]


def test_rows_are_read_as_they_were_written(tmp_path):
    metrics = MetricsFile(tmp_path)
    for number, row in enumerate(ROWS, start=1):
        metrics.append([row])
        assert read_metrics(tmp_path) == ROWS[:number]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("cut", [1, 5, len(json.dumps(ROWS[2]))])
def test_a_last_line_that_was_cut_short_is_left_out(tmp_path, cut):
    MetricsFile(tmp_path).append(ROWS)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[: -1 - cut])
    assert read_metrics(tmp_path) == ROWS[:2]


def test_a_resumed_run_drops_the_lines_that_it_will_write_again(tmp_path):
    metrics = MetricsFile(tmp_path)
    metrics.drop_after(0)  # nothing is there yet
    metrics.append(ROWS)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 4, "st')
    metrics.drop_after(20)
    assert read_metrics(tmp_path) == ROWS[:2]
    metrics.append(ROWS[2:])
    assert read_metrics(tmp_path) == ROWS
    metrics.drop_after(0)
    assert read_metrics(tmp_path) == []


def test_processes_but_the_first_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    metrics = MetricsFile(tmp_path, tensorboard=True)
    metrics.append(ROWS)
    metrics.drop_after(0)
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_gets_every_number(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    metrics = MetricsFile(tmp_path, tensorboard=True)
    metrics.append(ROWS)
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
    MetricsFile(tmp_path).append(ROWS)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_progress_bar_shows_the_time_left_on_a_terminal(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with logger.progress_bar(4, "digits", initial=1) as bar:
        bar.update()
        bar.refresh()
    assert "digits:  50%" in terminal.getvalue()
    assert "2/4 [00:00<00:0" in terminal.getvalue()


def test_the_progress_bar_is_silent_where_there_is_no_terminal(capsys):
    with logger.progress_bar(4, "digits") as bar:
        bar.update()
    assert capsys.readouterr() == ("", "")


def test_the_progress_bar_is_silent_in_processes_but_the_first(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with logger.progress_bar(4, "digits") as bar:
        bar.update()
    assert terminal.getvalue() == ""


@pytest.mark.parametrize(
    "error",
    [
        ValueError("c must be >= 0"),
        TypeError("c must be a number"),
        FileNotFoundError("no file"),
        ImportError("no module"),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"),
    ],
)
def test_an_error_of_the_user_or_a_device_ends_the_program_in_a_sentence(error):
    with pytest.raises(SystemExit) as end, friendly_errors():
        raise error
    assert end.value.code == f"error: {error}"


def test_an_error_of_the_program_keeps_its_traceback():
    with pytest.raises(KeyError), friendly_errors():
        raise KeyError("bug")


def test_ctrl_c_ends_the_program_with_130(capsys):
    with pytest.raises(SystemExit) as end, friendly_errors():
        raise KeyboardInterrupt
    assert end.value.code == 130
    assert "stopped" in capsys.readouterr().err


def test_hardware_and_versions_are_plain_json():
    environment = json.loads(json.dumps(logger.environment()))
    assert environment["devices"] == [d.device_kind for d in jax.devices()]
    assert {"jax", "jaxlib", "flax", "optax", "numpy", "python"} <= environment.keys()
