"""Ways to train sparse, side by side: accuracy and loss at the same zeros and budget.

    python -m experiments.arena digits-mlp
    python -m experiments.arena cifar10-small-cnn --cifar10 cifar10.npz --minutes 60
    python -m experiments.arena text-64x2 --sparsity 0.5 0.8 0.9 0.95
    python -m experiments.arena digits-mlp --output runs/arena --resume

Every method trains every network with the same inputs, epochs, batches and schedule;
those of Adam train text, the others images. Each chooses its learning rate, of five, on
inputs held out of the training inputs; then
it trains with each seed at each sparsity of the kernels, and is tested. Writes
arena.json after every step, figures at the end, and prints a table. The report takes
its directory.
"""

import dataclasses
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from experiments import analyses
from experiments.command_line import did_you_mean, run_command
from experiments.training.errors import UserError

if TYPE_CHECKING:
    from experiments.arena.contest import Group
    from experiments.training.data import Dataset


@dataclasses.dataclass(frozen=True)
class Options:
    """Trains networks with all methods."""

    networks: Annotated[tuple[str, ...], tyro.conf.Positional] = ("digits-mlp",)
    """digits-mlp, digits-mlp-trained, digits-wrn10x1, cifar10-mlp, cifar10-small-cnn,
    cifar10-vgg16bn, text-64x2. A trained one is trained densely first, and then made
    sparse."""
    methods: tuple[str, ...] = ()
    """Names of methods; by default all that train the network. The dense twin, with
    momentum or of Adam, always runs."""
    sparsity: tuple[float, ...] = (0.8, 0.9, 0.95, 0.98)
    """Fractions of the kernels' weights to make zero."""
    seeds: int = 5
    """Runs of each, with seeds 0, 1, ..."""
    tuning_seeds: int = 3
    """Runs of each learning rate, on held-out images."""
    minutes: float | None = None
    """Begin nothing that would not end within that time."""
    cifar10: Path | None = None
    """An .npz file of CIFAR-10; by default it comes from TFDS."""
    data_dir: Path | None = None
    """Where TFDS keeps its data sets; by default TFDS's own choice."""
    output: Path | None = None
    """Directory of the results; by default a new one under runs/."""
    resume: bool = False
    """Go on in output with what is missing there; networks, methods, sparsities and
    seeds may be others than before."""

    def __post_init__(self):
        if self.seeds < 1 or self.tuning_seeds < 1:
            raise ValueError(
                "seeds and tuning_seeds must be >= 1, got "
                f"{self.seeds} and {self.tuning_seeds}"
            )
        if not self.sparsity or not all(0 < s < 1 for s in self.sparsity):
            raise ValueError(f"sparsity must be in (0, 1), got {self.sparsity}")
        if self.resume and self.output is None:
            raise ValueError("output must be given with resume")


def main(options: Options) -> Path:
    """Runs what is missing, and shows all that is there; returns the directory."""
    from experiments.arena import contest
    from experiments.arena.methods import METHODS
    from experiments.arena.networks import NETWORKS, for_validation, load
    from experiments.training.directory import environment, lock, progress_bar

    _check_names("networks", options.networks, NETWORKS)
    _check_names("methods", options.methods, METHODS)
    whole = {
        name: load(NETWORKS[name], options.cifar10, options.data_dir)
        for name in options.networks
    }
    held_out = {name: for_validation(dataset) for name, dataset in whole.items()}
    directory, found = _open(options)
    found["environment"] = environment()
    plan = contest.Plan(options.sparsity, options.seeds, options.tuning_seeds)
    deadline = time.monotonic() + 60 * (options.minutes or float("inf"))
    pairs = [
        (network, method)
        for network in options.networks
        for method in contest.names(options.methods, NETWORKS[network].direction)
    ]
    with lock(directory), progress_bar(len(pairs), "arena", unit="method") as bar:
        for network, method in pairs:
            bar.set_postfix_str(f"{network} {method}")
            while group := contest.missing(found["rows"], network, method, plan):
                datasets = held_out if group.phase == "tuning" else whole
                if not _train(group, datasets[network], found, directory, deadline):
                    break
            if group is not None:  # time is up
                break
            bar.update()
    if not contest.of_test(found["rows"]):
        raise UserError(f"minutes must let a method end, got {options.minutes}")
    analyses.show("arena", analyses.read("arena", [directory]), directory)
    return directory


def _open(options: Options) -> tuple[Path, dict[str, Any]]:
    """The directory, and what is in its arena.json, or will be."""
    from experiments.training.directory import new_directory, read_json

    found = {"options": {}, "rows": []}
    if options.resume and (options.output / "arena.json").exists():
        return options.output, read_json(options.output / "arena.json")
    return new_directory(options.output, "arena"), found


def _train(
    group: "Group",
    dataset: "Dataset",
    found: dict[str, Any],
    directory: Path,
    deadline: float,
) -> bool:
    """Trains as many runs of a group as train together, and saves their rows.

    Returns:
      False if they would not end before the deadline, and were not begun.
    """
    from experiments.arena.methods import METHODS
    from experiments.arena.networks import NETWORKS
    from experiments.arena.runs import together, train
    from experiments.training.directory import write_json

    rows, network = found["rows"], NETWORKS[group.network]
    settings = group.settings[: together(network, dataset)]
    like = [r["seconds"] for r in rows if r["network"] == group.network]
    expected = len(settings) * max(like, default=0.0)
    if time.monotonic() + expected > deadline:
        return False
    named = {
        "model": network.model,
        "dataset": network.dataset,
        "network": group.network,
        "method": group.method,
        "phase": group.phase,
    }
    trained = train(network, METHODS[group.method], dataset, settings)
    rows += [
        named | setting._asdict() | row
        for setting, row in zip(settings, trained, strict=True)
    ]
    write_json(directory / "arena.json", found)
    return True


def _check_names(field: str, names: Iterable[str], known: Iterable[str]) -> None:
    for name in names:
        if name not in known:
            raise UserError(
                f"{field} must be among {', '.join(known)}: got {name!r}."
                f"{did_you_mean(name, known)}"
            )


if __name__ == "__main__":
    run_command(main, Options, __doc__)
