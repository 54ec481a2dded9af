"""
Measure how fast cells come from an atlas, and print a table.

All contenders deliver shuffled batches of dense float32 RNA and protein counts in the order of the vocabulary, read
from the same synthetic cells with two threads, files in the page cache:

- `ours`: `scfusion_fm.data.stream.loader` with its defaults (512 blocks of 64 rows in its windows); `ours 512`: with 64
  blocks of 512 rows, which mixes less;
- `memory map`: single random rows of uncompressed arrays, the upper bound;
- `annbatch 64`, `annbatch 512`: its loader (Python 3.12, zarrs) with 128 blocks of 64 rows in memory, and with its
  defaults, 32 blocks of 512;
- `h5ad`, `zarr`: random rows through `anndata.read_h5ad(backed="r")` and `anndata.io.sparse_dataset`.

Every measurement is a process of its own; contenders take turns and the medians are printed. annbatch takes part when
`--annbatch PYTHON` names an interpreter that has it, as `python3.12 benchmarks/loader_annbatch.py --install DIR` makes.
`stall` is the share of time that training with steps of 100 ms would wait for our loader.

`--only collation` compares two ways to make features and masks, on the training thread and in the threads of the
loader: what a thread that sleeps for the length of a step spends and waits beside. It prints medians and the range of
turns that alternate, and fails if the two ways give other bits.
"""

import argparse
import itertools
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import anndata as ad
import numba
import numpy as np
import scipy.sparse as sp
import torch
import zarr
from loader_annbatch import measure
from numpy.typing import NDArray

from scfusion_fm import ScFusionTTTFeatureExtractor
from scfusion_fm.config.pretrain import LoaderConfig, MaskingConfig
from scfusion_fm.data.atlas.atlas import Atlas
from scfusion_fm.data.atlas.packed import BufferPool
from scfusion_fm.data.prepare.synthesize import synthesize_atlas
from scfusion_fm.data.prepare.synthetic import SyntheticSettings
from scfusion_fm.data.stream.collate import MaskingCollator
from scfusion_fm.data.stream.loader import AtlasLoader
from scfusion_fm.data.stream.order import CellOrder

CONTENDERS = ("ours", "ours 512", "memory map", "annbatch 64", "annbatch 512", "h5ad", "zarr")
ANNBATCH = {"annbatch 64": ("64", "128"), "annbatch 512": ("512", "32")}  # rows of a block, blocks in memory
THREADS = 2

Batches = Iterator[tuple[NDArray, NDArray, NDArray]]


def write_stores(directory: Path, settings: SyntheticSettings) -> None:
    """Write the same cells as an atlas, as uncompressed arrays and as h5ad."""
    synthesize_atlas(settings, directory / "atlas.zarr")
    adata = ad.read_zarr(directory / "atlas.zarr")
    adata.X.data.astype(np.uint16).tofile(directory / "data")
    adata.X.indices.astype(np.int32).tofile(directory / "indices")
    np.save(directory / "indptr.npy", adata.X.indptr.astype(np.int64))
    np.save(directory / "adt.npy", adata.obsm["adt"])
    del adata.varm, adata.uns
    adata.X = sp.csr_matrix((adata.X.data.astype(np.float32), adata.X.indices, adata.X.indptr), shape=adata.shape)
    adata.write_h5ad(directory / "cells.h5ad")


def build_loader(directory: Path, batch: int, collate: MaskingCollator | None = None, **settings: int) -> AtlasLoader:
    """Make our loader with its default settings, or others for the order."""
    atlas = Atlas(directory / "atlas.zarr")
    order = CellOrder(atlas.rows_by_dataset("train"), 0, LoaderConfig(**settings))
    return AtlasLoader(atlas, order, batch, batch, threads=THREADS, collate=collate)


def read_ours(directory: Path, batch: int, **settings: int) -> Batches:
    """Yield the batches of our loader."""
    loader = build_loader(directory, batch, **settings)
    while True:
        for cells, _ in loader.next_batch():
            yield cells.rna, cells.adt, cells.row


@numba.njit(nogil=True)
def _scatter_rows(indptr, indices, data, rows, out):
    for i in range(rows.size):
        span, row = slice(indptr[rows[i]], indptr[rows[i] + 1]), out[i]
        columns, values = indices[span], data[span]
        row[:] = 0
        for k in range(columns.size):
            row[columns[k]] = values[k]


def draw_rows(number: int, batch: int) -> Iterator[NDArray[np.int64]]:
    """Yield batches of random rows, every row once per pass."""
    rng = np.random.default_rng(0)
    while True:
        order = rng.permutation(number)
        yield from order[: number // batch * batch].reshape(-1, batch)


def read_memory_map(directory: Path, batch: int) -> Batches:
    """Yield random rows of the uncompressed arrays, made ready by threads."""
    indptr = np.load(directory / "indptr.npy")
    indices = np.memmap(directory / "indices", np.int32, "r")
    data = np.memmap(directory / "data", np.uint16, "r")
    adt = np.load(directory / "adt.npy", mmap_mode="r")
    genes = zarr.open_group(directory / "atlas.zarr", mode="r")["X"].attrs["shape"][1]

    buffers = BufferPool()

    def make(rows: NDArray[np.int64]) -> tuple[NDArray, NDArray, NDArray]:
        rna = buffers.lend((batch, genes), np.float32)
        _scatter_rows(indptr, indices, data, rows, rna)
        return rna, adt[rows].astype(np.float32), rows

    with ThreadPoolExecutor(THREADS) as pool:
        ahead: deque = deque()
        for rows in draw_rows(len(adt), batch):
            ahead.append(pool.submit(make, rows))
            if len(ahead) > THREADS:
                yield ahead.popleft().result()


def read_h5ad(directory: Path, batch: int) -> Batches:
    """Yield random rows of a backed AnnData."""
    adata = ad.read_h5ad(directory / "cells.h5ad", backed="r")
    for rows in draw_rows(adata.n_obs, batch):
        ascending = np.sort(rows)
        cells = adata[ascending].to_memory()
        yield cells.X.toarray(), cells.obsm["adt"].astype(np.float32), ascending


def read_zarr(directory: Path, batch: int) -> Batches:
    """Yield random rows of the sparse matrix of the atlas as anndata reads them."""
    group = zarr.open_group(directory / "atlas.zarr", mode="r")
    counts, proteins = ad.io.sparse_dataset(group["X"]), group["obsm/adt"]
    for rows in draw_rows(counts.shape[0], batch):
        ascending = np.sort(rows)
        adt = proteins.oindex[ascending].astype(np.float32)
        yield counts[ascending].astype(np.float32).toarray(), adt, ascending


READERS = {
    "ours": read_ours,
    "ours 512": partial(read_ours, block_rows=512, window_blocks=4),
    "memory map": read_memory_map,
    "h5ad": read_h5ad,
    "zarr": read_zarr,
}


def check_batch(directory: Path, batch: int) -> None:
    """Compare one batch of each contender with what our reader gives for its rows."""
    atlas = Atlas(directory / "atlas.zarr")
    for name, reader in READERS.items():
        rna, adt, rows = next(reader(directory, batch))
        expected = atlas.read(rows)
        if not (np.array_equal(rna, expected.rna) and np.array_equal(adt, expected.adt) and rna.dtype == np.float32):
            raise ValueError(f"{name} gave other cells than the atlas holds.")


def measure_stall(directory: Path, batch: int, seconds: float, step_s: float = 0.1) -> dict[str, float]:
    """Give the share of time that steps of this length wait for our loader."""
    with build_loader(directory, batch) as loader:
        next(loader.next_batch())
        start, waited = time.monotonic(), loader.stall_seconds
        while time.monotonic() - start < seconds:
            list(loader.next_batch())
            time.sleep(step_s)
        share = (loader.stall_seconds - waited) / (time.monotonic() - start)
    return {"stall": share, **loader.describe()}


def collate_ahead(loader: AtlasLoader) -> Iterator[dict]:
    """Yield the arguments of the model that the threads of a loader made."""
    while True:
        yield from (cells.inputs for cells, _ in loader.next_batch())


def collate_here(loader: AtlasLoader, collate: MaskingCollator) -> Iterator[dict]:
    """Yield the arguments of the model, made when they are asked for."""
    while True:
        yield from (collate(*cells) for cells in loader.next_batch())


def take_steps(batches: Iterator[dict], batch: int, seconds: float, step_s: float) -> tuple[float, float, float]:
    """Sleep steps; give microseconds per cell: CPU of this thread, time beside the steps, and CPU of all threads."""
    next(batches)
    start, thread, process, steps = time.monotonic(), time.thread_time(), time.process_time(), 0
    while time.monotonic() - start < seconds:
        next(batches)
        time.sleep(step_s)
        steps += 1
    beside = time.monotonic() - start - steps * step_s
    spent = (time.thread_time() - thread, beside, time.process_time() - process)
    return tuple(1e6 * s / (steps * batch) for s in spent)


def measure_collation(directory: Path, batch: int, seconds: float, rounds: int, step_s: float) -> dict[str, dict]:
    """Compare collation on the training thread with that in the threads of the loader."""
    torch.set_num_threads(1)
    extractor = ScFusionTTTFeatureExtractor(**Atlas(directory / "atlas.zarr").vocabulary.to_dict(), patch_size=16)
    collate = MaskingCollator(extractor, MaskingConfig())
    with build_loader(directory, batch) as plain, build_loader(directory, batch, collate) as collating:
        ways = {"training thread": collate_here(plain, collate), "loader threads": collate_ahead(collating)}
        for one, other in zip(*(itertools.islice(batches, 10) for batches in ways.values()), strict=True):
            same = all(one[k].equal(other[k]) if torch.is_tensor(one[k]) else one[k] == other[k] for k in one)
            if not same or one.keys() != other.keys():
                raise ValueError("the two ways to collate gave different batches.")
        turns: dict[str, list] = {name: [] for name in ways}
        for turn in range(rounds):
            for name in list(ways)[:: 1 if turn % 2 else -1]:
                turns[name].append(take_steps(ways[name], batch, seconds, step_s))
    found = {}
    for name, taken in turns.items():
        columns = dict(zip(("thread_cpu_us", "beside_steps_us", "all_cpu_us"), zip(*taken, strict=True), strict=True))
        found[name] = {key: [statistics.median(v), min(v), max(v)] for key, v in columns.items()}
    return found


def run_contender(name: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Measure one contender in a process of its own."""
    common = ["--batch", str(arguments.batch), "--seconds", str(arguments.seconds)]
    script, store = Path(__file__), str(arguments.store)
    command = [sys.executable, str(script), "--store", store, "--only", name]
    if name in ANNBATCH:
        block, blocks = ANNBATCH[name]
        script = script.with_name("loader_annbatch.py")
        command = [arguments.annbatch, str(script), "--store", f"{store}/atlas.zarr", "--block", block]
        command += ["--blocks", blocks, "--threads", str(THREADS)]
    done = subprocess.run([*command, *common], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{name} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def summarise(rounds: dict[str, list[dict[str, float]]]) -> list[dict]:
    """Give medians, the range of CPU time, and ratios to ours."""
    rows = []
    for name, found in rounds.items():
        row = {key: statistics.median(r[key] for r in found) for key in found[0]}
        cpu = [r["cpu_us_per_cell"] for r in found]
        rows.append({"loader": name, **row, "cpu_us_range": [min(cpu), max(cpu)], "rounds": len(found)})
    ours = next(row for row in rows if row["loader"] == "ours")
    for row in rows:
        row["speed_of_ours"] = ours["cells_per_s"] / row["cells_per_s"]
        row["cpu_of_ours"] = ours["cpu_us_per_cell"] / row["cpu_us_per_cell"]
    return rows


def format_table(rows: list[dict]) -> str:
    """Lay the rows out as a Markdown table."""
    lines = [
        "| loader | cells/s | CPU us per cell (range) | peak MiB | ours / it, cells/s | ours / it, CPU |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {r['loader']} | {r['cells_per_s']:,.0f} | {r['cpu_us_per_cell']:,.1f} "
        f"({r['cpu_us_range'][0]:,.1f} to {r['cpu_us_range'][1]:,.1f}) | {r['peak_mib']:,.0f} "
        f"| {r['speed_of_ours']:.2f} | {r['cpu_of_ours']:.2f} |"
        for r in rows
    ]
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.strip().split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few cells and genes, under a minute")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the numbers here")
    parser.add_argument("--store", type=Path, help="directory of the synthetic cells; written when new, kept for later")
    parser.add_argument("--annbatch", metavar="PYTHON", help="interpreter that has annbatch")
    parser.add_argument("--only", choices=[*READERS, "stall", "collation"], help="measure one contender and print JSON")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--seconds", type=float, help="length of one measurement")
    parser.add_argument("--rounds", type=int, help="turns of each contender")
    parser.add_argument("--step-ms", type=float, default=100.0, help="length of a step of `collation`")
    return parser.parse_args()


def main() -> None:
    """Measure and report."""
    a = parse_arguments()
    a.seconds = a.seconds or (1.0 if a.quick else 5.0)
    if a.only == "stall":
        print(json.dumps(measure_stall(a.store, a.batch, a.seconds)))
        return
    if a.only == "collation":
        found = measure_collation(a.store, a.batch, a.seconds, a.rounds or 5, a.step_ms / 1e3)
        print(json.dumps(found))
        return
    if a.only:
        buffered = {} if a.only.startswith("ours") else {"warm_up": 1}
        print(json.dumps(measure(READERS[a.only](a.store, a.batch), a.seconds, **buffered)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        a.store = a.store or Path(scratch)
        if not (a.store / "cells.h5ad").exists():
            a.store.mkdir(parents=True, exist_ok=True)
            size = (4_000, 1_000) if a.quick else (200_000, 20_000)
            write_stores(a.store, SyntheticSettings(*size))
        check_batch(a.store, a.batch)
        names = [name for name in CONTENDERS if name not in ANNBATCH or a.annbatch]
        rounds: dict[str, list] = {name: [] for name in names}
        for turn in range(a.rounds or (1 if a.quick else 5)):
            for name in names if turn % 2 == 0 else names[::-1]:
                rounds[name].append(run_contender(name, a))
        stall = run_contender("stall", a)
    rows = summarise(rounds)
    print(format_table(rows))
    print(f"{platform.machine()}, batch {a.batch}, {THREADS} threads, {a.seconds:.0f} s per turn; {stall}")
    if a.json:
        a.json.write_text(json.dumps({"rows": rows, "stall": stall}, indent=2) + "\n")


if __name__ == "__main__":
    main()
