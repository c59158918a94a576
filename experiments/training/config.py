"""What defines an experiment: everything its numbers depend on."""

import dataclasses
import math
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args, get_origin

from experiments.training.directory import read_json, write_json
from experiments.training.errors import UserError

Schedule = Literal[
    "constant", "cosine", "warmup-cosine", "garipov", "step-141", "step-30"
]
Groups = Literal["none", "units", "units-and-weights"]
Proximal = Literal["soft", "power2", "power3", "hard"]
Direction = Literal["gradient", "adam"]
Thresholds = Literal["all", "kernels"]


@dataclasses.dataclass(frozen=True)
class Sgd:
    """SGD without momentum, as the paper's."""

    name: ClassVar[str] = "sgd"
    label: ClassVar[str] = "SGD"
    is_sparse: ClassVar[bool] = False


@dataclasses.dataclass(frozen=True)
class Momentum:
    """SGD with heavy-ball momentum."""

    name: ClassVar[str] = "momentum"
    is_sparse: ClassVar[bool] = False

    beta: float = 0.9
    """Weight of the steps before, in [0, 1)."""
    weight_decay: float = 0.0
    """Share of the weights that is added to their gradient."""

    def __post_init__(self):
        _check_fields(self)
        _check(self, "beta", "in [0, 1)", lambda beta: 0 <= beta < 1)
        _check_decay(self)

    @property
    def label(self) -> str:
        """The method and its settings, for people."""
        return f"momentum SGD, β = {self.beta:g}{_of_decay(self.weight_decay)}"


@dataclasses.dataclass(frozen=True)
class Adam:
    """Adam with decoupled weight decay, AdamW; else Optax's defaults."""

    name: ClassVar[str] = "adam"
    is_sparse: ClassVar[bool] = False

    weight_decay: float = 0.0
    """Share of the weights, times the learning rate, that each step takes off them."""

    def __post_init__(self):
        _check_fields(self)
        _check_decay(self)

    @property
    def label(self) -> str:
        """The method and its settings, for people."""
        return f"Adam{_of_decay(self.weight_decay)}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Sparse:
    """What the methods that make weights zero have in common."""

    is_sparse: ClassVar[bool] = True

    groups: Groups = "none"
    """What becomes zero. none: single weights. units: hidden units, as wholes.
    units-and-weights: units, and single weights of those left."""
    momentum: float = 0.0
    """Weight of the steps before, in [0, 1); the threshold keeps its pace."""
    proximal: Proximal = "soft"
    """What makes weights of accumulator and threshold: optax_grda.proximal."""
    weight_decay: float = 0.0
    """Of the accumulator, as strong as in the dense twin."""
    direction: Direction = "gradient"
    """What is summed: gradients, or Adam's direction."""
    thresholds: Thresholds = "all"
    """Which weights may become zero. kernels: those of dense and convolutional layers;
    embeddings, norms and biases train as in the dense twin."""
    clip_norm: float = 0.0
    """Norm that the gradients of these weights are scaled down to; 0 is no limit."""

    def __post_init__(self):
        _check_fields(self)
        _check(self, "momentum", "in [0, 1)", lambda beta: 0 <= beta < 1)
        if self.groups != "none" and self.proximal != "soft":
            raise ValueError(
                f"proximal must be soft where groups are {self.groups}, got "
                f"{self.proximal}"
            )
        if self.groups != "none" and self.thresholds != "all":
            raise ValueError(
                f"thresholds must be all where groups are {self.groups}, got "
                f"{self.thresholds}"
            )
        if self.direction == "adam" and self.momentum:
            raise ValueError(
                "momentum must be 0 where direction is adam, which has its own, got "
                f"{self.momentum}"
            )
        _check_decay(self)
        _check(self, "clip_norm", ">= 0", lambda norm: norm >= 0)

    @property
    def _settings(self) -> str:
        """Settings that are not those of the paper, for people."""
        texts = []
        if self.groups != "none":
            texts.append(self.groups.replace("-", " "))
        if self.clip_norm:
            texts.append(f"clipped at {self.clip_norm:g}")
        if self.momentum:
            texts.append(f"β = {self.momentum:g}")
        if self.proximal != "soft":
            texts.append(self.proximal.replace("power", "p = "))
        if self.direction == "adam":
            texts.append("Adam")
        if self.thresholds == "kernels":
            texts.append("kernels")
        return "".join(f", {text}" for text in texts) + _of_decay(self.weight_decay)


@dataclasses.dataclass(frozen=True)
class Grda(_Sparse):
    """gRDA, the paper's method."""

    name: ClassVar[str] = "grda"

    c: float = 0.05
    """Strength of the threshold: more means more zeros. 0 is SGD."""
    mu: float = 0.6
    """Growth of the threshold with the steps, in (0, 1]."""

    def __post_init__(self):
        super().__post_init__()
        _check(self, "c", ">= 0 and finite", lambda c: 0 <= c < math.inf)
        _check(self, "mu", "in (0, 1]", lambda mu: 0 < mu <= 1)

    @property
    def label(self) -> str:
        """The method and its settings, for people."""
        return f"gRDA, c = {self.c:g}, μ = {self.mu:g}{self._settings}"


@dataclasses.dataclass(frozen=True)
class Target(_Sparse):
    """gRDA whose threshold is steered to a sparsity: no c, no mu."""

    name: ClassVar[str] = "target"

    sparsity: float = 0.9
    """The fraction of weights to make zero, in [0, 1): asked for from half of the
    training on, and rising to it before."""

    def __post_init__(self):
        super().__post_init__()
        _check(self, "sparsity", "in [0, 1)", lambda sparsity: 0 <= sparsity < 1)

    @property
    def label(self) -> str:
        """The method and its settings, for people."""
        return f"target {100 * self.sparsity:g} %{self._settings}"


Method = Sgd | Momentum | Adam | Grda | Target
METHODS: dict[str, type[Method]] = {method.name: method for method in get_args(Method)}


@dataclasses.dataclass(frozen=True)
class Config:
    """One training run. Two runs with equal configurations give equal parameters."""

    model: str = "digits-mlp"
    """Network: a name of models.names()."""
    dataset: str = "digits"
    """digits, mnist, cifar10, cifar100, imagenet2012, python-stdlib, or the path of an
    .npz file of images or of a folder of text."""
    augmentation: Literal["none", "crop-flip", "flip-crop"] = "none"
    """What is done to training images in memory, in this order."""
    method: Method = dataclasses.field(default_factory=Grda)
    """What trains the network."""
    learning_rate: float = 0.1
    """Learning rate, before the schedule."""
    schedule: Schedule = "constant"
    """Factor of the learning rate by epoch. garipov: 1 for half of the epochs, falling
    linearly to 0.01 at 90 %, then 0.01. cosine: half a wave, from 1 to 0. step-141: 1,
    then 0.1 from epoch 141. step-30: divided by 10 every 30 epochs. warmup-cosine, by
    step: rising from 0 in a twentieth of all steps, then half a wave to 0."""
    epochs: int = 60
    """Passes over the training images or texts."""
    batch_size: int = 32
    """Images or texts an update, over all devices. An epoch's last batch may be
    smaller."""
    accumulation: int = 1
    """Parts in which a batch passes one by one, to save memory. BatchNorm sees the
    parts, and dropout draws for each; all else is as if the batch passed whole."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of activations. Parameters, gradients and the optimizer state stay float32."""
    seed: int = 0
    """Of the initial weights, the order of the inputs, augmentation and dropout."""

    def __post_init__(self):
        _check_fields(self)
        for name in ("epochs", "batch_size", "accumulation"):
            _check(self, name, ">= 1", lambda number: number >= 1)
        _check(
            self,
            "accumulation",
            f"at most batch_size, {self.batch_size}",
            lambda parts: parts <= self.batch_size,
        )
        _check(
            self, "learning_rate", "> 0 and finite", lambda rate: 0 < rate < math.inf
        )
        _check(self, "seed", "in [0, 2**31)", lambda seed: 0 <= seed < 2**31)


def to_dict(config: Config) -> dict[str, Any]:
    """The fields for JSON; that of the method is a dict with its name."""
    fields = dataclasses.asdict(config)
    return fields | {"method": {"name": config.method.name} | fields["method"]}


def from_dict(fields: dict[str, Any]) -> Config:
    """The configuration of such a dict; fields left out have their defaults.

    Raises:
      ValueError: if there are fields that a Config or its method does not have, there
        is no such method, or a value breaks a rule.
      TypeError: if a value is of the wrong type.
    """
    fields = dict(fields)
    if "method" in fields:
        settings = fields["method"]
        if not isinstance(settings, dict) or settings.get("name") not in METHODS:
            raise ValueError(
                f"method must hold a name among {', '.join(METHODS)}, got {settings!r}"
            )
        method = METHODS[settings["name"]]
        settings = {key: value for key, value in settings.items() if key != "name"}
        fields["method"] = _make(method, settings)
    return _make(Config, fields)


def save(config: Config, path: Path) -> None:
    """Writes a configuration as JSON."""
    write_json(path, to_dict(config))


def load(path: Path) -> Config:
    """Reads a Config that :func:`save` wrote; fields left out have their defaults.

    Raises:
      UserError: if the file is not JSON, names what a Config does not have, or a value
        breaks a rule.
      FileNotFoundError: if there is no such file.
    """
    try:
        return from_dict(read_json(path))
    except (ValueError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} must hold a configuration: {error}") from error


def differences(saved: dict[str, Any], wanted: Config) -> list[str]:
    """The fields in which two configurations differ, as "name: saved, not wanted".

    Args:
      saved: fields as of to_dict, perhaps of an older version of the program.
      wanted: a configuration.
    """
    before, after = _flat(saved), _flat(to_dict(wanted))
    return [
        f"{name}: {before.get(name)}, not {after.get(name)}"
        for name in after | before
        if before.get(name) != after.get(name)
    ]


def obstacles(saved: dict[str, Any], wanted: Config) -> list[str]:
    """Why a run cannot go on with another configuration; nothing if it can.

    It can go on for more epochs, where those before do not depend on how many follow.

    Args:
      saved: fields of the run so far, as for differences.
      wanted: the configuration to go on with.
    """
    found = differences(saved, wanted)
    epochs = saved.get("epochs")
    if not isinstance(epochs, int) or found != differences(
        to_dict(dataclasses.replace(wanted, epochs=epochs)), wanted
    ):
        return found
    if wanted.epochs < epochs:
        return [f"{line}, which is fewer" for line in found]
    if wanted.schedule in ("cosine", "warmup-cosine", "garipov"):
        return [
            f"{line}, and the schedule {wanted.schedule} depends on them"
            for line in found
        ]
    if isinstance(wanted.method, Target):
        return [f"{line}, and the rise to a sparsity depends on them" for line in found]
    return []


def dense_twin(config: Config) -> Config:
    """The same run without a threshold: SGD or Adam, with momentum and decay as it."""
    method = config.method
    if isinstance(method, Grda | Target):
        dense: Method = Sgd()
        if method.direction == "adam":
            dense = Adam(method.weight_decay)
        elif method.momentum or method.weight_decay:
            dense = Momentum(method.momentum, method.weight_decay)
        return dataclasses.replace(config, method=dense)
    return config


def are_twins(dense: Config, other: Config) -> bool:
    """Whether the first is the other without its threshold."""
    return not dense.method.is_sparse and dense == dense_twin(other)


def _of_decay(weight_decay: float) -> str:
    return f", decay {weight_decay:g}" if weight_decay else ""


def _flat(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields of a dict in a field as "method.c"."""
    flat = {}
    for name, value in fields.items():
        inner = value if isinstance(value, dict) else {"": value}
        flat |= {f"{name}.{key}".rstrip("."): inner[key] for key in inner}
    return flat


def _make(cls: type, values: dict[str, Any]) -> Any:
    known = {field.name for field in dataclasses.fields(cls)}
    if not values.keys() <= known:
        raise ValueError(
            f"{cls.__name__} must have no fields but {sorted(known)}, got "
            f"{sorted(values)}"
        )
    return cls(**values)


def _check_fields(of: Any) -> None:
    """Raises unless values, perhaps from a JSON file, are of their fields' types."""
    for field in dataclasses.fields(of):
        value = getattr(of, field.name)
        if get_origin(field.type) is Literal:
            if value not in (choices := get_args(field.type)):
                raise ValueError(
                    f"{field.name} must be one of {', '.join(choices)}, got {value!r}"
                )
            continue
        types = int | float if field.type is float else field.type
        if not isinstance(value, types) or isinstance(value, bool):
            name = getattr(field.type, "__name__", field.type)
            raise TypeError(f"{field.name} must be {name}, got {value!r}")


def _check(of: Any, name: str, rule: str, holds) -> None:
    if not holds(getattr(of, name)):
        raise ValueError(f"{name} must be {rule}, got {getattr(of, name)}")


def _check_decay(method: "Momentum | Adam | Grda | Target") -> None:
    _check(
        method, "weight_decay", ">= 0 and finite", lambda decay: 0 <= decay < math.inf
    )
