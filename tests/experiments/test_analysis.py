"""Tests of connect, project, prune and report, on pairs of runs."""

import dataclasses
import json
import re
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from experiments import connect, project, prune, report
from experiments.compare import Options as CompareOptions
from experiments.compare import main as compare
from experiments.config import Config
from experiments.curvature import hessian
from experiments.devices import data_mesh
from experiments.presets import PRESETS
from experiments.runs import find_pairs
from experiments.train import Options, train


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The directory of the demo's comparison on digits, with one seed."""
    output = tmp_path_factory.mktemp("runs") / "compare"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("experiments.figures.draw_comparison", lambda directory: [])
        return compare(CompareOptions(seeds=1, output=output))


@pytest.fixture(scope="module")
def convolutional(tmp_path_factory, tiny_vgg, tiny_images):
    """The directories of SGD and gRDA on a network with BatchNorm and dropout."""
    runs = tmp_path_factory.mktemp("runs")
    config = Config(
        model=tiny_vgg,
        dataset=tiny_images,
        augmentation="crop-flip",
        batch_size=16,
        epochs=2,
        c=0.1,
    )
    mesh = data_mesh(jax.devices()[:1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("experiments.train.data_mesh", lambda: mesh)
        return [
            train(
                Options(
                    dataclasses.replace(config, optimizer=optimizer),
                    output=runs / optimizer,
                    checkpoint_every=1,
                )
            )
            for optimizer in ("sgd", "grda")
        ]


@pytest.fixture(scope="module")
def analyses(convolutional, digits, tmp_path_factory):
    """The directories of the three analyses, by name."""
    place = tmp_path_factory.mktemp("analyses")
    return {
        "connect": connect.main(
            connect.Options(
                tuple(convolutional),
                epochs=2,
                points=3,
                grid=0,
                output=place / "connect",
            )
        ),
        "project": project.main(project.Options((digits,), output=place / "project")),
        "prune": prune.main(
            prune.Options(
                (digits,), sparsities=(0.6,), cutoffs=(1e-4,), output=place / "prune"
            )
        ),
    }


@pytest.fixture(scope="module")
def valley(digits, tmp_path_factory):
    """What connect found between the solutions of that comparison."""
    output = tmp_path_factory.mktemp("valley")
    connect.main(
        connect.Options((digits,), epochs=20, points=21, grid=2, output=output)
    )
    return json.loads((output / "connect.json").read_text())


def results(analyses, name):
    return json.loads((analyses[name] / f"{name}.json").read_text())


# Runs


def test_states_are_read_back_as_they_were_after_each_epoch(convolutional):
    (pair,) = find_pairs(convolutional)
    assert pair.epochs == [1, 2]
    for run in pair:
        states = [run.state(epoch) for epoch in pair.epochs]
        assert [int(state.step) for state in states] == [2, 4]
        task = run.task
        accuracy = task.trainer.evaluate(
            states[-1].params, states[-1].batch_stats, *task.test
        ).accuracy
        summary = json.loads((run.directory / "summary.json").read_text())
        assert float(accuracy) == pytest.approx(summary["test_accuracy"])
    assert pair.sgd.task is pair.grda.task


def test_a_comparison_holds_a_pair_a_seed(digits):
    (pair,) = find_pairs([digits])
    assert pair.describe().items() >= {"seed": 0, "c": 0.05, "mu": 0.6}.items()
    kernels = [run.state().params["layers"][0]["kernel"] for run in pair]
    with np.load(digits / "weights.npz") as weights:
        np.testing.assert_array_equal(kernels[0], weights["sgd"])
        np.testing.assert_array_equal(kernels[1], weights["grda"])


def test_a_run_without_its_twin_is_refused(convolutional, digits, tmp_path):
    sgd, grda = convolutional
    with pytest.raises(ValueError, match="must hold a run of SGD with the config"):
        find_pairs([grda])
    with pytest.raises(ValueError, match="must hold a run of SGD with the config"):
        find_pairs([grda, digits / "sgd-0"])
    with pytest.raises(ValueError, match="must hold a run of gRDA"):
        find_pairs([sgd])
    with pytest.raises(ValueError, match="holds no checkpoints"):
        find_pairs([tmp_path])
    with pytest.raises(FileNotFoundError, match=r"no run directory .*nothing"):
        find_pairs([tmp_path / "nothing"])


# BatchNorm


def test_estimated_batch_stats_are_the_average_over_whole_batches(convolutional):
    (pair,) = find_pairs(convolutional)
    images, _ = pair.grda.task.train
    state = pair.grda.state()
    found = pair.grda.task.trainer.estimate_batch_stats(state.params, images)
    spec = models.spec(pair.grda.config.model)
    x = (np.asarray(images[:32], np.float64) / 255 - spec.mean) / spec.std
    kernel = np.asarray(state.params["blocks"][0][0]["conv"]["kernel"], np.float64)
    bias = state.params["blocks"][0][0]["conv"]["bias"]
    outputs = jax.lax.conv_general_dilated(
        x.astype(np.float32),
        kernel.astype(np.float32),
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    batches = (np.asarray(outputs) + np.asarray(bias)).reshape(2, -1, 4)
    norm = found["blocks"][0][0]["norm"]
    np.testing.assert_allclose(norm["mean"], batches.mean((0, 1)), atol=1e-5)
    variances = batches.var(1, ddof=1).mean(0)
    np.testing.assert_allclose(norm["var"], variances, rtol=1e-4)


def test_a_network_without_batch_norm_has_no_statistics(digits):
    (pair,) = find_pairs([digits])
    task, state = pair.sgd.task, pair.sgd.state()
    assert task.trainer.estimate_batch_stats(state.params, task.train[0]) == {}


# Connect


def test_both_ways_lead_from_grda_to_sgd(convolutional, analyses):
    (result,) = results(analyses, "connect")
    assert result["t"] == [0, 0.5, 1]
    (pair,) = find_pairs(convolutional)
    task = pair.grda.task
    for place, run in ((0, pair.grda), (-1, pair.sgd)):
        params = run.state().params
        expected = connect.metrics_at(task.trainer, params, task.train, task.test)
        for path in ("line", "curve"):
            for name, value in expected.items():
                found = result[path][name][place]
                assert found == pytest.approx(float(value), abs=1e-4)
    losses = result["line"]["train_loss"]
    height = max(losses) - max(losses[0], losses[-1])
    assert result["line"]["barrier_height"] == pytest.approx(height, abs=1e-6)
    assert result["curve"]["length"] >= result["line"]["length"] > 0


def test_the_plane_goes_through_both_solutions_and_the_bend(valley):
    (result,) = valley
    grda, sgd, bend = result["plane"]["corners"]
    assert grda == [0, 0]
    assert sgd == pytest.approx([result["line"]["length"], 0])
    assert bend[1] > 0
    assert np.shape(result["plane"]["train_loss"]) == (2, 2)
    assert result["plane"]["curve_x"][-1] == pytest.approx(sgd[0], rel=1e-4)


# Project


def test_shares_follow_from_the_saved_eigenvalues_and_epochs(analyses):
    (row,) = results(analyses, "project")
    assert row["epoch"] == 60
    assert row["eigenvalues"] == sorted(row["eigenvalues"], reverse=True)
    assert 0 < row["difference_fraction"] < 1
    assert row["random_fraction"] == 10 / 17226
    assert row["grda_l2_over_l1"] > row["sgd_l2_over_l1"] > 17226**-0.5


def test_curvature_is_that_of_the_loss_of_evaluation(convolutional):
    (pair,) = find_pairs(convolutional)
    task, state = pair.sgd.task, pair.sgd.state()

    def loss(params):
        return task.trainer.evaluate(params, state.batch_stats, *task.train).loss

    vector = jax.tree.map(jnp.ones_like, state.params)
    expected = jax.jit(
        lambda w: jax.jvp(jax.grad(loss), (w,), (vector,))[1],
    )(state.params)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4 * np.abs(y).max()),
        hessian(task, state)(vector),
        expected,
    )


# Prune


def test_every_method_reaches_what_was_asked(analyses):
    rows = results(analyses, "prune")["pruning"]
    methods = {row["method"] for row in rows}
    assert methods == {"SGD", "gRDA", "magnitude", "OBD", "definition, ε = 0.0001"}
    (grda,) = (row["sparsity"] for row in rows if row["method"] == "gRDA")
    assert 0 < grda < 1
    for row in rows:
        asked = {"none": 0, "gRDA's": grda}.get(row["asked"], row["asked"])
        assert row["sparsity"] == pytest.approx(asked, abs=2e-3)


def test_agreement_is_measured_at_the_threshold_beside_controls(digits, analyses):
    rows = results(analyses, "prune")["agreement"]
    (pair,) = find_pairs([digits])
    assert len(rows) == 3  # the definition and two controls
    for row in rows:
        state = pair.grda.state(row["epoch"])
        assert row["strength"] == pytest.approx(float(state.opt_state.threshold))
        assert -1 <= row["cosine"] <= 1
        assert 0 <= row["overlap"] <= 1


# What the paper says, on digits


def test_grda_lies_in_the_valley_of_sgd(valley):
    (result,) = valley
    assert result["curve"]["barrier_height"] < 0.05
    assert result["curve"]["barrier_height"] <= result["line"]["barrier_height"]


def test_grda_left_sgd_in_flat_directions(analyses):
    (row,) = results(analyses, "project")
    assert row["difference_fraction"] < 10 * row["random_fraction"]


def test_grda_agrees_with_the_definition_more_than_with_shuffled_scores(analyses):
    rows = results(analyses, "prune")["agreement"]
    cosine = {row["scores"]: row["cosine"] for row in rows}
    assert cosine["definition"] > max(0.8, cosine["shuffled scores"])


def test_the_definition_loses_less_than_magnitude_pruning(analyses):
    rows = results(analyses, "prune")["pruning"]
    loss = {row["method"]: row["train_loss"] for row in rows if row["asked"] == 0.6}
    assert loss["definition, ε = 0.0001"] < loss["magnitude"]


# Report


def test_a_report_says_what_was_found_and_needs_nothing_beside_it(
    convolutional, analyses, tmp_path, capsys
):
    path = tmp_path / "report.html"
    directories = (*convolutional, *analyses.values())
    report.main(report.Options(directories, output=path))
    assert str(path) in capsys.readouterr().out
    page = path.read_text()
    summary = json.loads((convolutional[1] / "summary.json").read_text())
    assert f"gRDA, c = 0.1, μ = 0.6 made {summary['sparsity']:.1%} of" in page
    assert page.count("<figure>") == 7
    assert page.count("data:image/svg+xml;base64,") == 7
    addresses = re.findall(r'(?:src|href)="([^"]{,30})', page)
    assert all(address.startswith("data:") for address in addresses)


def test_results_of_the_paper_stand_beside_the_authors(convolutional, monkeypatch):
    (result,) = report.read_results(convolutional[1:])
    config = dataclasses.replace(
        PRESETS["cifar10-vgg16-mu0.6"], dataset="data/cifar10.npz", seed=3
    )
    result = dataclasses.replace(
        result, config=config, test_accuracy=[0.91], sparsity=[0.90]
    )
    (row,) = report.table([result])
    other = dataclasses.replace(result, config=dataclasses.replace(config, epochs=2))
    assert report.table([other])[0].keys() < row.keys()
    assert row["authors' accuracy, %"] == "90.86 ± 0.26"
    # (91 - 90.856) / 0.2612 and (90 - 90.476) / 0.1653
    assert row["accuracy: difference"] == "+0.6 σ"
    assert row["zeros: difference"] == "-2.9 σ"


def test_directories_without_a_finished_run_are_refused(analyses, tmp_path):
    with pytest.raises(ValueError, match="must hold a finished run"):
        report.write_report((analyses["project"],), tmp_path / "report.html")
    with pytest.raises(FileNotFoundError, match=r"no directory .*nothing"):
        report.write_report((tmp_path / "nothing",), tmp_path / "report.html")


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs Chromium to draw it")
def test_a_browser_draws_the_report_without_complaints(convolutional, tmp_path):
    path = report.write_report(tuple(convolutional), tmp_path / "report.html")
    browser = subprocess.run(
        [
            *("chromium", "--headless", "--no-sandbox", "--disable-gpu"),
            *("--disable-background-networking", "--enable-logging=stderr"),
            *(f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", path.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "exactly zero" in browser.stdout
    assert "CONSOLE" not in browser.stderr


def test_several_settings_have_a_curve_and_a_row_each(digits, tmp_path):
    (sgd, grda) = report.read_results([digits])
    results = [
        sgd,
        *(
            dataclasses.replace(grda, config=dataclasses.replace(grda.config, mu=mu))
            for mu in (0.6, 0.7)
        ),
    ]
    labels = ["SGD", "gRDA, c = 0.05, μ = 0.6", "gRDA, c = 0.05, μ = 0.7"]
    assert [row["method"] for row in report.table(results)] == labels
    curves, _, tradeoff = report.run_pictures(results, ())
    axes = curves.figure.axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == labels
    assert len({line.get_color() for line in axes.lines}) == 3
    assert tradeoff.title == "Sparsity against accuracy"
