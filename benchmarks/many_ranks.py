"""
Simulate what many ranks and large atlases cost before anything is trained: in few processes, without GPUs.

    python benchmarks/many_ranks.py order             # loaders of 1,024 ranks, one after the other in one process
    python benchmarks/many_ranks.py peers             # rank 0 of 1,024, the others played by one process
    python benchmarks/many_ranks.py store --cells 100000000      # an atlas of metadata alone, with 10,000 shards

- `order` compares the cells of all ranks together with those of a single rank, and fails if they differ. It says how
  often a cell is read: with more ranks than lanes, ranks read the same windows.
- `peers` fails if the watch does not notice a rank that dies.
- `store` writes arrays of what an atlas knows of each cell, no counts, and opens it in a process of its own.
"""

import argparse
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import zarr
from numpy.typing import NDArray

from scfusion_fm.config.pretrain import LoaderConfig
from scfusion_fm.data.atlas.atlas import Atlas
from scfusion_fm.data.atlas.manifest import MANIFEST, format_manifest, read_manifest
from scfusion_fm.data.prepare.store import consolidate
from scfusion_fm.data.prepare.synthesize import synthesize_atlas
from scfusion_fm.data.prepare.synthetic import SyntheticSettings
from scfusion_fm.data.stream.loader import AtlasLoader
from scfusion_fm.data.stream.order import CellOrder

BLOCK = 8_000_000  # cells written at a time
VALUES = 1_500  # of a cell
MIB = 2**20


class CountedCells:
    """An atlas without counts: gives the numbers of the rows that are asked for, and counts them."""

    fingerprint = "counted"
    dense_bytes_per_cell = 4 * 20_000
    table_bytes = 0

    def __init__(self):
        self.rows_read = 0

    def sparse_bytes_per_cell(self, block_rows: int) -> float:
        """Give what a cell with 1,500 counts takes."""
        return 4 * VALUES * (1 + 16 / block_rows)

    def read_packed(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Count rows."""
        self.rows_read += len(rows)
        return rows

    def unpack(self, rows: NDArray[np.int64], parts: list) -> SimpleNamespace:
        """Give row numbers for cells."""
        assert np.array_equal(rows, np.concatenate([packed[inside] for packed, inside in parts]))
        return SimpleNamespace(row=rows)


def simulate_order(ranks: int, cells: int, batch: int, lanes: int, steps: int) -> dict[str, float]:
    """Walk the loaders of all ranks some steps along the order; give seconds per rank, and what is read."""
    rows = {f"d{i}": part for i, part in enumerate(np.array_split(np.arange(cells), 24))}
    start = time.monotonic()
    order = CellOrder(rows, 0, LoaderConfig(lanes=lanes))
    order.window(0, 0)
    made, atlas = time.monotonic() - start, CountedCells()
    with AtlasLoader(atlas, order, batch, batch, threads=1) as alone:
        expected = [np.sort(next(alone.next_batch())[0].row) for _ in range(steps)]
    seen: list[list] = [[] for _ in range(steps)]
    starts, walks, atlas, memory = [], [], CountedCells(), 0
    for rank in range(ranks):
        begun = time.process_time()
        with AtlasLoader(atlas, order, batch, batch // ranks, rank, ranks, threads=1) as loader:
            seen[0].append(next(loader.next_batch())[0].row)
            starts.append(time.process_time() - begun)
            begun = time.process_time()
            for step in range(1, steps):
                seen[step].append(next(loader.next_batch())[0].row)
            walks.append((time.process_time() - begun) / (steps - 1))
            memory = max(memory, loader.describe()["mebibytes"])
    for parts, whole in zip(seen, expected, strict=True):
        if not np.array_equal(np.sort(np.concatenate(parts)), whole):
            raise SystemExit("error: the ranks together saw other cells than one rank")
    read_of_one = cells_read(order, batch, steps)
    return {
        "ranks": ranks,
        "lanes": lanes,
        "order_s": made,
        "start_ms": 1e3 * float(np.median(starts)),
        "step_ms": 1e3 * float(np.median(walks)),
        "read_ratio": atlas.rows_read / read_of_one,
        "loader_mib": memory,
    }


def cells_read(order: CellOrder, batch: int, steps: int) -> int:
    """Count the rows that a single rank reads."""
    atlas = CountedCells()
    with AtlasLoader(atlas, order, batch, batch, threads=1) as alone:
        for _ in range(steps):
            next(alone.next_batch())
    return atlas.rows_read


def play_peers(port: int, token: str, ranks: int, beat_s: float) -> None:
    """Be ranks 1 to N: knock, beat, and after ten beats let the last one die."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    links = []
    for rank in range(1, ranks):
        links.append(socket.create_connection(("127.0.0.1", port)))
        links[-1].sendall(f"{token} {rank}\n".encode())
    for beat in range(11):
        if beat == 10:
            links.pop().close()
        for link in links:
            link.sendall(b"\n")
        time.sleep(beat_s)
    time.sleep(3)


def simulate_peers(ranks: int, beat_s: float) -> dict[str, float]:
    """Be rank 0 of many; give how long greeting took, the share of a core that watching takes, and the verdict."""
    from scfusion_fm.training import peers
    from scfusion_fm.training.ranks import Ranks

    players = []

    def invite(meeting: list, src: int) -> None:
        command = [sys.executable, __file__, "play", "--ranks", str(ranks), "--beat", str(beat_s)]
        players.append(subprocess.Popen([*command, "--meeting", json.dumps(meeting[0])]))

    peers.distributed.broadcast_object_list = invite
    hosts = tuple(f"node{rank // 8}" for rank in range(ranks))
    watch = peers.PeerWatch(Ranks(0, ranks, hosts), beat_s)
    before = Path("/proc/self/statm").read_text().split()[1]
    begun = time.monotonic()
    watch.__enter__()
    met = time.monotonic() - begun
    memory = (int(Path("/proc/self/statm").read_text().split()[1]) - int(before)) * resource.getpagesize()
    cpu, begun = time.process_time(), time.monotonic()
    time.sleep(8 * beat_s)
    share = (time.process_time() - cpu) / (time.monotonic() - begun)
    watch._left.set()  # this thread does not hang, and wants to hear the verdict
    noticed = watch._judged.wait(10 * beat_s)
    found = {"ranks": ranks, "met_s": met, "share_of_core": share, "added_mib": memory / MIB, "noticed": noticed}
    players[0].kill()
    if not noticed or f"rank {ranks - 1} on host {hosts[-1]} died without a word" not in str(watch._verdict):
        raise SystemExit(f"error: the rank that died was not noticed: {found}, {watch._verdict}")
    return found


@contextmanager
def metadata_of(cells: int, shards: int, directory: Path | None) -> Iterator[Path]:
    """Write an atlas that knows so many cells, without their counts."""
    with tempfile.TemporaryDirectory(dir=directory) as scratch, zarr.config.set({"array.write_empty_chunks": True}):
        path = Path(scratch) / "atlas.zarr"
        synthesize_atlas(SyntheticSettings(600, n_genes=200, n_datasets=24), path, report=lambda line: None)
        manifest = read_manifest(path)
        names = ("rna_present", "adt_present", "rna_total_counts", "dataset/codes", "split/codes")
        group = zarr.open_group(path, mode="a", use_consolidated=False)
        sizes = [len(part) for part in np.array_split(np.empty(cells, np.uint8), len(manifest["sources"]))]
        for name in names:
            array = group[f"obs/{name}"]
            first = array[:].copy()
            array.resize((cells,))
            for start in range(0, cells, BLOCK):
                place = np.arange(start, min(start + BLOCK, cells))
                values = np.searchsorted(np.cumsum(sizes), place, side="right") if name == "dataset/codes" else None
                array[place[0] : place[-1] + 1] = first[place % len(first)] if values is None else values
        group["X/indptr"].resize((cells + 1,))
        for start in range(0, cells + 1, BLOCK):
            place = np.arange(start, min(start + BLOCK, cells + 1))
            group["X/indptr"][place[0] : place[-1] + 1] = place * VALUES
        group["X/data"].resize((cells * VALUES,))
        group["X/indices"].resize((cells * VALUES,))
        group["obsm/adt"].resize((cells, manifest["num_proteins"]))
        consolidate(path)
        for source, size in zip(manifest["sources"], sizes, strict=True):
            source |= {"cells": size, "values": size * VALUES}
        manifest |= {"num_cells": cells, "num_values": cells * VALUES, "cells_per_split": {"train": cells}}
        record = {"bytes": 10**8, "sha256": "0" * 64}
        manifest["files"] |= {f"X/{a}/c/{i}": record for a in ("data", "indices") for i in range(shards // 2)}
        (path / MANIFEST).write_text(format_manifest(manifest))
        yield path


def open_store(path: Path, ranks: int) -> dict[str, float]:
    """Open an atlas and make the loader of a rank; give seconds and memory of each part."""
    found: dict[str, float] = {}

    def measure(name: str, begun: float) -> None:
        found[f"{name}_s"] = time.process_time() - begun
        now = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        found[f"{name}_mib"] = now / MIB

    measure("imports", time.process_time())
    begun = time.process_time()
    manifest = read_manifest(path)
    measure("manifest", begun)
    found["files"] = len(manifest["files"])
    begun = time.process_time()
    atlas = Atlas(path)
    measure("open", begun)
    begun = time.process_time()
    rows = atlas.rows_by_dataset("train")
    measure("rows", begun)
    begun = time.process_time()
    order = CellOrder(rows, 0, LoaderConfig(lanes=ranks))
    del rows
    measure("order", begun)
    begun = time.process_time()
    with AtlasLoader(atlas, order, 4 * ranks, 4, 0, ranks, threads=1) as loader:
        list(loader._plan_step())
    measure("first_window", begun)
    found["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return found


def simulate_store(cells: int, shards: int, ranks: int, directory: Path | None) -> dict[str, float]:
    """Write metadata and open it in a process of its own."""
    with metadata_of(cells, shards, directory) as path:
        command = [sys.executable, __file__, "open", "--store", str(path), "--ranks", str(ranks)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        return {"cells": cells} | json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Simulate and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("order", "peers", "store", "play", "open"))
    parser.add_argument("--ranks", type=int, default=1024)
    parser.add_argument("--cells", type=int, default=10_000_000)
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--lanes", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--beat", type=float, default=5.0, help="seconds")
    parser.add_argument("--store", type=Path, help="directory for what is written")
    parser.add_argument("--meeting", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.what == "play":
        return play_peers(*json.loads(args.meeting), args.ranks, args.beat)
    made = {
        "order": lambda: simulate_order(args.ranks, args.cells, args.batch, args.lanes, args.steps),
        "peers": lambda: simulate_peers(args.ranks, args.beat),
        "store": lambda: simulate_store(args.cells, args.shards, args.ranks, args.store),
        "open": lambda: open_store(args.store, args.ranks),
    }[args.what]()
    print(json.dumps(made), flush=True)
    sys.stdout.flush()
    os._exit(0)  # the watch would end this process with an error, as it should


if __name__ == "__main__":
    main()
