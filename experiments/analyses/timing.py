"""Times that can be compared."""

import time
from collections.abc import Callable, Mapping

import jax
import numpy as np


def interleaved(
    functions: Mapping[str, Callable[[], object]], rounds: int
) -> dict[str, np.ndarray]:
    """Seconds of each function in each round, shape (rounds,), after one warm-up.

    All functions run once a round, in an order that rotates, so that drifts of the
    machine's speed hit them alike. What a function returns is waited for.
    """
    names = list(functions)
    seconds = {name: np.zeros(rounds) for name in names}
    for turn in range(-1, rounds):
        for position in range(len(names)):
            name = names[(position + turn) % len(names)]
            start = time.perf_counter()
            jax.block_until_ready(functions[name]())
            if turn >= 0:
                seconds[name][turn] = time.perf_counter() - start
    return seconds
