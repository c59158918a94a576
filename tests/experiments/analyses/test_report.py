"""Tests of report: one page of runs and analyses."""

import json
import re
import shutil
import subprocess

import pytest

from experiments import report
from experiments.analyses import card, connect, project, prune


@pytest.fixture(scope="module")
def page(digits, connected, projected, pruned, carded, united, tmp_path_factory):
    """The report of everything on digits, and where it is."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    found = (connected, projected, pruned, carded, united)
    directories = (*digits, *(analysed.directory for analysed in found))
    report.main(report.Options(directories, output=path))
    return path.read_text(), path


def test_a_report_says_what_was_found_and_needs_nothing_beside_it(page, digits, carded):
    text, _ = page
    summary = json.loads((digits[1] / "summary.json").read_text())
    assert f"gRDA, c = 0.05, μ = 0.6 made {summary['sparsity']:.1%} of" in text
    assert text.count("<section>") == 3 + 2 + 2 + 2 + 2 + 1
    assert text.count("data:image/svg+xml;base64,") == 2 + 0 + 2 + 2 + 2 + 1
    assert text.count("<table>") == 2 + 2 + 1 + 1 + 1 + 1
    assert card.sentence(carded.found()).split(",")[0] in text
    assert "<summary>experiments.prune</summary>" in text  # its options
    assert "runs, card, connect, project, prune, units" in text  # all measured here
    addresses = re.findall(r'(?:src|href)="([^"]{,30})', text)
    assert all(address.startswith("data:") for address in addresses)


def test_sentences_are_means_over_the_last_epoch(page, connected, projected, pruned):
    text, _ = page
    height = connected.rows("pairs")[0]["curve"]["barrier_height"]
    valley = connect.sentence(connected.found())
    assert f"at most {height:.4f} along the trained curve" in valley
    row = projected.rows()[-1]
    times = row["difference_fraction"] / row["random_fraction"]
    shares = project.sentence(projected.found())
    assert f"is {times:.2g} (gRDA, c = 0.05, μ = 0.6) times that of a random" in shares
    last = [row["cosine"] for row in pruned.rows("agreement") if row["epoch"] == 60]
    cosines = prune.sentence(pruned.found())
    assert ", ".join(f"{cosine:.3f}" for cosine in last) in cosines
    assert valley in text


def test_a_report_is_about_one_network(digits, projected, tmp_path):
    other = tmp_path / "project"
    shutil.copytree(projected.directory, other)
    text = (other / "project.json").read_text()
    (other / "project.json").write_text(text.replace("digits-mlp", "mnist-mlp"))
    with pytest.raises(ValueError, match="one network on one data set, got"):
        report.write_report((*digits, other), tmp_path / "report.html")


def test_directories_without_a_finished_run_are_refused(projected, tmp_path):
    output = tmp_path / "report.html"
    with pytest.raises(ValueError, match="must hold a finished run"):
        report.write_report((projected.directory,), output)
    with pytest.raises(FileNotFoundError, match=r"no directory .*nothing"):
        report.write_report((tmp_path / "nothing",), output)


def test_the_page_fits_a_phone_and_paper(page):
    text, _ = page
    style = text[text.index("<style>") : text.index("</style>")]
    assert "img { display: block; max-width: 100%; height: auto;" in style
    on_paper = style[style.index("@media print") :]
    assert ".scroll { overflow: visible; }" in on_paper
    assert "white-space: normal" in on_paper


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs Chromium to draw it")
def test_a_browser_draws_the_report_without_complaints(page, tmp_path):
    browser = subprocess.run(
        [
            *("chromium", "--headless", "--no-sandbox", "--disable-gpu"),
            *("--disable-background-networking", "--enable-logging=stderr"),
            *(f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"),
            page[1].as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "exactly zero" in browser.stdout
    assert "CONSOLE" not in browser.stderr
