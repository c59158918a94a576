"""What the zeros of a network are good for, on this machine: sizes and latencies.

    python -m experiments.card RUN [--dense RUN] [--output DIRECTORY]
    python -m experiments.card FILE --network vgg16 --dataset cifar10.npz

Of a run directory, or a packed file of a network's weights: test accuracy, sizes,
multiply-adds, and latency at batch 1 and 32 in JAX, ONNX Runtime and MNN; of the
network as it is, dense, and without the units that cannot matter. Writes card.json and
the networks themselves, packed, as ONNX and as MNN files, to a directory.
"""

from experiments import analyses
from experiments.analyses.options import Card
from experiments.command_line import run_command

if __name__ == "__main__":
    run_command(analyses.run, Card, __doc__)
