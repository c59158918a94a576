"""Draws vgg16-h200.png, training curves of VGG16 beside the authors' means.

    python docs/images/vgg16_h200.py

From benchmarks/results/vgg16-h200.json, which says where both come from.
"""

import json
from pathlib import Path

import matplotlib.pyplot as plt

HERE = Path(__file__).parent
FOUND = HERE.parents[1] / "benchmarks" / "results" / "vgg16-h200.json"
METHODS = {"sgd": ("SGD", "tab:blue"), "grda": ("gRDA", "tab:red")}


def main() -> None:
    """Draws accuracy, zeros and loss against epochs."""
    found = json.loads(FOUND.read_text())
    figure, (accuracy, zeros, loss) = plt.subplots(
        1, 3, figsize=(10, 3.4), layout="constrained"
    )
    for name, (label, color) in METHODS.items():
        ours = columns(found["runs"][name]["rows"])
        theirs = columns(found["authors"]["runs"][name])
        accuracy.plot(
            ours["epoch"], percent(ours["test_accuracy"]), color=color, label=label
        )
        points = {"color": color, "fmt": "o", "ms": 4, "capsize": 3}
        accuracy.errorbar(
            theirs["epoch"],
            percent(theirs["test_accuracy"]),
            percent(theirs["test_accuracy_std"]),
            label=f"{label}, authors",
            **points,
        )
        zeros.plot(ours["epoch"], percent(ours["sparsity"]), color=color)
        zeros.errorbar(theirs["epoch"], percent(theirs["sparsity"]), **points)
        loss.plot(ours["epoch"], ours["train_loss_running"], color=color)
        loss.errorbar(theirs["epoch"], theirs["train_loss"], **points)
    accuracy.set(title="test accuracy, %", ylim=(80, 92))
    accuracy.legend(loc="lower right")
    zeros.set(title="zeros, %", ylim=(-3, 100))
    loss.set(title="running training loss", yscale="log")
    for axis in (accuracy, zeros, loss):
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.3)
    figure.savefig(HERE / "vgg16-h200.png", dpi=120)


def columns(rows: list[dict[str, float]]) -> dict[str, list[float]]:
    """Rows of numbers as a list a name."""
    return {name: [row[name] for row in rows] for name in rows[-1]}


def percent(fractions: list[float]) -> list[float]:
    """Fractions in percent."""
    return [100 * fraction for fraction in fractions]


if __name__ == "__main__":
    main()
