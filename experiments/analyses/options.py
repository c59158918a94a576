"""What each analysis may be asked: the flags of its command."""

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro


@dataclasses.dataclass(frozen=True, kw_only=True)
class Places:
    """Where an analysis reads and writes, which does not change what it finds."""

    name: ClassVar[str]  # of the analysis

    data_dir: Path | None = None
    """Where TFDS keeps its data sets; by default TFDS's own choice."""
    output: Path | None = None
    """Directory of the results; by default a new one under runs/."""

    def asked(self) -> dict[str, Any]:
        """The options that change what is found."""
        places = {"runs", "run", "dense", "data_dir", "output"}
        fields = dataclasses.asdict(self)
        return {name: fields[name] for name in fields if name not in places}

    def check(self, name: str, rule: str, holds: object) -> None:
        """Raises ValueError, that the option must be as the rule says, unless it is."""
        if not holds:
            raise ValueError(f"{name} must be {rule}, got {getattr(self, name)}")


@dataclasses.dataclass(frozen=True)
class OfRuns(Places):
    """What all analyses of finished runs are asked."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run directories, or directories of them."""


@dataclasses.dataclass(frozen=True)
class Connect(OfRuns):
    """Walks between the solutions of SGD and of gRDA."""

    name: ClassVar[str] = "connect"

    epochs: int = 60
    """Epochs that the bend is trained. The authors: 300 for VGG16, 200 for WRN."""
    learning_rate: float = 0.1
    """Of the bend; it falls as in the CIFAR runs."""
    optimizer: Literal["momentum", "sgd"] = "momentum"
    """Of the bend's training. The authors: momentum 0.9 for VGG16, SGD for WRN."""
    points: int = 61
    """Points along curve and line."""
    grid: int = 29
    """Points along each axis of the plane; 0 leaves it out."""

    def __post_init__(self):
        self.check("epochs", ">= 1", self.epochs >= 1)
        rate = self.learning_rate
        self.check("learning_rate", "> 0 and finite", 0 < rate < math.inf)
        self.check("points", ">= 2", self.points >= 2)
        self.check("grid", "0 or at least 2", self.grid == 0 or self.grid >= 2)


@dataclasses.dataclass(frozen=True)
class Project(OfRuns):
    """Projects gRDA's displacement on SGD's top eigenspace."""

    name: ClassVar[str] = "project"

    k: int = 10
    """Eigenpairs."""

    def __post_init__(self):
        self.check("k", ">= 1", self.k >= 1)


@dataclasses.dataclass(frozen=True)
class Prune(OfRuns):
    """Prunes SGD's solution by directional pruning's definition, and by other rules."""

    name: ClassVar[str] = "prune"

    sparsities: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
    """Fractions of weights to prune, besides that of gRDA."""
    cutoffs: tuple[float, ...] = (1e-3, 1e-4, 1e-5)
    """Curvatures that count as half flat; agreement is measured at the middle one."""
    products: int = 100
    """Products with the Gauss-Newton matrix for one set of scores, at most."""

    def __post_init__(self):
        self.check("sparsities", "in (0, 1)", all(0 < s < 1 for s in self.sparsities))
        self.check(
            "cutoffs", "values > 0", self.cutoffs and all(x > 0 for x in self.cutoffs)
        )
        self.check("products", ">= 1", self.products >= 1)


@dataclasses.dataclass(frozen=True)
class Card(Places):
    """Measures what a sparse network saves."""

    name: ClassVar[str] = "card"

    run: Annotated[Path, tyro.conf.Positional]
    """A run directory, or a packed file: python -m optax_grda.packing packs others."""
    dense: Path | None = None
    """The run directory or file of a dense network to compare with."""
    network: str | None = None
    """Of a file: the name of its network."""
    dataset: str | None = None
    """Of a file: the data set whose images test it; a name, or the path of an .npz."""
    rounds: int = 200
    """Times that every latency is measured."""

    def __post_init__(self):
        self.check("rounds", ">= 1", self.rounds >= 1)


@dataclasses.dataclass(frozen=True)
class Units(Places):
    """Trains by single weights and by whole units, and cuts dead units out."""

    name: ClassVar[str] = "units"

    preset: Literal[
        "digits-mlp", "mnist-mlp", "digits-wrn10x1", "cifar10-small-cnn"
    ] = "digits-mlp"
    """What to train, on which data; with momentum, at a rate that falls to 0."""
    dataset: str | None = None
    """In place of the preset's: the path of an .npz file of such images."""
    sparsities: tuple[float, ...] = (0.5, 0.7, 0.8)
    """Fractions of weights to make zero."""
    seeds: int = 3
    """Runs of each, with seeds 0, 1, ..."""
    learning_rate: float | None = None
    """Of all runs, with momentum 0.9; by default the preset's."""
    epochs: int | None = None
    """Epochs of each run; by default the preset's."""

    def __post_init__(self):
        holds = self.sparsities and all(0 < s < 1 for s in self.sparsities)
        self.check("sparsities", "values in (0, 1)", holds)
        self.check("seeds", ">= 1", self.seeds >= 1)
        rate = self.learning_rate
        holds = rate is None or 0 < rate < math.inf
        self.check("learning_rate", "> 0 and finite", holds)
        self.check("epochs", ">= 1", self.epochs is None or self.epochs >= 1)
