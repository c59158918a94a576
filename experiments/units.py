"""Whole units: how many can be cut out, and what the rest would be worth untrained.

    python -m experiments.units [--preset digits-wrn10x1] [--output DIRECTORY]

Trains a network with the dial at several sparsities, making single weights, whole
units, or both zero, and cuts out of every network the units that cannot matter. Two
controls: the same narrow networks trained from scratch, and a dense network whose
smallest units are pruned, and which is fine-tuned for as long. All are timed in ONNX
Runtime and MNN, where these are installed. Writes units.json and figures/ to a
directory.
"""

from experiments import analyses
from experiments.analyses.options import Units
from experiments.command_line import run_command

if __name__ == "__main__":
    run_command(analyses.run, Units, __doc__)
