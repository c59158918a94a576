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
from experiments import report
from experiments.analyses import _curvature as curvature
from experiments.analyses import _plots as analysis_figures
from experiments.analyses import card, connect, project, prune
from experiments.analyses._curvature import hessian
from experiments.analyses._files import read_analyses
from experiments.compare import Options as CompareOptions
from experiments.compare import main as compare
from experiments.training import runs
from experiments.training.config import Config, Grda, Sgd
from experiments.training.devices import data_mesh
from experiments.training.presets import PRESETS
from experiments.training.runs import find_pairs
from experiments.training.session import train
from optax_grda import sparsity_report
from optax_grda.packing import unpack


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The directory of the demo's comparison on digits, with one seed."""
    output = tmp_path_factory.mktemp("runs") / "compare"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "experiments.analyses._training_plots.draw_comparison", lambda directory: []
        )
        patch.setattr("experiments.analyses.card.has_onnx", lambda: False)
        return compare(CompareOptions(seeds=1, checkpoint_every=30, output=output))


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
    )
    mesh = data_mesh(jax.devices()[:1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("experiments.training.session.data_mesh", lambda: mesh)
        return [
            train(
                dataclasses.replace(config, method=method),
                runs / method.name,
                checkpoint_every=1,
            )
            for method in (Sgd(), Grda(c=1.0))
        ]


@pytest.fixture(scope="module")
def analyses(convolutional, tmp_path_factory):
    """The directories of the three analyses of that pair, by name."""
    place, runs = tmp_path_factory.mktemp("analyses"), tuple(convolutional)
    connecting = connect.Options(
        runs, epochs=2, points=3, grid=0, output=place / "connect"
    )
    pruning = prune.Options(
        *(runs, (0.6,), (1e-4,)), products=3, output=place / "prune"
    )
    return {
        "card": card.main(card.Options(runs, rounds=2, output=place / "card")),
        "connect": connect.main(connecting),
        "project": project.main(project.Options(runs, k=2, output=place / "project")),
        "prune": prune.main(pruning),
    }


@pytest.fixture(scope="module")
def on_digits(digits, tmp_path_factory):
    """The same of the comparison on digits."""
    place, runs = tmp_path_factory.mktemp("digits"), (digits,)
    connecting = connect.Options(
        runs, epochs=20, points=21, grid=2, output=place / "connect"
    )
    pruning = prune.Options(runs, (0.6,), (1e-4,), output=place / "prune")
    return {
        "connect": connect.main(connecting),
        "project": project.main(project.Options(runs, output=place / "project")),
        "prune": prune.main(pruning),
    }


def found(analyses, name, kind="rows"):
    return json.loads((analyses[name] / f"{name}.json").read_text())[kind]


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
    assert pair.epochs == [30, 60]
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


def test_runs_that_differ_in_what_is_thresholded_are_still_twins(
    convolutional, tmp_path
):
    sgd, grda = convolutional
    other = shutil.copytree(grda, tmp_path / "units")
    fields = json.loads((other / "config.json").read_text())
    fields["method"] = {"name": "target", "sparsity": 0.8, "groups": "units"}
    (other / "config.json").write_text(json.dumps(fields))
    (pair,) = find_pairs([sgd, other])
    assert pair.describe()["label"] == "target 80 %, units"


def test_runs_that_cannot_be_compared_are_refused(convolutional, digits, tmp_path):
    again = shutil.copytree(convolutional[1], tmp_path / "again")
    with pytest.raises(ValueError, match="not hold two runs of one configuration"):
        find_pairs([*convolutional, again])
    with pytest.raises(ValueError, match="one network on one data set"):
        find_pairs([*convolutional, digits])
    (pair,) = find_pairs([*convolutional, *convolutional])  # each counts once
    params = pair.sgd.state().params
    with pytest.raises(ValueError, match="must have other weights than"):
        runs.displacement(pair, params, params)


def test_pruning_takes_the_last_epoch_that_all_runs_have(convolutional):
    class Saved:
        def __init__(self, *epochs):
            self.epochs = dict.fromkeys(epochs)

    pairs = [runs.Pair(Saved(1, 2, 3), Saved(*epochs)) for epochs in ((1, 2), (2, 3))]
    assert runs.last_common_epoch(pairs) == 2


def test_runs_of_grda_share_what_is_known_of_their_run_of_sgd(convolutional):
    sgd, grda = (runs.Run(directory) for directory in convolutional)
    first, second = runs.Pair(sgd, grda), runs.Pair(sgd, grda)
    work = runs.by_sgd_epoch([first, second])
    assert work == [(sgd, epoch, [first, second]) for epoch in (1, 2)]


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
    (result,) = found(analyses, "connect", "pairs")
    assert result["t"] == [0, 0.5, 1]
    (pair,) = find_pairs(convolutional)
    task = pair.grda.task
    for place, run in ((0, pair.grda), (-1, pair.sgd)):
        params = run.state().params
        expected = connect.metrics_at(task.trainer, params, task.train, task.test)
        for path in ("line", "curve"):
            for name, value in expected.items():
                assert result[path][name][place] == pytest.approx(
                    float(value), abs=1e-4
                )
    losses = result["line"]["train_loss"]
    height = max(losses) - max(losses[0], losses[-1])
    assert result["line"]["barrier_height"] == pytest.approx(height, abs=1e-6)
    assert result["curve"]["length"] >= result["line"]["length"] > 0


def test_the_plane_goes_through_both_solutions_and_the_bend(on_digits):
    (result,) = found(on_digits, "connect", "pairs")
    grda, sgd, bend = result["plane"]["corners"]
    assert grda == [0, 0]
    assert sgd == pytest.approx([result["line"]["length"], 0])
    assert bend[1] > 0
    assert np.shape(result["plane"]["train_loss"]) == (2, 2)
    assert result["plane"]["curve_x"][-1] == pytest.approx(sgd[0], rel=1e-4)


def test_a_plane_with_losses_that_overflow_can_be_drawn():
    values = {"x": [0, 1], "y": [0, 1], "corners": [[0, 0], [1, 0], [0.5, 1]]}
    values |= {"curve_x": [0, 1], "curve_y": [0, 0]}
    values |= {"train_loss": [[0.1, 0.2], [float("nan"), float("inf")]]}
    bar = analysis_figures.plane(values).axes[1]
    labels = [label.get_text() for label in bar.get_xticklabels()]
    assert (labels[0], labels[-1]) == ("0.1", "0.19")


def test_a_plane_without_a_finite_loss_says_so():
    values = {"x": [0, 1], "y": [0, 1], "train_loss": [[float("nan")] * 2] * 2}
    figure = analysis_figures.plane(values | {"corners": [[0, 0], [1, 0], [0, 1]]})
    assert figure.axes[0].get_title() == "no loss on this plane is finite"


# Project


def test_shares_follow_from_the_saved_eigenvalues_and_epochs(on_digits):
    rows = found(on_digits, "project")
    assert [row["epoch"] for row in rows] == [30, 60]
    for row in rows:
        assert row["eigenvalues"] == sorted(row["eigenvalues"], reverse=True)
        assert len(row["eigenvalues"]) == 10
        assert 0 < row["difference_fraction"] < 1
        assert row["random_fraction"] == 10 / 17226
        assert row["grda_l2_over_l1"] > row["sgd_l2_over_l1"] > 17226**-0.5


def test_curvature_of_a_network_with_convolutions_and_batch_norm(analyses):
    rows = found(analyses, "project")
    assert [row["epoch"] for row in rows] == [1, 2]
    for row in rows:
        bound = 1e-5 * max(row["eigenvalues"])
        assert len(row["eigenvalues"]) == 2
        assert max(row["residual_norms"]) <= bound


def test_batches_of_curvature_leave_few_images_out():
    sizes = {(50_000, 128): 125, (1437, 32): 27, (32, 16): 16, (5, 16): 5, (1, 1): 1}
    for (images, most), size in sizes.items():
        assert curvature.batch_size(images, most) == size


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


def test_every_method_reaches_what_was_asked(on_digits):
    rows = found(on_digits, "prune", "pruning")
    methods = {row["method"] for row in rows}
    assert methods == {"SGD", "gRDA", "magnitude", "OBD", "definition, ε = 0.0001"}
    (grda,) = (row["sparsity"] for row in rows if row["method"] == "gRDA")
    assert 0 < grda < 1
    for row in rows:
        known = {"none": 0, "gRDA, c = 0.05, μ = 0.6": grda}
        asked = known.get(row["asked"], row["asked"])
        assert row["sparsity"] == pytest.approx(asked, abs=2e-3)


def test_a_table_of_pruning_leaves_out_means_over_some_of_the_runs():
    rows = [
        {"method": method, "asked": asked, "sparsity": 0.5, "train_loss": loss}
        | {"test_accuracy": 0.9}
        for method, asked, loss in (
            *(("SGD", "none", 0.1), ("SGD", "none", 0.3)),
            *(("magnitude", 0.5, 1.0), ("magnitude", 0.5, 2.0)),
            ("definition", 0.5, 1.0),
        )
    ]
    assert prune.table(rows) == [
        {"zeros": "50.0%, SGD", "magnitude": "0.200 (90.0)"},
        {"zeros": "50.0%", "magnitude": "1.500 (90.0)"},
    ]


def test_the_largest_residual_of_each_cutoff_is_told():
    pairs = ((1e-4, 0.2), (1e-4, 0.3), (1e-3, 0.001))
    rows = [{"cutoff": cutoff, "residual": residual} for cutoff, residual in pairs]
    sentence = prune.residuals([{"method": "SGD"}, *rows])
    assert ": 0.001 at ε = 0.001, 0.3 at ε = 0.0001;" in sentence


def test_agreement_is_measured_at_the_threshold_beside_controls(digits, on_digits):
    rows = found(on_digits, "prune", "agreement")
    (pair,) = find_pairs([digits])
    assert [row["epoch"] for row in rows] == 3 * [30] + 3 * [60]  # and two controls
    for row in rows:
        state = pair.grda.state(row["epoch"])
        assert row["strength"] == pytest.approx(float(state.opt_state.threshold))
        assert -1 <= row["cosine"] <= 1
        assert 0 <= row["overlap"] <= 1


# Card


def test_a_card_measures_the_networks_whose_files_it_writes(analyses, convolutional):
    rows = {row["network"]: row for row in found(analyses, "card")}
    sgd, grda, shrunk = (rows[name] for name in ("SGD", "gRDA", "gRDA, shrunk"))
    for row, run in zip((sgd, grda), convolutional, strict=True):
        summary = json.loads((run / "summary.json").read_text())
        assert row["test_accuracy"] == pytest.approx(summary["test_accuracy"])
        assert row["nonzeros"] == summary["sparsity_report"]["nonzero"]
    assert shrunk["parameters"] < grda["parameters"] == sgd["parameters"]
    assert shrunk["multiply_adds"] < grda["multiply_adds"]
    assert grda["packed_bytes"] < sgd["packed_bytes"]
    for name in ("SGD", "gRDA, shrunk"):
        there = rows[f"{name}, ONNX Runtime"]
        assert there["test_accuracy"] == rows[name]["test_accuracy"]
        file = analyses["card"] / f"{name.lower().replace(', ', '-')}.onnx"
        assert there["file_bytes"] == file.stat().st_size
    assert all(row["largest_difference"] < 1e-5 for row in rows.values())
    weights = unpack(analyses["card"] / "grda.safetensors")
    assert sparsity_report(weights).nonzero == grda["nonzeros"]


def test_a_verdict_divides_what_was_before_by_what_is_after():
    names = ("parameters", "file_bytes", "multiply_adds", "seconds_1", "seconds_32")
    dense = dict.fromkeys(names, 12.0) | {"network": "SGD", "test_accuracy": 0.9}
    sparse = dense | {"network": "gRDA", "nonzeros": 3, "packed_bytes": 5.0}
    shrunk = sparse | {"parameters": 6.0, "multiply_adds": 0, "seconds_32": 4.0}
    sentence = card.verdict([dense, sparse, shrunk | {"network": "gRDA, shrunk"}])
    assert "75.0% of the weights are zero" in sentence
    assert "packed file is smaller by a factor of 2.4." in sentence
    assert "fewer by a factor of 2.0, multiply-adds by inf," in sentence
    assert sentence.endswith("is lower by 1.0 and 3.0.")


def test_a_card_does_without_onnx(convolutional, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("experiments.analyses.card.has_onnx", lambda: False)
    card.main(card.Options(tuple(convolutional), rounds=1, output=tmp_path / "card"))
    text = capsys.readouterr().out
    assert "of the weights are zero" in text
    assert "ONNX" not in text


# What the paper says, on digits


def test_grda_lies_in_the_valley_of_sgd(on_digits):
    (result,) = found(on_digits, "connect", "pairs")
    assert result["curve"]["barrier_height"] < 0.05
    assert result["curve"]["barrier_height"] <= result["line"]["barrier_height"]


def test_grda_left_sgd_in_flat_directions(on_digits):
    for row in found(on_digits, "project"):
        assert row["difference_fraction"] < 10 * row["random_fraction"]


def test_grda_agrees_with_the_definition_more_than_with_shuffled_scores(on_digits):
    rows = found(on_digits, "prune", "agreement")
    cosine = {row["scores"]: row["cosine"] for row in rows if row["epoch"] == 60}
    assert cosine["definition"] > max(0.8, cosine["shuffled scores"])


def test_the_definition_loses_less_than_magnitude_pruning(on_digits):
    rows = found(on_digits, "prune", "pruning")
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
    assert f"gRDA, c = 1, μ = 0.6 made {summary['sparsity']:.1%} of" in page
    assert page.count("<figure>") == 7
    assert page.count("data:image/svg+xml;base64,") == 7
    assert page.count("<table>") == 5  # of the runs, and one an analysis
    assert card.verdict(found(analyses, "card")).split(",")[0] in page
    assert "<summary>experiments.prune</summary>" in page  # its options
    assert "runs, connect, project, prune, card" in page  # all measured here
    addresses = re.findall(r'(?:src|href)="([^"]{,30})', page)
    assert all(address.startswith("data:") for address in addresses)


def test_analyses_of_one_kind_are_shown_together(analyses, tmp_path):
    name = "project"
    kept = json.loads((analyses[name] / f"{name}.json").read_text())
    directories = [analyses[name], tmp_path / "again"]
    directories[1].mkdir()

    def write(**changes):
        (directories[1] / f"{name}.json").write_text(json.dumps(kept | changes))

    others = [row | {"seed": 1, "sgd": "sgd-1"} for row in kept["rows"]]
    write(rows=others, environment={"cpus": 1})
    found = read_analyses(directories, name)
    assert found["rows"] == kept["rows"] + others
    assert found["environments"] == [kept["environment"], {"cpus": 1}]
    write()
    with pytest.raises(ValueError, match="of different runs"):
        read_analyses(directories, name)
    write(options={"k": 3})
    with pytest.raises(ValueError, match="with the same options"):
        read_analyses(directories, name)
    assert read_analyses(directories, "connect") is None


def test_a_report_is_about_one_network(convolutional, on_digits, tmp_path):
    directories = (*convolutional, on_digits["project"])
    with pytest.raises(ValueError, match="one network on one data set, got"):
        report.write_report(directories, tmp_path / "report.html")


def test_findings_are_means_over_the_last_epoch(on_digits):
    read = {name: read_analyses([path], name) for name, path in on_digits.items()}
    valley, shares, cosines = report.findings(read)
    height = read["connect"]["pairs"][0]["curve"]["barrier_height"]
    assert f"at most {height:.4f} along the trained curve" in valley
    row = read["project"]["rows"][-1]
    times = row["difference_fraction"] / row["random_fraction"]
    assert f"is {times:.2g} (gRDA, c = 0.05, μ = 0.6) times that of a random" in shares
    last = [row["cosine"] for row in read["prune"]["agreement"] if row["epoch"] == 60]
    assert ", ".join(f"{cosine:.3f}" for cosine in last) in cosines


def test_analyses_of_the_papers_networks_stand_beside_the_authors(analyses):
    about = {"model": "wrn28x10", "dataset": "cifar100", "c": 0.001, "mu": 0.55}
    about |= {"preset": "cifar100-wrn28x10-mu0.55"}
    (pair,) = found(analyses, "connect", "pairs")
    rows = connect.table([pair | about, pair])
    theirs = ("authors' curve, max", "authors' line, max")
    assert [rows[0][name] for name in theirs] == ["0.0005", "0.1612"]
    assert [rows[1][name] for name in theirs] == ["", ""]
    other = about | {"preset": None}  # of another protocol, or of whole units
    assert not rows[0].keys() <= connect.table([pair | other])[0].keys()
    plane_alone = about | {"model": "vgg16", "dataset": "cifar10", "mu": 0.501}
    (row,) = connect.table([pair | plane_alone | {"c": 0.0005}])
    assert row["authors' line, max"] == "4.8888"
    assert theirs[0] not in row
    curve = analysis_figures.loss_along_curves([pair | about])
    assert len(curve.axes[0].lines) == 3  # line, curve and theirs

    rows = [row | about | {"dataset": "cifar10"} for row in found(analyses, "project")]
    assert len(analysis_figures.projection(rows).axes[0].lines) == 2  # of 2 vectors
    ten = [row | {"eigenvalues": list(range(10))} for row in rows]
    _, shares, _ = analysis_figures.projection(ten).axes[0].lines
    assert shares.get_ydata()[-1] == 1.04974e-06
    rows = [row | about for row in rows]
    norms = analysis_figures.norms(rows).axes[0].lines
    # SGD and gRDA, ours and theirs; and the least there can be.
    assert [len(line.get_xdata()) for line in norms] == [2, 2, 201, 201, 2]


def test_a_seed_counts_once_among_results(digits, convolutional):
    sgd, grda = runs.read_results([digits])
    layers = [{"kernel": sparsity} for sparsity in (0.1, 0.2, 0.3)]
    three = dataclasses.replace(
        grda,
        seeds=[0, 1, 2],
        test_accuracy=[0.7, 0.8, 0.9],
        sparsity=[0.1, 0.2, 0.3],
        train_loss=[1.0, 2.0, 3.0],
        sparsity_by_layer=layers,
    )
    one = dataclasses.replace(three, seeds=[1, 5, 2])
    merged = runs._merge([three, one])
    assert merged.seeds == [0, 1, 2, 5]
    assert merged.test_accuracy == [0.7, 0.8, 0.9, 0.8]
    assert merged.layers() == pytest.approx({"kernel": 0.2})
    assert {row["seed"] for row in merged.metrics} == {0}
    other = dataclasses.replace(sgd.config, batch_size=64)
    sgds = [sgd, dataclasses.replace(sgd, config=other)]
    labels = [result.label for result in runs._labelled(sgds)]
    assert labels == ["SGD, batch_size 32", "SGD, batch_size 64"]
    assert "points" not in runs.headline([sgds[1], grda])  # no twin
    assert "points below SGD" in runs.headline([sgds[1], sgd, grda])


def test_results_of_the_paper_stand_beside_the_authors(convolutional, monkeypatch):
    (result,) = runs.read_results(convolutional[1:])
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
    (sgd, grda) = runs.read_results([digits])
    settings = [
        dataclasses.replace(
            grda, config=dataclasses.replace(grda.config, method=Grda(mu=mu))
        )
        for mu in (0.6, 0.7)
    ]
    several = runs._labelled([sgd, *settings])
    labels = ["SGD", "gRDA, c = 0.05, μ = 0.6", "gRDA, c = 0.05, μ = 0.7"]
    assert [row["method"] for row in report.table(several)] == labels
    curves, _, tradeoff = report.run_pictures(several, ())
    axes = curves.figure.axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == labels
    assert len({line.get_color() for line in axes.lines}) == 3
    assert tradeoff.title == "Sparsity against accuracy"
