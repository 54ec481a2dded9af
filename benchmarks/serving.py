"""Speed of a model that is used, beside what else embeds the same cells on the same processor.

    python benchmarks/serving.py FILE.h5ad embed=MODEL [annotate=MODEL] [predict_protein=MODEL] [--cells N]
        [--threads 2] [--peers pca scvi] [--json OUT.json]

Each method runs in a process of its own, on the same cells in memory: the verbs of this package with the given models,
`pca` (scanpy: normalisation, logarithm, 50 components of all genes) and `scvi` (`get_latent_representation` of a model
that was not trained, which takes as long; named as missing where scvi-tools is not installed). Loading of models and
files is not counted, matching of genes is. CPU time is of all threads together; other programs change it less than the
time on the clock.
"""

import argparse
import importlib.util
import json
import os
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

PEERS = ("pca", "scvi")


def prepare(method: str, model: str, file: Path, cells: int | None) -> tuple[Callable[[], object], int]:
    """Load what a method needs; the call that is timed, and the number of cells."""
    import anndata as ad

    adata = ad.read_h5ad(file)[:cells].copy()
    if method == "pca":
        import scanpy as sc

        def run() -> None:
            sc.pp.normalize_total(adata)
            sc.pp.log1p(adata)
            sc.pp.pca(adata, n_comps=min(50, *(n - 1 for n in adata.shape)))

    elif method == "scvi":
        import scvi

        scvi.model.SCVI.setup_anndata(adata)
        made = scvi.model.SCVI(adata)
        made.is_trained_ = True
        run = made.get_latent_representation
    else:
        import scfusion_fm as sf

        sf.settings.verbosity = 0
        verb, loaded = getattr(sf, method), sf.load(model)

        def run() -> None:
            verb(adata, loaded)

    return run, adata.n_obs


def measure(method: str, model: str, file: Path, cells: int | None) -> dict[str, float | str]:
    """Time one method in this process."""
    warnings.simplefilter("ignore")
    run, number = prepare(method, model, file, cells)
    clock, cpu = time.perf_counter(), time.process_time()
    run()
    clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
    return {
        "method": method,
        "cells": number,
        "cells_per_s": number / clock,
        "cpu_us_per_cell": cpu / number * 1e6,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def main() -> None:
    """Measure all methods, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("verbs", nargs="+", help="VERB=MODEL")
    parser.add_argument("--cells", type=int)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=PEERS)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--alone", action="store_true", help="run the one method here, and print JSON")
    args = parser.parse_args()
    methods = [verb.partition("=")[::2] for verb in args.verbs]
    if args.alone:
        print(json.dumps(measure(*methods[0], args.file, args.cells)))
        return
    rows = []
    print("| method | cells per second | CPU time per cell, µs | peak memory, GiB |\n|---|---|---|---|", flush=True)
    for method, model in [*methods, *((name, "") for name in args.peers)]:
        if method == "scvi" and importlib.util.find_spec("scvi") is None:
            print("scvi: not measured, scvi-tools is not installed")
            continue
        command = [sys.executable, __file__, str(args.file), f"{method}={model}", "--alone"]
        command += [] if args.cells is None else ["--cells", str(args.cells)]
        threads = {"OMP_NUM_THREADS": str(args.threads), "TQDM_DISABLE": "1"}
        done = subprocess.run(command, env=os.environ | threads, check=True, text=True, stdout=subprocess.PIPE)
        row = json.loads(done.stdout.splitlines()[-1])
        numbers = f"{row['cells_per_s']:,.0f} | {row['cpu_us_per_cell']:,.0f} | {row['peak_gib']:.2f}"
        print(f"| {method} | {numbers} |", flush=True)
        rows.append(row)
    if args.json is not None:
        args.json.write_text(json.dumps({"threads": args.threads, "rows": rows}))


if __name__ == "__main__":
    main()
