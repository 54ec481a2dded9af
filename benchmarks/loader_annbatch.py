"""
Read an atlas with annbatch, for `benchmarks/loader.py`; runs in an environment of its own, without torch.

annbatch needs Python 3.12. `--install DIR` makes the environment with the Python that runs this script. Otherwise the
script reads for some seconds and prints one line of JSON. RNA and protein come from two loaders with the same seed,
because annbatch yields one matrix; both are made dense in float32 like those of our loader, RNA by the same kernel.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

PACKAGES = ("annbatch==0.3.1", "zarrs==0.2.3", "numba", "scipy")


def install(directory: Path) -> None:
    """Make a virtual environment with annbatch."""
    subprocess.run([sys.executable, "-m", "venv", directory], check=True)
    subprocess.run([directory / "bin/pip", "install", "--quiet", *PACKAGES], check=True)


def build_loaders(store: Path, batch_size: int, block: int, blocks: int, threads: int) -> tuple:
    """Make loaders of RNA and protein that give the same cells."""
    import anndata as ad
    import numpy as np
    import zarr
    from annbatch import Loader

    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline", "threading.max_workers": threads})
    group = zarr.open_group(store, mode="r")
    loaders = []
    for array in (ad.io.sparse_dataset(group["X"]), group["obsm/adt"]):
        loader = Loader(
            batch_size=batch_size,
            chunk_size=block,
            preload_nchunks=blocks,
            shuffle=True,
            return_index=True,
            preload_to_gpu=False,
            to=None,
            rng=np.random.default_rng(0),
        )
        loaders.append(loader.add_dataset(array))
    return tuple(loaders), int(group["X"].attrs["shape"][1])


def read_batches(store: Path, batch_size: int, block: int, blocks: int, threads: int):
    """Yield dense batches without end."""
    import numba
    import numpy as np

    @numba.njit(nogil=True)
    def scatter(indptr, indices, data, out):
        for i in range(out.shape[0]):
            span, row = slice(indptr[i], indptr[i + 1]), out[i]
            columns, values = indices[span], data[span]
            row[:] = 0
            for k in range(columns.size):
                row[columns[k]] = values[k]

    (rna, adt), genes = build_loaders(store, batch_size, block, blocks, threads)
    dense = np.empty((batch_size, genes), np.float32)  # reused, as is fair
    while True:
        for cells, proteins in zip(rna, adt, strict=True):
            if not np.array_equal(cells["index"], proteins["index"]):
                raise ValueError("The loaders of RNA and protein gave different cells.")
            counts = cells["X"]
            out = dense[: counts.shape[0]]
            scatter(counts.indptr, counts.indices, counts.data, out)
            yield out, np.asarray(proteins["X"]).astype(np.float32), cells["index"]


def read_peak_kib() -> int:
    """Give the peak resident memory of this process; unlike ru_maxrss without that of its parent."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


def measure(batches, seconds: float, warm_up: int = 100) -> dict[str, float]:
    """Read for some seconds after a warm-up that fills all buffers; give speed, CPU time and peak memory."""
    for _ in range(warm_up):
        next(batches)
    cells, start, cpu = 0, time.monotonic(), time.process_time()
    while time.monotonic() - start < seconds:
        cells += len(next(batches)[0])
    wall, cpu = time.monotonic() - start, time.process_time() - cpu
    return {
        "cells_per_s": cells / wall,
        "cpu_us_per_cell": 1e6 * cpu / cells,
        "peak_mib": read_peak_kib() / 2**10,
    }


def main() -> None:
    """Install, or measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.strip().split("\n")[0])
    parser.add_argument("--install", type=Path, metavar="DIR")
    parser.add_argument("--store", type=Path)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--block", type=int, default=512, help="rows read together; 512 is annbatch's default")
    parser.add_argument("--blocks", type=int, default=32, help="blocks in memory; 32 is annbatch's default")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5.0)
    arguments = parser.parse_args()
    if arguments.install:
        install(arguments.install)
        return
    a = arguments
    print(json.dumps(measure(read_batches(a.store, a.batch, a.block, a.blocks, a.threads), a.seconds)))


if __name__ == "__main__":
    main()
