"""Compare two results of `make demo` bit for bit, such as those before and after a change that should change nothing.

    python scripts/compare_demos.py BEFORE AFTER

Both are directories that `make demo` left, `runs/demo` of two checkouts; they must come from machines of one kind with
the same versions and number of ranks. Compared are the losses of pretraining, the weights of the three models, logits
of both fine-tuned models by the code that ships in their directories, and what `embed`, `annotate` and
`predict-protein` wrote. The exit code is 1 where anything differs. Scores of baselines are not compared.
"""

import argparse
import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import mudata
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from transformers import AutoFeatureExtractor
from transformers.dynamic_module_utils import get_class_from_dynamic_module

TIMED = ("seconds", "cells_per_s", "tokens_per_s", "tflops", "data_stall", "memory_gib")
HEADS = {"annotation": "CellTypeAnnotation", "cross_modal": "CrossModalPrediction"}
CELLS = 64


def read_losses(demo: Path) -> Iterator[tuple[str, NDArray]]:
    """Give every number of the records of pretraining that is not a time."""
    records = [json.loads(line) for line in (demo / "pretrain/metrics.jsonl").read_text().splitlines()]
    table = pd.DataFrame(records).drop(columns=[*TIMED, "split", "crc32c"], errors="ignore").astype(float)
    yield from ((f"pretraining: {name}", column.to_numpy()) for name, column in table.items())


def read_weights(demo: Path) -> Iterator[tuple[str, NDArray]]:
    """Give all tensors of the three models."""
    for name in ("model", "annotation/model", "cross_modal/model"):
        yield from ((f"weights of {name}: {key}", x) for key, x in load_file(demo / name / "model.safetensors").items())


def compute_logits(demo: Path) -> Iterator[tuple[str, NDArray]]:
    """Give the logits of some made-up cells by both fine-tuned models, run by the code in their directories."""
    for task, head in HEADS.items():
        path = demo / task / "model"
        extractor = AutoFeatureExtractor.from_pretrained(path, trust_remote_code=True)
        random = np.random.default_rng(0)
        counts = {
            "rna_counts": random.poisson(0.3, (CELLS, len(extractor.gene_ids))),
            "adt_counts": random.poisson(30, (CELLS, len(extractor.protein_names))),
        }
        model = get_class_from_dynamic_module(f"modeling_scfusion_ttt.ScFusionTTTFor{head}", path).from_pretrained(path)
        with torch.inference_mode():
            yield f"logits of {task}", model.eval()(**extractor(**counts)).logits.numpy()


def read_results(demo: Path) -> Iterator[tuple[str, NDArray]]:
    """Give what the scripts predicted for their test cells, and what the commands added to the file."""
    table = pd.read_csv(demo / "annotation/test_predictions.csv")
    yield from ((f"annotation of test cells: {name}", column.to_numpy()) for name, column in table.items())
    for file in ("annotation/embedding.npz", "cross_modal/test_predictions.npz"):
        yield from ((f"{file}: {name}", array) for name, array in np.load(demo / file).items())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cells = mudata.read_h5mu(demo / "cells.h5mu")
    for name in cells.obs:
        yield f"cells.h5mu: obs[{name!r}]", cells.obs[name].astype(object).to_numpy()
    for name, values in cells.obsm.items():
        yield f"cells.h5mu: obsm[{name!r}]", np.asarray(values)


def is_same(before: NDArray, after: NDArray) -> bool:
    """Tell whether two arrays are the same, missing values included."""
    if before.dtype == object or after.dtype == object:
        return pd.Series(before).equals(pd.Series(after))
    return before.dtype == after.dtype and before.shape == after.shape and before.tobytes() == after.tobytes()


def compare(before: dict[str, NDArray], after: dict[str, NDArray]) -> list[str]:
    """Say what is not the same; what only one side has is not the same."""
    nothing = np.empty(0, dtype=object)
    names = {**before, **after}
    return [name for name in names if not is_same(before.get(name, nothing), after.get(name, nothing))]


def main() -> None:
    """Compare two directories."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    args = parser.parse_args()
    differ = False
    for read in (read_losses, read_weights, compute_logits, read_results):
        before, after = dict(read(args.before)), dict(read(args.after))
        found = compare(before, after)
        differ |= bool(found)
        print(f"{read.__name__}: {len(before)} arrays, " + (f"{len(found)} differ" if found else "all the same"))
        for name in found:
            print(f"  {name}")
    sys.exit(int(differ))


if __name__ == "__main__":
    main()
