"""One table for a person: what the zeros of a network are good for, on this machine.

    python -m experiments.card RUN [RUN ...] [--output DIRECTORY]

For a run of gRDA (the first among the directories) and its SGD twin: test accuracy,
sizes, multiply-adds and latency of the dense network, the sparse one, and that without
the units that cannot matter, in JAX and in ONNX Runtime. Writes card.json and the
networks themselves, packed safetensors and ONNX files, to a directory.
"""

from experiments import analyses
from experiments.analyses.options import Card
from experiments.command_line import run_command

if __name__ == "__main__":
    run_command(analyses.run, Card, __doc__)
