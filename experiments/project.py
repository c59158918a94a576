"""Whether gRDA left SGD's solution in flat directions only.

    python -m experiments.project RUN [RUN ...] [--output DIRECTORY]

For every run of gRDA and its SGD twin, after every epoch of which both have a
checkpoint: the k largest eigenpairs of the Hessian at SGD's weights, and the share of
|w_gRDA - w_SGD|^2 that lies in their space, beside the share a random direction has;
and |w|_2 / |w|_1 of both. Writes project.json and figures/ to a directory.
"""

from experiments import analyses
from experiments.analyses.options import Project
from experiments.command_line import run_command

if __name__ == "__main__":
    run_command(analyses.run, Project, __doc__)
