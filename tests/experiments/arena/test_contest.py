"""Which runs come next: decided from those that are there."""

import numpy as np
import pytest

from experiments.arena.contest import Plan, best_pace, missing, names, strength_for
from experiments.arena.networks import NETWORKS

NETWORK = "digits-mlp"
PACES = NETWORKS[NETWORK].paces
PLAN = Plan(sparsities=(0.9, 0.98), seeds=2, tuning_seeds=2)


def trained(group, accuracy=lambda setting: 0.9, zeros=lambda setting: 0.5):
    """Rows as the runs of a group leave them."""
    return [
        {"network": group.network, "method": group.method, "phase": group.phase}
        | setting._asdict()
        | {
            "test_accuracy": accuracy(setting),
            "train_loss": 1.0,
            "zeros": zeros(setting),
        }
        for setting in group.settings
    ]


def test_rates_are_tuned_once_and_the_best_is_tested_at_every_sparsity():
    tuning = missing([], NETWORK, "dial-soft", PLAN)
    assert tuning.phase == "tuning"
    assert len(tuning.settings) == len(PACES) * 2
    rows = trained(tuning, accuracy=lambda s: 0.9 - abs(s.pace - PACES[1]))
    test = missing(rows, NETWORK, "dial-soft", PLAN)
    assert test.phase == "test"
    assert [(s.pace, s.sparsity, s.seed) for s in test.settings] == [
        (PACES[1], sparsity, seed) for sparsity in (0.9, 0.98) for seed in (0, 1)
    ]
    assert not {s.seed for s in test.settings} & {s.seed for s in tuning.settings}
    assert missing(rows + trained(test), NETWORK, "dial-soft", PLAN) is None


def test_what_is_there_is_not_trained_again():
    rows = trained(missing([], NETWORK, "momentum", PLAN))
    test = missing(rows, NETWORK, "momentum", PLAN)
    assert {s.sparsity for s in test.settings} == {0.0}  # dense twins know no other
    rows += trained(test)[:1]
    (left,) = missing(rows, NETWORK, "momentum", PLAN).settings
    assert left.seed == 1
    more = missing(rows, NETWORK, "momentum", PLAN._replace(seeds=4))
    assert [s.seed for s in more.settings] == [1, 2, 3]
    assert missing(rows, "digits-wrn10x1", "momentum", PLAN).phase == "tuning"


def test_penalty_is_as_strong_as_gives_the_sparsity_at_the_rate_of_the_twin():
    rows = trained(missing([], NETWORK, "sgd", PLAN), lambda s: s.pace)
    tried = missing(rows, NETWORK, "grda", PLAN)
    assert tried.phase == "strengths"
    assert {s.pace for s in tried.settings} == {PACES[-1]}
    rows += trained(tried, zeros=lambda s: s.strength / (1 + s.strength))
    test = missing(rows, NETWORK, "grda", PLAN).settings
    # The range of strengths ends before 90 %: its end is the nearest.
    strongest = max(s.strength for s in tried.settings)
    assert {s.strength for s in test} == {strongest}


@pytest.mark.parametrize("wanted", [0.6, 0.9])
def test_strength_is_interpolated_in_its_logarithm_and_the_logit_of_the_zeros(wanted):
    # zeros / (1 - zeros) = x^2
    rows = [
        {"strength": x, "zeros": x**2 / (1 + x**2)} for x in (0.5, 1.0, 2.0, 4.0)
    ] * 2
    assert strength_for(rows, wanted) == pytest.approx(np.sqrt(wanted / (1 - wanted)))


def test_strength_is_the_end_of_the_range_where_no_run_had_as_many_zeros():
    rows = [{"strength": x, "zeros": z} for x, z in ((1.0, 0.1), (2.0, 0.2))]
    assert strength_for(rows, 0.9) == 2.0
    assert strength_for(rows, 0.01) == 1.0


def test_of_rates_with_equal_accuracy_that_with_the_lower_loss_is_best():
    def row(pace, loss):
        return {
            "network": NETWORK,
            "method": "dial-soft",
            "phase": "tuning",
            "pace": pace,
            "test_accuracy": 0.9,
            "train_loss": loss,
        }

    rows = [row(0.1, 0.3), row(0.2, 0.1), row(0.4, float("nan"))]
    assert best_pace(rows, NETWORK, "dial-soft") == 0.2


def test_dense_twins_come_before_those_that_take_their_rate():
    assert names(["grda", "dial-soft"]) == ["momentum", "sgd", "grda", "dial-soft"]
    assert names(["dial-soft"]) == ["momentum", "dial-soft"]
    assert names([])[0] == "momentum"


def test_methods_of_adam_train_the_networks_of_adam_alone():
    of_adam = names([], "adam")
    assert of_adam[0] == "adamw"
    assert {"dial-adam-power3", "dial-adam-metric", "gradual-adam"} < set(of_adam)
    assert not set(of_adam) & set(names([]))
    assert names(["dial-soft", "dial-adam-soft"], "adam") == ["adamw", "dial-adam-soft"]
