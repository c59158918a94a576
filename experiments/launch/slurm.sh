#!/usr/bin/env bash
# Trains ResNet-50 on four hosts with eight GPUs each: sbatch experiments/launch/slurm.sh
#SBATCH --job-name=optax-grda
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1         # one process a host; it drives all GPUs of the host
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64          # decoding images needs many: see --workers
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120           # two minutes before the end: save a checkpoint
#SBATCH --requeue
set -euo pipefail

# Inside srun, JAX finds the other processes by itself. Exit code 75 means that a signal
# stopped the run after it saved; with --resume, the same command goes on from there.
code=0
srun .venv/bin/python -m experiments.train imagenet-resnet50 \
    --dtype bfloat16 \
    --data-dir "${DATA_DIR:?where TFDS keeps imagenet2012}" \
    --output "${OUTPUT:?run directory, seen by all hosts}" \
    --checkpoint-every 1 --resume --workers 60 || code=$?
if [ "$code" -eq 75 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
