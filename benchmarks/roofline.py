"""How much of a device a program uses: its floating-point work, and its memory's speed.

    utilisation = FLOPs / seconds / peak FLOP/s
    seconds    >= max(FLOPs / peak FLOP/s, bytes / peak bytes/s)         (the roofline)

FLOPs are those of the program as it is written: the same for every device, products
with a convolution's padding left out. Bytes are those that the compiled program's
operations read and write, as its compiler counts them; a cache may hold some of them.
"""

from typing import NamedTuple

import jax


class Peak(NamedTuple):
    """What a device does at most, in units of one a second."""

    tflops: float  # 1e12 floating-point operations in products of bfloat16
    gigabytes: float  # 1e9 bytes of its memory read or written


# By jax.Device.device_kind. From NVIDIA's data sheets, dense, SXM where there are
# others; and from the pages on system architecture of Google's Cloud TPU.
PEAKS = {
    "NVIDIA H200": Peak(989, 4800),
    "NVIDIA H100 80GB HBM3": Peak(989, 3350),
    "NVIDIA A100-SXM4-80GB": Peak(312, 2039),
    "NVIDIA A100-SXM4-40GB": Peak(312, 1555),
    "TPU v4": Peak(275, 1200),
    "TPU v5 lite": Peak(197, 819),
    "TPU v6 lite": Peak(918, 1640),
}


class Work(NamedTuple):
    """What one call of a program takes."""

    flops: float
    bytes: float

    def utilisation(self, seconds: float, peak: Peak) -> float:
        """The fraction of the peak's floating-point operations that it did."""
        return self.flops / seconds / (1e12 * peak.tflops)

    def bound(self, peak: Peak) -> float:
        """The fewest seconds that it can take."""
        return max(
            self.flops / (1e12 * peak.tflops), self.bytes / (1e9 * peak.gigabytes)
        )


def work(program: jax.stages.Lowered, compiled: jax.stages.Compiled) -> Work:
    """The work of a program, lowered and compiled. Its loops count once."""
    written, run = program.cost_analysis(), compiled.cost_analysis()
    return Work(written["flops"], run["bytes accessed"])


def known_peak(dtype: str) -> Peak | None:
    """That of the default device in products of a dtype, if it stands in the table."""
    return PEAKS.get(jax.devices()[0].device_kind) if dtype == "bfloat16" else None
