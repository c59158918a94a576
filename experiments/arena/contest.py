"""Which runs are wanted, and in which order: what is there is never trained again.

A run is a row. Everything that is decided, such as a method's learning rate, is decided
from rows; so a contest that was stopped goes on with what is missing.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.arena.methods import METHODS, TWINS
from experiments.arena.networks import NETWORKS
from experiments.arena.runs import Setting

Rows = list[dict[str, Any]]

TUNED_AT = 0.95  # the sparsity at which a method's learning rate is chosen
STRENGTHS = 8  # of a penalty, tried on the way to the one that gives a sparsity


class Plan(NamedTuple):
    """How much is trained."""

    sparsities: tuple[float, ...]  # wanted, of the kernels
    seeds: int  # runs of each method at each sparsity
    tuning_seeds: int  # runs of each learning rate and strength, on held-out images


class Group(NamedTuple):
    """Runs of one network and one method that may train together."""

    network: str
    method: str
    # "tuning", of the learning rate, on images held out of the training images;
    # "strengths", of a penalty, which looks at zeros alone; "test", the runs that count
    phase: str
    settings: list[Setting]


def missing(rows: Rows, network: str, method: str, plan: Plan) -> Group | None:
    """The runs of a method that come next, or None if there are all.

    The learning rate is tuned first, on held-out images at one sparsity. Methods that
    know no sparsity take that of their dense twin, as their papers do. Instead, their
    penalty is tried at some strengths: for each sparsity, its strength is interpolated
    between those of two of these runs.

    Args:
      rows: of runs that are there, of any network and method.
      network, method: names.
      plan: what is wanted.
    """
    mine = [r for r in rows if (r["network"], r["method"]) == (network, method)]
    for phase, settings in _wanted(rows, network, method, plan):
        there = {
            tuple(row[name] for name in Setting._fields)
            for row in mine
            if row["phase"] == phase
        }
        left = [setting for setting in settings if tuple(setting) not in there]
        if left:
            return Group(network, method, phase, left)
    return None


def _wanted(rows: Rows, network: str, method: str, plan: Plan):
    """Phases and their settings; the later follow from the rows of those before."""
    sort, paces = METHODS[method], NETWORKS[network].paces
    tuning_seeds = range(1000, 1000 + plan.tuning_seeds)
    if sort.strengths is None:
        asked = 0.0 if sort.family == "dense" else TUNED_AT
        yield (
            "tuning",
            [Setting(pace, asked, 0.0, s) for pace in paces for s in tuning_seeds],
        )
        pace = best_pace(rows, network, method)
        sparsities = (0.0,) if sort.family == "dense" else plan.sparsities
        strengths = dict.fromkeys(sparsities, 0.0)
    else:
        pace = best_pace(rows, network, sort.twin)
        grid = np.geomspace(*sort.strengths, STRENGTHS)
        yield "strengths", [Setting(pace, 0.0, float(x), tuning_seeds[0]) for x in grid]
        tried = _of(rows, network, method, "strengths")
        strengths = {s: strength_for(tried, s) for s in plan.sparsities}
    yield (
        "test",
        [
            Setting(pace, sparsity, strength, seed)
            for sparsity, strength in strengths.items()
            for seed in range(plan.seeds)
        ],
    )


def best_pace(rows: Rows, network: str, method: str) -> float:
    """The learning rate with the best accuracy on held-out images.

    Of equally good ones, that with the lowest training loss.
    """
    found: dict[float, Rows] = {}
    for row in _of(rows, network, method, "tuning"):
        found.setdefault(row["pace"], []).append(row)

    def quality(pace: float) -> tuple[float, float]:
        accuracy = np.mean([row["test_accuracy"] for row in found[pace]])
        loss = np.mean([row["train_loss"] for row in found[pace]])
        return round(float(accuracy), 6), -float(loss) if np.isfinite(loss) else -np.inf

    return max(found, key=quality)


def strength_for(rows: Rows, sparsity: float) -> float:
    """The strength that gives a sparsity, between those of two runs.

    Linear in the logarithm of the strength and in the logit of the zeros; the end of
    the range where no two strengths have the sparsity between them.
    """
    by_strength: dict[float, list[float]] = {}
    for row in rows:
        by_strength.setdefault(row["strength"], []).append(row["zeros"])
    strengths = sorted(by_strength)
    zeros = [_logit(np.mean(by_strength[x])) for x in strengths]
    wanted = _logit(sparsity)
    for n in range(len(strengths) - 1):
        if min(zeros[n : n + 2]) <= wanted <= max(zeros[n : n + 2]):
            share = (wanted - zeros[n]) / ((zeros[n + 1] - zeros[n]) or 1.0)
            low, high = map(math.log, strengths[n : n + 2])
            return math.exp(low + share * (high - low))
    return min(strengths, key=lambda x: abs(zeros[strengths.index(x)] - wanted))


def _of(rows: Rows, *names: str) -> Rows:
    """The rows of a network, a method and a phase."""
    fields = ("network", "method", "phase")
    return [row for row in rows if tuple(row[field] for field in fields) == names]


def _logit(fraction: float) -> float:
    fraction = float(np.clip(fraction, 1e-6, 1 - 1e-6))
    return math.log(fraction / (1 - fraction))


def of_test(rows: Rows) -> Rows:
    """The rows that count."""
    return [row for row in rows if row["phase"] == "test"]


def names(chosen: Sequence[str], direction: str = "gradient") -> list[str]:
    """The methods of a contest, after the dense twins that they take rates from.

    Args:
      chosen: names of methods; none for all.
      direction: of the network. Methods of another direction are left out.
    """
    chosen = [
        name for name in chosen or METHODS if METHODS[name].direction == direction
    ]
    twins = [METHODS[name].twin for name in chosen if METHODS[name].strengths]
    return list(dict.fromkeys((TWINS[direction], *twins, *chosen)))
