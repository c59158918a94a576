"""Directional pruning by its definition, beside the usual rules and gRDA.

    python -m experiments.prune RUN [RUN ...] [--output DIRECTORY]

For every run of gRDA and its SGD twin: SGD's solution is pruned in one shot, without
retraining, by directional pruning's definition, by magnitude, and by Optimal Brain
Damage; and gRDA's displacement from SGD is compared with that of the definition, after
every epoch of which both have a checkpoint. Writes prune.json and figures/ to a
directory.
"""

from experiments import analyses
from experiments.analyses.options import Prune
from experiments.command_line import run_command

if __name__ == "__main__":
    run_command(analyses.run, Prune, __doc__)
