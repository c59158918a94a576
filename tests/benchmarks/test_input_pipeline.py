"""The benchmark of input pipelines on tiny data."""

import numpy as np
import pytest

from benchmarks import input_pipeline
from experiments.training import streaming


@pytest.fixture
def dataset(tmp_path):
    path = tmp_path / "tiny.npz"
    images = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 1), np.uint8)
    labels = np.arange(50) % 10
    np.savez(
        path,
        **{f"{split}_images": images for split in ("train", "test")},
        **{f"{split}_labels": labels for split in ("train", "test")},
    )
    return str(path)


def test_real_and_resident_epochs_take_equally_many_steps(dataset, monkeypatch):
    kept = {}

    def interleaved(functions, rounds):
        for name, epochs in functions.items():
            epochs()
            kept[name] = epochs.state
        return {name: np.ones(rounds) for name in functions}

    monkeypatch.setattr(input_pipeline, "interleaved", interleaved)
    options = input_pipeline.Options(
        preset="digits-mlp", dataset=dataset, batch_size=16, images=40, rounds=2
    )
    rows = input_pipeline.in_memory(options)
    assert [row["images"] for row in rows] == [32, 32]  # whole batches only
    assert {name: int(state.step) for name, state in kept.items()} == {
        "real data": 2,
        "resident batch": 2,
    }
    kernels = [state.params["layers"][0]["kernel"] for state in kept.values()]
    assert not np.array_equal(*kernels)  # they saw other images


def test_made_jpegs_are_as_large_as_those_of_imagenet():
    sizes = [len(example["image"]) for example in input_pipeline.jpegs(4)]
    assert np.mean(sizes) == pytest.approx(147_897e6 / 1_281_167, rel=0.1)


def test_streamed_images_are_counted_over_the_time(monkeypatch):
    times = iter((10.0, 14.0))
    monkeypatch.setattr(input_pipeline.time, "perf_counter", lambda: next(times))
    row = input_pipeline.streamed(input_pipeline.jpegs(8), 20, 0, batch_size=8)
    assert row["images/s"] == "6"  # 20 images fill 3 batches of 8, in 4 seconds
    assert row["a core"] == "6"
    assert row["cores for 2470 images/s"] == f"{2470 / 6:.1f}"
    assert streaming  # what it measures is the training program's own
