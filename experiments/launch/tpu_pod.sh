#!/usr/bin/env bash
# Trains ResNet-50 on all hosts of a TPU pod slice:
#     TPU=my-slice ZONE=us-central2-b DATA_DIR=/mnt/tfds OUTPUT=/mnt/shared/run \
#         experiments/launch/tpu_pod.sh
# The repository must lie in ~/optax_grda on every host, with .venv made there by
# `make .venv/.all` and JAX for TPUs installed into it: pip install 'jax[tpu]'.
set -euo pipefail

# The same command on every host: JAX asks the TPU's metadata for the other processes.
# OUTPUT is a directory that all hosts see, such as a mounted bucket or NFS.
gcloud compute tpus tpu-vm ssh "${TPU:?}" --zone "${ZONE:?}" --worker=all --command "
    cd optax_grda && .venv/bin/python -m experiments.train imagenet-resnet50 \
        --dtype bfloat16 --data-dir '${DATA_DIR:?}' --output '${OUTPUT:?}' \
        --checkpoint-every 1 --resume
"
