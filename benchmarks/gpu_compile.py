"""
Compile the Triton kernels of TTT-Linear for devices that are not here, and look at the machine code.

Every kernel of a forward and a backward pass is compiled for every device, precision, head width and mini-batch. What
it takes is read from the code that comes out. A kernel fails that multiplies without tensor cores, that spills
registers, or that needs more shared memory than a block of the device may have. Triton brings the assembler and the
disassembler; no GPU is needed. Example: `python benchmarks/gpu_compile.py --devices 90 --widths 64 --sizes 16`.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from scfusion_fm.model import ttt_linear, ttt_linear_triton
from scfusion_fm.model.ttt_linear import TTTNorm, TTTState, ttt_linear_packed

# Shared memory that one block may have, by compute capability: CUDA C++ Programming Guide, table of technical
# specifications, maximum amount of shared memory per thread block.
SHARED_BYTES = {75: 64 * 2**10, 80: 163 * 2**10, 90: 227 * 2**10, 100: 227 * 2**10, 120: 99 * 2**10}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
TENSOR_CORES = re.compile(r"\b(?:HMMA|HGMMA|UTCHMMA|QGMMA)\b")  # mma, wgmma and tcgen05
SPILLS = re.compile(r"\b(?:LDL|STL)\b")


class Kernel(NamedTuple):
    """What one compiled kernel takes; `spills` and `tensor_cores` count instructions."""

    device: int
    dtype: str
    width: int
    size: int
    name: str
    warps: int
    registers: int
    shared: int
    spills: int
    tensor_cores: int

    def faults(self) -> list[str]:
        """Say why this kernel should not be used."""
        found = []
        if self.tensor_cores == 0:
            found.append("no tensor cores")
        if self.spills:
            found.append(f"spills ({self.spills})")
        if self.shared > SHARED_BYTES[self.device]:
            found.append(f"shared memory ({self.shared} bytes)")
        return found


def name_device(capability: int) -> None:
    """Let Triton believe that a device is there, by a driver that can do nothing but name it."""
    target = GPUTarget("cuda", capability, 32)
    answers = {"get_current_target.return_value": target, "get_current_device.return_value": capability}
    driver.set_active(mock.Mock(**answers))


class WarmUp:
    """Takes the launches of a kernel and compiles it for each; a launch like an earlier one changes nothing."""

    def __init__(self, name: str, kernel: object, found: dict):
        self.name, self.kernel, self.found = name, kernel, found

    def __getitem__(self, grid):
        def launch(*arguments, **options):
            compiled = self.kernel.warmup(*arguments, grid=grid, **options)
            self.found[self.name, compiled.hash] = compiled

        return launch


def compile_shape(capability: int, dtype: torch.dtype, width: int, size: int) -> list[tuple[str, object]]:
    """Compile what a forward and a backward pass launch on a device, with their names."""
    name_device(capability)
    kernels, found = ttt_linear_triton.load_kernels(), {}
    wrapped = {name: WarmUp(name, x, found) if hasattr(x, "warmup") else x for name, x in vars(kernels).items()}
    heads, cells = 2, 2
    qkv = torch.zeros(cells, 2 * size, 3, heads, width, dtype=dtype, requires_grad=True)
    rotation = torch.zeros(2, size, width // 2)
    rates, scale = torch.zeros(cells, 2 * size, heads), torch.zeros(size)
    state = TTTState(torch.zeros(cells, heads, width, width), torch.zeros(cells, heads, 1, width))
    norm = TTTNorm(torch.zeros(heads, 1, width), torch.zeros(heads, 1, width), 1e-6)
    with (
        mock.patch.object(ttt_linear_triton, "load_kernels", return_value=type(kernels)(**wrapped)),
        mock.patch.object(ttt_linear, "reads_on_device", return_value=True),
    ):
        out, _ = ttt_linear_packed(qkv, rates, scale, state, norm, rotation)
        out.sum().backward()
    return [(name, compiled) for (name, _), compiled in found.items()]


def run_tool(tool: str, *arguments: str) -> str:
    """Run a tool of Triton's."""
    return subprocess.run([TOOLS / tool, *arguments], check=True, capture_output=True, text=True).stdout


def read_code(cubin: bytes) -> tuple[str, int]:
    """Give the machine code of a kernel, and how many registers it takes."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = run_tool("cuobjdump", "-res-usage", file.name)
        return run_tool("nvdisasm", "-c", file.name), int(re.search(r"REG:(\d+)", usage)[1])


def measure_kernels(capability: int, dtype: str, width: int, size: int) -> Iterator[Kernel]:
    """Compile the kernels of one shape, and say what each takes."""
    for name, compiled in compile_shape(capability, DTYPES[dtype], width, size):
        code, registers = read_code(compiled.asm["cubin"])
        counts = (len(pattern.findall(code)) for pattern in (SPILLS, TENSOR_CORES))
        facts = (compiled.metadata.num_warps, registers, compiled.metadata.shared, *counts)
        yield Kernel(capability, dtype, width, size, name, *facts)


def main() -> None:
    """Compile, print a table, and end with 1 if a kernel has a fault."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--devices", type=int, nargs="+", default=[80, 90, 100], choices=SHARED_BYTES)
    parser.add_argument("--dtypes", nargs="+", default=[*DTYPES], choices=DTYPES)
    parser.add_argument("--widths", type=int, nargs="+", help="of heads; all that fit when not given")
    parser.add_argument("--sizes", type=int, nargs="+", help="of mini-batches; all that fit when not given")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the numbers here")
    arguments = parser.parse_args()
    print("| device | dtype | head width | mini-batch | kernel | warps | registers | shared | tensor cores | faults |")
    print("|---:|---|---:|---:|---|---:|---:|---:|---:|---|")
    found, shapes = [], ttt_linear_triton.WARPS
    shapes = [x for x in shapes if x[0] in (arguments.widths or x) and x[1] in (arguments.sizes or x)]
    for device in arguments.devices:
        for dtype in arguments.dtypes:
            for shape in shapes:
                for x in measure_kernels(device, dtype, *shape):
                    found.append(x)
                    row = (*x[:-2], x.tensor_cores, ", ".join(x.faults()))
                    print("|", " | ".join(map(str, row)), "|", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps([x._asdict() for x in found], indent=2) + "\n")
    sys.exit(any(x.faults() for x in found))


if __name__ == "__main__":
    main()
