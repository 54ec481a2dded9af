"""
Estimate by operations and bytes how long the kernels of TTT-Linear take; nothing here is measured.

Of each kernel the bytes that it must move and the operations of its products are counted. It takes at least the longer
of what both take at a share of the figures of the data sheet; a scan takes besides as many steps one after the other as
there are mini-batches, and a step of it is assumed to take `STEP_S`. The assumptions stand on top of this file.
Attention is counted at its operations. Example: `python benchmarks/gpu_estimate.py --device H100`.
"""

import argparse
from typing import NamedTuple

from scfusion_fm.model.ttt_linear_triton import EVERY

STEP_S = {"scan": 1.2e-6, "scan_backward": 1.8e-6}  # two products, one after the other, and the norm between them
LAUNCH_S = 4e-6
SHARE_OF_BANDWIDTH, SHARE_OF_SMALL_PRODUCTS, SHARE_OF_ATTENTION = 0.75, 0.25, 0.5


class Device(NamedTuple):
    """Of a data sheet: bytes and dense operations per second, and processors."""

    bandwidth: float
    bfloat16: float
    tf32: float
    processors: int

    def operations(self, dtype: str) -> float:
        """Give the operations per second; float32 is multiplied in three passes of tf32."""
        return self.bfloat16 if dtype == "bfloat16" else self.tf32 / 3


DEVICES = {
    "A100": Device(2.0e12, 312e12, 156e12, 108),
    "H100": Device(3.35e12, 989e12, 495e12, 132),
    "B200": Device(8.0e12, 2_250e12, 1_125e12, 148),
}


class Work(NamedTuple):
    """What a kernel does for one mini-batch of one head of one cell."""

    bytes: float
    operations: float
    serial: bool = False


def count_work(width: int, size: int, item: int) -> dict[str, Work]:
    """Count the work of each kernel; `item` is the bytes of a number of the projections."""
    tokens, floats, state = size * width * item, size * width * 4, width * width * item
    wide, square = 2 * size * width**2, 2 * size**2 * width  # products with a state, and among tokens
    return {
        "scan": Work(2 * tokens + state + 4 * width**2 / EVERY, 2 * wide, True),
        "read": Work(4 * tokens + state, 2 * wide + 2 * square),
        "scan again": Work(2 * tokens + state, 2 * wide),
        "reads_backward": Work(4 * tokens + state + 3 * tokens + 3 * floats, 2 * wide + 3 * square),
        "scan_backward": Work(3 * tokens + 3 * floats + state, 3 * wide, True),
        "projections_backward": Work(8 * tokens + 3 * floats + 2 * state, 4 * wide + 4 * square),
    }


def estimate_layer(device: Device, shape: tuple[int, int, int, int], size: int, dtype: str) -> dict[str, float]:
    """Estimate the seconds of each kernel of a forward and backward pass; shape as cells, tokens, heads, head width."""
    cells, length, heads, width = shape
    number, rows = length // size, cells * heads
    times = {}
    for name, work in count_work(width, size, 2 if dtype == "bfloat16" else 4).items():
        moved = work.bytes * number * rows / (device.bandwidth * SHARE_OF_BANDWIDTH)
        done = work.operations * number * rows / (device.operations(dtype) * SHARE_OF_SMALL_PRODUCTS)
        times[name] = max(moved, done) + LAUNCH_S
        if work.serial:
            waves = -(-rows // (2 * device.processors))  # two programs for a processor
            times[name] = max(times[name], waves * number * STEP_S[name]) + LAUNCH_S
    return times


def estimate_attention(device: Device, shape: tuple[int, int, int, int], dtype: str) -> float:
    """Estimate the seconds of causal flash attention, forward and backward; float32 runs without tensor cores."""
    cells, length, heads, width = shape
    operations = 3.5 * 4 * cells * heads * length**2 * width / 2
    peak = device.operations(dtype) if dtype == "bfloat16" else device.bfloat16 / 16
    return operations / (peak * SHARE_OF_ATTENTION) + 3 * LAUNCH_S


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", choices=DEVICES, default="H100")
    parser.add_argument("--size", type=int, default=16, help="mini-batch")
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--width", type=int, default=64, help="of a head")
    arguments = parser.parse_args()
    device, shapes = DEVICES[arguments.device], [(16, n) for n in (400, 1_024, 1_632, 4_096, 16_384)] + [(8, 1_024)]
    print(f"Predicted for {arguments.device}, forward and backward without projections, ms. Nothing was measured.\n")
    print("| dtype | tokens | TTT | of it scans | attention | TTT / attention |\n|---|---:|---:|---:|---:|---:|")
    for dtype in ("bfloat16", "float32"):
        for cells, length in shapes:
            shape = (cells, length, arguments.heads, arguments.width)
            times = estimate_layer(device, shape, arguments.size, dtype)
            total, rival = sum(times.values()), estimate_attention(device, shape, dtype)
            scans = times["scan"] + times["scan_backward"]
            numbers = (f"{1e3 * x:.2f}" for x in (total, scans, rival))
            print(f"| {dtype} | {cells} x {length:,} |", " | ".join((*numbers, f"{total / rival:.1f}")), "|")


if __name__ == "__main__":
    main()
