"""The methods of the arena: dense twins, ours, and the rivals."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import optax

from experiments.rivals._task import Task
from experiments.rivals.ac_dc import ac_dc
from experiments.rivals.adam_metric import adam_metric
from experiments.rivals.autosparse import autosparse
from experiments.rivals.dep_l0 import dep_l0
from experiments.rivals.dst import dst
from experiments.rivals.feather import feather
from experiments.rivals.gdp import gdp
from experiments.rivals.gradual import gradual_global, gradual_uniform, gradual_units
from experiments.rivals.hard_concrete import (
    hard_concrete_constraint,
    hard_concrete_penalty,
    hard_concrete_units,
)
from experiments.rivals.l1 import l1
from experiments.rivals.one_shot import one_shot
from experiments.rivals.rigl import rigl
from experiments.rivals.set_ import set_
from experiments.rivals.snip import snip
from experiments.rivals.st3 import st3
from experiments.rivals.str_ import str_
from experiments.rivals.top_kast import top_kast
from experiments.training.optimizer import GAINS
from optax_grda import grda, sparsity_ramp, target_sparsity
from optax_grda.proximal import Proximal, groups, hard, power, soft

Make = Callable[[Task], optax.GradientTransformation]

MU = 0.6  # of gRDA, whose c is tuned


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to train, and what it is told."""

    label: str  # for people
    make: Make
    family: Literal["dense", "ours", "rival"]
    # Range of strengths that holds those with which 50 to 99 % become zero, for methods
    # that know no sparsity; None for the others.
    strengths: tuple[float, float] | None = None
    # The dense twin whose learning rate such a method takes, as their papers do.
    twin: Literal["momentum", "sgd"] = "momentum"
    by_units: bool = False  # whole output units of hidden layers become zero
    direction: Literal["gradient", "adam"] = "gradient"  # of networks that it trains


def _sgd(task: Task) -> optax.GradientTransformation:
    """Dense training without momentum, at the same pace."""
    return task._replace(rate=_pace(task), momentum=None).descent()


def grda_sgd(task: Task) -> optax.GradientTransformation:
    """The paper's, on kernels, with decay: its strength is c."""
    return grda(_pace(task), task.strength, MU, weight_decay=task.weight_decay)


def grda_momentum(task: Task) -> optax.GradientTransformation:
    """The paper's law with momentum."""
    return grda(
        task.rate,
        task.strength,
        MU,
        momentum=task.momentum,
        weight_decay=task.weight_decay,
    )


def dial(
    task: Task, map_: Proximal = soft, momentum: bool = True
) -> optax.GradientTransformation:
    """The dial, which comes to its sparsity within half of the steps."""
    dual_average = target_sparsity(
        task.rate if momentum else _pace(task),
        sparsity_ramp(task.sparsity, task.steps // 2),
        momentum=task.momentum if momentum else None,
        gain=GAINS[task.direction],
        proximal=map_,
        weight_decay=task.weight_decay,
    )
    if task.direction == "adam":
        return optax.chain(optax.scale_by_adam(), dual_average)
    return dual_average


def dial_units(task: Task) -> optax.GradientTransformation:
    """The dial on whole output units."""
    return dial(task, groups(lambda path, shape: (path, -1)))


def _clipped(make: Make) -> Make:
    """The method behind gradients of norm at most 1, over all kernels."""
    return lambda task: optax.chain(optax.clip_by_global_norm(1.0), make(task))


def _pace(task: Task) -> optax.Schedule:
    """The learning rate of plain SGD at the same pace."""
    return lambda count: task.rate(count) / (1 - task.momentum)


def _ours(label: str, make: Make, **fields):
    return Method(label, make, "ours", **fields)


def _with_l1(task: Task) -> optax.GradientTransformation:
    """L1 in the loss at the strength that was best for digits at 90 % of zeros."""
    return l1(task._replace(strength=1e-3))


def _by_travel(make: Make) -> Make:
    """The method, whose strength is given times the travel: so it fits any budget."""
    return lambda task: make(task._replace(strength=task.strength / task.travel()))


def _rival(label: str, make: Make, **fields):
    return Method(label, make, "rival", **fields)


_ADAM = {"direction": "adam"}

METHODS: dict[str, Method] = {
    "momentum": Method("momentum SGD, dense", Task.descent, "dense"),
    "sgd": Method("SGD, dense", _sgd, "dense"),
    "grda": _ours("gRDA", grda_sgd, strengths=(0.002, 0.5), twin="sgd"),
    "grda-momentum": _ours("gRDA, momentum", grda_momentum, strengths=(0.002, 0.5)),
    "dial-sgd": _ours("dial, soft, SGD", functools.partial(dial, momentum=False)),
    "dial-soft": _ours("dial, soft", dial),
    "dial-power2": _ours("dial, power(2)", functools.partial(dial, map_=power(2))),
    "dial-power3": _ours("dial, power(3)", functools.partial(dial, map_=power(3))),
    "dial-clipped": _ours(
        "dial, power(3), clipped", _clipped(functools.partial(dial, map_=power(3)))
    ),
    "dial-hard": _ours("dial, hard", functools.partial(dial, map_=hard)),
    "gradual-global": _rival("gradual pruning", gradual_global),
    "gradual-clipped": _rival("gradual pruning, clipped", _clipped(gradual_global)),
    "gradual-uniform": _rival("gradual pruning by layer", gradual_uniform),
    "one-shot": _rival("one-shot, fine-tuned", one_shot),
    "snip": _rival("SNIP", snip),
    "ac-dc": _rival("AC/DC", ac_dc),
    "rigl": _rival("RigL", rigl),
    "set": _rival("SET", set_),
    "top-kast": _rival("Top-KAST", top_kast),
    "st3": _rival("ST-3", st3),
    "feather": _rival("Feather", feather),
    "l1": _rival("L1, then pruned", _with_l1),
    "str": _rival("STR", _by_travel(str_), strengths=(1.0, 40.0)),
    "autosparse": _rival("AutoSparse", _by_travel(autosparse), strengths=(1.0, 40.0)),
    "dst": _rival("DST", _by_travel(dst), strengths=(0.1, 4.0)),
    "l0-penalty": _rival("L0, penalty", hard_concrete_penalty, strengths=(1e-6, 3e-3)),
    "l0-constraint": _rival("L0, constraint", hard_concrete_constraint),
    "dial-units": _ours("dial, units", dial_units, by_units=True),
    "gradual-units": _rival("gradual pruning of units", gradual_units, by_units=True),
    "l0-units": _rival("L0, constraint", hard_concrete_units, by_units=True),
    "dep-l0": _rival("Dep-L0", dep_l0, by_units=True, strengths=(1e-6, 1e-2)),
    "gdp": _rival("GDP", gdp, by_units=True, strengths=(3.0, 60.0)),
    "adamw": Method("AdamW, dense", Task.descent, "dense", **_ADAM),
    "dial-adam-soft": _ours("dial, soft, Adam", dial, **_ADAM),
    "dial-adam-power3": _ours(
        "dial, power(3), Adam", functools.partial(dial, map_=power(3)), **_ADAM
    ),
    "dial-adam-metric": _ours("dial in Adam's metric", adam_metric, **_ADAM),
    "dial-adam-metric-power3": _ours(
        "dial in Adam's metric, power(3)",
        functools.partial(adam_metric, p=3),
        **_ADAM,
    ),
    "gradual-adam": _rival("gradual pruning, Adam", gradual_global, **_ADAM),
}

# The dense run that others are measured by, by the direction of their steps.
TWINS = {"gradient": "momentum", "adam": "adamw"}
