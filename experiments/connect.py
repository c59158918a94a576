"""Whether gRDA's solution lies in the valley of SGD's: the path between the two.

    python -m experiments.connect RUN [RUN ...] [--output DIRECTORY]

For every run of gRDA and its SGD twin among the run directories (one that `make demo`
wrote holds such pairs): a quadratic Bezier curve between the two solutions is trained,
and loss and error are taken along it, along the straight line, and on the plane through
the curve's three points. Writes connect.json and figures/ to a directory.
"""

from experiments import analyses
from experiments.analyses.options import Connect
from experiments.command_line import run_command

if __name__ == "__main__":
    run_command(analyses.run, Connect, __doc__)
