"""How far pipelines of transformers, and models of fewer bits, agree with `annotate` and `embed` in float32.

    python benchmarks/agreement.py ANNOTATION_MODEL MODEL FILE [--ids gene_ids] [--json OUT.json]

The RNA of an h5ad or h5mu file is used; `--ids` is the column of var with Ensembl ids. "Types" is the share of cells
that get the type that `annotate` gives them, from columns named by id, by the names of the file, and by a model of
fewer bits, which is compared with the pipeline in float32. "Moved" is the distance of embeddings to those in float32,
as a share of their distance to the mean embedding (root mean squares).
"""

import argparse
import json
import warnings
from pathlib import Path

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from transformers import pipeline

import scfusion_fm as sf

BITS = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def read_rna(path: Path) -> ad.AnnData:
    """Read the RNA of a file."""
    return md.read_h5mu(path)["rna"] if path.suffix == ".h5mu" else ad.read_h5ad(path)


def name_by(rna: ad.AnnData, ids: str) -> pd.DataFrame:
    """Give counts with columns named by id; columns of one id are summed."""
    counts = rna.to_df()
    counts.columns = rna.var[ids].astype(str)
    return counts.T.groupby(level=0).sum().T


def types_of(model: Path, given: ad.AnnData | pd.DataFrame, **settings: torch.dtype) -> NDArray:
    """Give the types by the pipeline."""
    found = pipeline("cell-type-annotation", model=str(model), batch_size=64, **settings)(given)
    return np.array([cell["label"] for cell in found])


def embed(model: Path, given: ad.AnnData, **settings: torch.dtype) -> NDArray:
    """Give embeddings by the pipeline."""
    return np.stack(pipeline("cell-embedding", model=str(model), batch_size=64, **settings)(given)).astype(float)


def main() -> None:
    """Compare, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("annotator", "model", "file"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--ids", default="gene_ids")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    sf.settings.verbosity = 0
    rna = read_rna(args.file)
    known = sf.annotate(rna, args.annotator, copy=True).obs["cell_type_pred"].astype(str).to_numpy()
    whole, plain = types_of(args.annotator, rna), embed(args.model, rna)
    rows = [
        {"what": "columns by id", "types": float(np.mean(types_of(args.annotator, name_by(rna, args.ids)) == known))},
        {"what": "columns by name", "types": float(np.mean(whole == known))},
    ]
    for name, dtype in BITS.items():
        moved = np.linalg.norm(embed(args.model, rna, dtype=dtype) - plain) / np.linalg.norm(plain - plain.mean(0))
        same = np.mean(types_of(args.annotator, rna, dtype=dtype) == whole)
        rows.append({"what": name, "types": float(same), "moved": float(moved)})
    print(f"{len(known):,} cells\n{pd.DataFrame(rows).to_string(index=False)}")
    if args.json is not None:
        args.json.write_text(json.dumps({"cells": len(known), "rows": rows}))


if __name__ == "__main__":
    main()
