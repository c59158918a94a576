"""The rows of the paper, each a configuration: `python -m experiments.train NAME`.

Every family of rows has an SGD twin, NAME-sgd, that starts from the same initial
weights (the same seed). A family's name alone stands for its headline row. What to
expect: accuracy on test images and fraction of weights exactly zero at the end, mean +-
standard deviation of the authors' ten runs unless said otherwise. Hardware and time
are theirs as well; what this project measured stands in benchmarks/results/.

cifar10-vgg16: VGG16 without BatchNorm, 600 epochs, c = 0.0005. Authors: 10 to 16 s an
epoch on one GPU, about 2.5 h a run.

    row       top-1 %           zero %
    sgd       90.82 +- 0.18      0
    mu0.4     90.87 +- 0.21     24.45 +- 0.08
    mu0.51    91.02 +- 0.15     61.41 +- 0.13
    mu0.6     90.86 +- 0.26     90.48 +- 0.17    (headline)
    mu0.7     90.64 +- 0.24     97.22 +- 0.08    (9 runs; the tenth became NaN)

Measured here (one H200, bfloat16, CIFAR-10 as a JPEG q95 copy, seed 0, one run each,
2026-11-27; benchmarks/results/vgg16-h200.md): 5.0 and 5.4 minutes.

    sgd       90.61              0
    mu0.6     90.71             90.06

cifar10-wrn28x10: WideResNet-28-10, 200 epochs, c = 0.001. Authors: 88 to 124 s an epoch
on most of their GPUs, about 5.5 h a run.

    sgd       94.17 +- 0.12      0
    mu0.4     94.25 +- 0.11     62.19 +- 0.02    (4 runs)
    mu0.501   94.46 +- 0.13     90.17 +- 0.03    (headline)
    mu0.55    94.43 +- 0.08     94.74 +- 0.04
    mu0.6     94.50 +- 0.18     97.07 +- 0.02
    mu0.65    94.53 +- 0.12     98.29 +- 0.01

cifar100-wrn28x10: the same network on CIFAR-100. Authors: 89 to 152 s an epoch.

    sgd       76.53 +- 0.18      0
    mu0.501   76.92 +- 0.20     82.69 +- 0.10
    mu0.55    77.00 +- 0.18     90.20 +- 0.05    (headline)
    mu0.6     77.00 +- 0.38     94.20 +- 0.07
    mu0.65    76.85 +- 0.21     96.30 +- 0.02

imagenet-resnet50: ResNet-50, batch 256, one run each, accuracy of the best epoch on the
validation images. The authors' hardware and times are not known. At a constant learning
rate (147 epochs plotted), with one drop to a tenth after 140 epochs (-step140), and
divided by 10 every 30 epochs (-step30):

    sgd                     68.71    0
    c0.01-mu0.4             70.59   79.46
    c0.005-mu0.501          70.60   86.04    (headline)
    c0.005-mu0.51           70.35   87.39
    c0.005-mu0.55           69.76   91.54
    step140-c0.01-mu0.4     72.75   79.69
    step140-c0.005-mu0.501  73.13   86.09
    step140-c0.005-mu0.51   73.14   87.28
    step140-c0.005-mu0.55   73.24   91.59
    step140-c0.005-mu0.6    72.16   94.98
    step140-c0.005-mu0.65   70.04   97.10
    step140-c0.005-mu0.7    65.51   98.17
    step30-c0.004-mu0.65    68.06   96.36
    step30-c0.003-mu0.7     67.28   96.87
    step30-c0.002-mu0.75    67.23   97.06
    step30-c0.005-mu0.65    66.46   97.05
    step30-c0.004-mu0.7     65.17   97.69
    step30-c0.003-mu0.75    63.76   98.10
    step30-c0.005-mu0.7     62.60   98.26
    step30-c0.004-mu0.75    60.12   98.62
    step30-c0.005-mu0.75    56.15   98.99
    step30-c0.005-mu0.8     43.47   99.51
    step30-c0.005-mu0.85    22.69   99.84

cifar10-keras-cnn: Keras's example network, batch 10, learning rate 0.005, c = 0.005,
100 epochs; values read off the authors' chart, one run, about +- 0.5.

    sgd       80.8     0
    mu0.3     81.2     3.9
    mu0.51    82.3    19.1
    mu0.7     82.0    69.8    (headline)
    mu1.0     74.1    97.7

mnist-mlp: 784-512-10, batch 128, learning rate 0.005, 150 epochs; read off the authors'
chart. The chart's c is not recorded: 0.013 fits its sparsity.

    sgd       96.2     0      (epoch 100)
    mu0.3     96.9     8.0
    mu0.51    96.5    27.6
    mu0.7     95.1    81.2    (headline)

cifar10-small-cnn: ours, Keras's network at a quarter of its widths and an eighth of its
hidden layer, without dropout, 41,874 parameters: an epoch in under a minute on two
cores of a CPU.

digits-wrn10x1: ours, WideResNet-10-1 on scikit-learn's digits, 77,898 parameters, 30
epochs: minutes on a CPU.

digits-mlp: ours, 64-128-64-10 on scikit-learn's digits, 60 epochs, seconds on a CPU.
The README has what `make demo` measured.

text-64x2, text-128x4, text-384x6: ours, transformers of that width and so many blocks
on the sources of Python's standard library, byte by byte: 80 % of the weights of their
kernels become zero behind Adam. NAME-adam are their dense twins. The first two take
minutes on a CPU, the third wants a GPU.
"""

import dataclasses
from pathlib import Path

from experiments.training.config import Config, Grda, Sgd, Target, dense_twin


def _family(
    name: str, base: Config, c: float, mus: tuple[float, ...], headline: float
) -> dict[str, Config]:
    """The rows of one family, by name: its headline, its SGD twin, and one a mu."""
    rows = {
        f"{name}-mu{mu}": dataclasses.replace(base, method=Grda(c, mu)) for mu in mus
    }
    return {
        name: rows[f"{name}-mu{headline}"],
        f"{name}-sgd": dataclasses.replace(base, method=Sgd()),
        **rows,
    }


_VGG16 = Config(
    model="vgg16",
    dataset="cifar10",
    augmentation="flip-crop",
    schedule="garipov",
    epochs=600,
    batch_size=128,
)
_WRN = Config(
    model="wrn28x10",
    dataset="cifar10",
    augmentation="crop-flip",
    schedule="garipov",
    epochs=200,
    batch_size=128,
)
_RESNET50 = Config(
    model="resnet50",
    dataset="imagenet2012",
    augmentation="none",  # the stream crops and flips
    method=Grda(0.005, 0.501),
    epochs=147,
    batch_size=256,
)
_KERAS_CNN = Config(
    model="keras-cnn",
    dataset="cifar10",
    learning_rate=0.005,
    epochs=100,
    batch_size=10,
)
_SMALL_CNN = Config(
    model="small-cnn",
    dataset="cifar10",
    learning_rate=0.05,
    epochs=10,
)
_MNIST_MLP = Config(
    model="mnist-mlp",
    dataset="mnist",
    learning_rate=0.005,
    epochs=150,
    batch_size=128,
)
_DIGITS_WRN = Config(model="digits-wrn10x1", method=Grda(0.02), epochs=30)

_TEXT = Config(
    model="transformer-64x2",
    dataset="python-stdlib",
    method=Target(
        0.8,
        proximal="power3",
        weight_decay=0.1,
        direction="adam",
        thresholds="kernels",
    ),
    learning_rate=6e-3,
    schedule="warmup-cosine",
    epochs=2,
)
_TEXTS = {
    "text-64x2": _TEXT,
    "text-128x4": dataclasses.replace(
        _TEXT, model="transformer-128x4", learning_rate=2e-3
    ),
    "text-384x6": dataclasses.replace(
        _TEXT, model="transformer-384x6", learning_rate=1e-3, epochs=8
    ),
}

_IMAGENET_ROWS = {
    ("", 147, "constant"): (
        *((0.01, 0.4), (0.005, 0.501), (0.005, 0.51), (0.005, 0.55)),
    ),
    ("step140-", 153, "step-141"): (
        *((0.01, 0.4), (0.005, 0.501), (0.005, 0.51), (0.005, 0.55), (0.005, 0.6)),
        *((0.005, 0.65), (0.005, 0.7)),
    ),
    ("step30-", 121, "step-30"): (
        *((0.002, 0.75), (0.003, 0.7), (0.003, 0.75), (0.004, 0.65), (0.004, 0.7)),
        *((0.004, 0.75), (0.005, 0.65), (0.005, 0.7), (0.005, 0.75), (0.005, 0.8)),
        (0.005, 0.85),
    ),
}

PRESETS: dict[str, Config] = {
    **_family("cifar10-vgg16", _VGG16, 0.0005, (0.4, 0.51, 0.6, 0.7), 0.6),
    **_family("cifar10-wrn28x10", _WRN, 0.001, (0.4, 0.501, 0.55, 0.6, 0.65), 0.501),
    **_family(
        "cifar100-wrn28x10",
        dataclasses.replace(_WRN, dataset="cifar100"),
        0.001,
        (0.501, 0.55, 0.6, 0.65),
        0.55,
    ),
    "imagenet-resnet50": _RESNET50,
    "imagenet-resnet50-sgd": dataclasses.replace(_RESNET50, method=Sgd()),
    **{
        f"imagenet-resnet50-{prefix}c{c}-mu{mu}": dataclasses.replace(
            _RESNET50, method=Grda(c, mu), epochs=epochs, schedule=schedule
        )
        for (prefix, epochs, schedule), rows in _IMAGENET_ROWS.items()
        for c, mu in rows
    },
    **_family("cifar10-keras-cnn", _KERAS_CNN, 0.005, (0.3, 0.51, 0.7, 1.0), 0.7),
    **_family("cifar10-small-cnn", _SMALL_CNN, 0.01, (0.6,), 0.6),
    **_family("mnist-mlp", _MNIST_MLP, 0.013, (0.3, 0.51, 0.7), 0.7),
    "digits-wrn10x1": _DIGITS_WRN,
    "digits-wrn10x1-sgd": dataclasses.replace(_DIGITS_WRN, method=Sgd()),
    "digits-mlp": Config(),
    "digits-mlp-sgd": Config(method=Sgd()),
    **_TEXTS,
    **{f"{name}-adam": dense_twin(config) for name, config in _TEXTS.items()},
}


def preset_of(config: Config) -> str | None:
    """The name of the preset whose protocol a configuration follows, if it does.

    Where the images come from, the seed and the dtype may be others.
    """
    dataset = Path(config.dataset).stem
    plain = dataclasses.replace(config, dataset=dataset, seed=0, dtype="float32")
    return next((name for name, preset in PRESETS.items() if preset == plain), None)
