"""Draws units.png: what is left of a WideResNet without whole units, and its time.

    python docs/images/units.py

From benchmarks/results/units-digits-wrn10x1.json, which says where it comes from.
"""

import json
from pathlib import Path

from experiments.analyses import units

HERE = Path(__file__).parent
FOUND = HERE.parents[1] / "benchmarks" / "results" / "units-digits-wrn10x1.json"

if __name__ == "__main__":
    figure = units.figure(json.loads(FOUND.read_text())["rows"])
    figure.savefig(HERE / "units.png", dpi=110, bbox_inches="tight")
