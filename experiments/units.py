"""Whole units: how many can be cut out, and what the rest would be worth untrained.

    python -m experiments.units [--c 0.02 0.05 0.08] [--output DIRECTORY]

Trains a multilayer perceptron with gRDA at several c, thresholding single weights,
whole units, or both, and cuts out of every network the units that cannot matter. As a
control, the same narrow architectures are trained from scratch with SGD. Writes
units.json and figures/ to a directory.
"""

from experiments import analyses
from experiments.analyses.options import Units
from experiments.command_line import run_command

if __name__ == "__main__":
    run_command(analyses.run, Units, __doc__)
