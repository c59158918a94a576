"""Optax's own suite for contributed optimizers, from the installed wheel, for grda.

Nothing is copied: every ``test_*`` method of its class is taken, new ones of a future
Optax included, with every combination of arguments that it gives to an optimizer
without a wrapper; only the optimizer is exchanged.
"""

import inspect
import unittest

import optax
import pytest
from optax.contrib import _common_test

from optax_grda import grda

# Rosenbrock's valley bounds the learning rate: its largest curvature is about 1000.
KWARGS = {"learning_rate": 1e-3}


def bound_methods():
    """Methods and the arguments that absl's ``parameterized`` bound to them."""
    suite = _common_test.ContribTest  # at the module's level, pytest would collect it
    for name in dir(suite):
        if name.startswith("test"):
            bound = getattr(suite, name)
            nonlocals = inspect.getclosurevars(bound).nonlocals
            yield inspect.unwrap(bound), nonlocals.get("testcase_params", {})


def cases():
    found = {}
    for method, arguments in bound_methods():
        if "opt_name" in arguments and arguments["wrapper_name"] is None:
            arguments = {**arguments, "opt_name": "grda", "opt_kwargs": KWARGS}
            rest = [
                getattr(value, "__name__", str(value))
                for name, value in arguments.items()
                if name
                not in ("opt_name", "opt_kwargs", "wrapper_name", "wrapper_kwargs")
            ]
            found["-".join([method.__name__, *rest])] = (method, arguments)
    return found


CASES = cases()


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("case", CASES)
def test_grda_passes(case, monkeypatch):
    monkeypatch.setattr(optax.contrib, "grda", grda, raising=False)
    method, arguments = CASES[case]
    try:
        method(_common_test.ContribTest(), **arguments)
    except unittest.SkipTest as skip:
        pytest.fail(f"Optax skipped its test: {skip}")


def test_every_method_of_the_suite_is_run():
    methods = {method.__name__ for method, _ in bound_methods()}
    assert methods == {method.__name__ for method, _ in CASES.values()}
    assert methods >= {
        "test_gradient_accumulation",
        "test_optimizers",
        "test_optimizers_accept_extra_args",
        "test_optimizers_accept_learning_rate_schedule_if_type_annotated_as_such",
        "test_optimizers_can_be_wrapped_in_inject_hyperparams",
        "test_preserve_dtype",
        "test_state_shape_dtype_shard_stability",
    }
