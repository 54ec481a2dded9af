"""Memory over time of a model that is used on a file of any size.

    python benchmarks/serving_memory.py MODEL WORK [--cells 1000000] [--genes 15000] [--per-cell 450]
        [--verb embed] [--json OUT.json] [--plot OUT.png]

A file of made-up cells is written to the directory WORK (and used again if it is there): the genes of the model, and
other human genes up to the number that is asked for; each cell has counts of some of them at random. The command reads
it in a process of its own, whose resident memory is noted twice a second. The size of the file and the largest memory
are printed.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import anndata as ad
import h5py
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import psutil
from tqdm import tqdm

import scfusion_fm as sf
from scfusion_fm.data.vocabulary.reference import load_gene_table

BLOCK = 10_000
EVERY = 0.5
CODE = "from scfusion_fm.cli.main import main; main()"


def write_cells(path: Path, genes: list[str], cells: int, per_cell: int) -> None:
    """Write made-up cells block by block, as anndata stores them."""
    random = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        obs = pd.DataFrame(index=[f"cell{i}" for i in range(cells)])
        ad.io.write_elem(file, "/", ad.AnnData(obs=obs, var=pd.DataFrame(index=genes)))
        matrix = file.create_group("X")
        matrix.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": (cells, len(genes))})
        matrix.create_dataset("indptr", data=np.arange(cells + 1, dtype=np.int64) * per_cell)
        values = matrix.create_dataset("data", (cells * per_cell,), "f4", chunks=(min(2**20, cells * per_cell),))
        indices = matrix.create_dataset("indices", (cells * per_cell,), "i4", chunks=(min(2**20, cells * per_cell),))
        step = len(genes) // per_cell
        for start in tqdm(range(0, cells, BLOCK), unit="blocks", disable=None):
            rows = min(BLOCK, cells - start)
            part = slice(start * per_cell, (start + rows) * per_cell)
            columns = np.arange(per_cell) * step + random.integers(0, step, (rows, per_cell))  # sorted, none twice
            indices[part] = columns.astype(np.int32).ravel()
            values[part] = random.geometric(0.4, rows * per_cell).astype(np.float32)


def watch(command: list[str]) -> list[tuple[float, float]]:
    """Run a command; seconds since its start, and its resident memory in GiB."""
    start = time.monotonic()
    process = subprocess.Popen(command)
    seen = []
    while process.poll() is None:
        try:
            seen.append((time.monotonic() - start, psutil.Process(process.pid).memory_info().rss / 2**30))
        except psutil.NoSuchProcess:
            break
        time.sleep(EVERY)
    if process.wait():
        raise ValueError(f"`{' '.join(command)}` must succeed, got exit code {process.returncode}.")
    return seen


def draw(seen: list[tuple[float, float]], title: str, path: Path) -> None:
    """Draw the memory over time."""
    fig, ax = plt.subplots(figsize=(6, 3), layout="constrained")
    seconds, memory = np.array(seen).T
    ax.plot(seconds / 60, memory)
    ax.axhline(2, color="grey", linestyle=":")
    ax.set(xlabel="minutes", ylabel="resident memory, GiB", ylim=(0, max(2.2, memory.max() * 1.1)), title=title)
    fig.savefig(path, dpi=150)


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--cells", type=int, default=1_000_000)
    parser.add_argument("--genes", type=int, default=15_000)
    parser.add_argument("--per-cell", type=int, default=450, help="genes with counts in a cell")
    parser.add_argument("--verb", default="embed", choices=("embed", "annotate", "predict-protein"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    known = list(sf.load(args.model).extractor.gene_ids)[: args.genes]
    others = [gene for gene in load_gene_table().index if gene not in set(known)][: args.genes - len(known)]
    args.work.mkdir(parents=True, exist_ok=True)
    source = args.work / f"cells_{args.cells}_{args.genes}_{args.per_cell}.h5ad"
    if not source.exists():
        write_cells(source, known + others, args.cells, args.per_cell)
    output = args.work / f"{source.stem}_{args.verb}.h5ad"
    output.unlink(missing_ok=True)
    seen = watch([sys.executable, "-c", CODE, args.verb, str(args.model), str(source), str(output)])
    row = {
        "cells": args.cells,
        "file_gib": source.stat().st_size / 2**30,
        "seconds": seen[-1][0],
        "peak_gib": max(memory for _, memory in seen),
    }
    print(", ".join(f"{name} {value:,.2f}" for name, value in row.items()))
    if args.json is not None:
        args.json.write_text(json.dumps(row | {"seconds_gib": seen}))
    if args.plot is not None:
        draw(seen, f"{args.verb}: {args.cells:,} cells, {row['file_gib']:.1f} GiB", args.plot)


if __name__ == "__main__":
    main()
