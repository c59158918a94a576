"""Timing and tables that the benchmarks share."""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measure import (
    markdown,
    peak_bytes,
    ratio,
    size,
    write_result,
)
from experiments.analyses.timing import interleaved


def test_every_function_runs_once_a_round_in_an_order_that_rotates():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in "abc"}
    seconds = interleaved(functions, rounds=2)
    assert [len(seconds[name]) for name in "abc"] == [2, 2, 2]
    rounds = ["".join(calls[i : i + 3]) for i in range(0, 9, 3)]
    assert sorted(rounds) == ["abc", "bca", "cab"]  # the first one warms up


def test_ratio_is_taken_round_by_round():
    # The machine slowed down tenfold: the ratio of medians would not be 2.
    reference = np.array([1.0, 1.0, 10.0])
    assert ratio(2 * reference, reference) == "2.000 (2.000 to 2.000)"


def test_markdown_has_the_keys_as_its_header():
    assert markdown([{"a": 1, "b c": "x"}]) == "| a | b c |\n| --- | --- |\n| 1 | x |"


def test_size_counts_bytes_of_arrays_and_of_their_shapes():
    tree = {"w": jnp.zeros((3, 4)), "b": jnp.zeros(5, jnp.bfloat16)}
    assert size(tree) == 3 * 4 * 4 + 5 * 2
    assert size(jax.eval_shape(lambda: tree)) == size(tree)


def test_peak_memory_counts_donated_arrays_once():
    x = jax.ShapeDtypeStruct((1000,), jnp.float32)
    kept = jax.jit(jnp.sin).lower(x).compile()
    donated = jax.jit(jnp.sin, donate_argnums=0).lower(x).compile()
    assert peak_bytes(kept) - peak_bytes(donated) == 4000


def test_results_name_hardware_and_versions(tmp_path):
    path = write_result("speed", "a table", tmp_path / "new")
    assert path.name == "speed-cpu.md"
    text = path.read_text()
    assert text.startswith("a table\n")
    assert f"jax {jax.__version__}" in text
