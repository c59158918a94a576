"""A hostile context for every test: what passes here survives in users' programs.

Warnings are errors too: see ``filterwarnings`` in pyproject.toml.
"""

import os

# The tolerances of the tests are those of the CPU; JAX_PLATFORMS overrides.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis
import jax
import pytest

# Before a backend starts, hence at import: enough devices for a mesh.
jax.config.update("jax_num_cpu_devices", 8)
# Mixed dtypes and unequal ranks must be meant, not happen.
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Deterministic, and without a deadline: the first example compiles.
hypothesis.settings.register_profile(
    "tests", derandomize=True, deadline=None, max_examples=50
)
hypothesis.settings.load_profile("tests")


def pytest_configure(config):
    """Compiles a program once: for all tests, what they start, and the next time."""
    options = {
        "jax_compilation_cache_dir": str(config.cache.mkdir("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in options.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)


@pytest.fixture
def standard_promotion():
    """For the few tests in which code of other libraries mixes dtypes."""
    with jax.numpy_dtype_promotion("standard"):
        yield
