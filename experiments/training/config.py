"""What defines an experiment: everything its numbers depend on."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, Literal, get_args

Schedule = Literal["constant", "garipov", "step-141", "step-30"]
Groups = Literal["none", "units", "units-and-weights"]

# In what two runs from the same initial weights may differ and still be compared.
METHOD = {"optimizer", "c", "mu", "sparsity", "groups"}
LABELS = {
    "sgd": "SGD",
    "momentum": "momentum SGD",
    "adam": "Adam",
    "grda": "gRDA",
    "target-sparsity": "target",
}


@dataclasses.dataclass(frozen=True)
class Config:
    """One training run. Two runs with equal configurations give equal parameters."""

    model: str = "digits-mlp"
    """Network: a name of models.names()."""
    dataset: str = "digits"
    """digits, mnist, cifar10, cifar100, imagenet2012, or a path to an .npz file."""
    augmentation: Literal["none", "crop-flip", "flip-crop"] = "none"
    """What is done to training images in memory, in this order."""
    optimizer: Literal["sgd", "momentum", "adam", "grda", "target-sparsity"] = "grda"
    """Optimizer; momentum is SGD with momentum 0.9, target-sparsity is gRDA whose
    threshold is steered."""
    learning_rate: float = 0.1
    """Learning rate, before the schedule."""
    schedule: Schedule = "constant"
    """Factor of the learning rate by epoch. garipov: 1 for half of the epochs, falling
    linearly to 0.01 at 90 %, then 0.01. step-141: 1, then 0.1 from epoch 141.
    step-30: divided by 10 every 30 epochs."""
    c: float = 0.05
    """gRDA: strength of the threshold."""
    mu: float = 0.6
    """gRDA: growth of the threshold."""
    sparsity: float = 0.9
    """target-sparsity: the fraction of weights to make zero, asked for from half of
    the training on and rising to it before."""
    groups: Groups = "none"
    """gRDA and target-sparsity: what becomes zero. none: single weights. units: hidden
    units, as wholes. units-and-weights: units, and single weights of those left."""
    epochs: int = 60
    """Passes over the training images."""
    batch_size: int = 32
    """Images an update, over all devices. The last batch of an epoch may be smaller."""
    accumulation: int = 1
    """Parts of a batch that pass one by one, to save memory; gradients are averaged."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of activations. Parameters, gradients and the optimizer state stay float32."""
    seed: int = 0
    """Of the initial weights, the order of the images, augmentation and dropout."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            _check(field, getattr(self, field.name))
        for name in ("epochs", "batch_size", "accumulation"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"accumulation must divide batch_size, {self.batch_size}: "
                f"got {self.accumulation}"
            )
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(
                f"learning_rate must be > 0 and finite, got {self.learning_rate}"
            )
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"sparsity must be in [0, 1), got {self.sparsity}")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed must be in [0, 2**31), got {self.seed}")

    @property
    def is_sparse(self) -> bool:
        """Whether the optimizer is one that makes weights zero."""
        return self.optimizer in ("grda", "target-sparsity")

    @property
    def label(self) -> str:
        """The method and its settings, for people."""
        label = LABELS[self.optimizer]
        if self.optimizer == "grda":
            label += f", c = {self.c:g}, μ = {self.mu:g}"
        if self.optimizer == "target-sparsity":
            label += f" {100 * self.sparsity:g} %"
        if self.is_sparse and self.groups != "none":
            label += f", {self.groups.replace('-', ' ')}"
        return label


def save(config: Config, path: Path) -> None:
    """Writes a configuration as JSON."""
    path.write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")


def load(path: Path) -> Config:
    """Reads a Config that :func:`save` wrote; fields left out have their defaults.

    Raises:
      ValueError: if the file is not JSON, names fields that a Config does not have, or
        a value breaks a rule.
      TypeError: if a value is of the wrong type.
      FileNotFoundError: if there is no such file.
    """
    try:
        fields = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} must be a JSON file: {error}") from error
    known = {field.name for field in dataclasses.fields(Config)}
    if not isinstance(fields, dict) or not fields.keys() <= known:
        raise ValueError(
            f"{path} must hold the fields of a configuration, {sorted(known)}: got "
            f"{sorted(fields) if isinstance(fields, dict) else fields!r}"
        )
    return Config(**fields)


def differences(saved: dict[str, Any], wanted: Config) -> list[str]:
    """The fields in which two configurations differ, as "name: saved, not wanted".

    Args:
      saved: the fields of a configuration, perhaps of an older version of the program.
      wanted: a configuration.
    """
    fields = dataclasses.asdict(wanted)
    return [
        f"{name}: {saved.get(name)}, not {fields.get(name)}"
        for name in fields | saved
        if saved.get(name) != fields.get(name)
    ]


def are_twins(sgd: Config, other: Config) -> bool:
    """Whether the first is of SGD, and differs from the other in the method alone."""
    fields = {line.split(":")[0] for line in differences(vars(sgd), other)}
    return sgd.optimizer == "sgd" and fields <= METHOD


def _check(field: dataclasses.Field, value: Any) -> None:
    """Raises unless a value, perhaps from a JSON file, is of its field's type."""
    choices = get_args(field.type)
    if choices:
        if value not in choices:
            raise ValueError(
                f"{field.name} must be one of {', '.join(choices)}, got {value!r}"
            )
    elif not isinstance(value, (int, float) if field.type is float else field.type):
        raise TypeError(f"{field.name} must be {field.type.__name__}, got {value!r}")
