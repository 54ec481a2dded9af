"""
Embed cells for cz-benchmarks, say which model did, and score the embedding by its tasks.

`embed` writes an array with a row per cell, the cell representation that its tasks take, and a description beside it.
`score` runs the tasks that need labels alone, in an environment with cz-benchmarks and without this package: the two
want other versions of numcodecs.

```
python benchmarks/cz_benchmarks.py embed scfusion-human-blood cells.h5ad out
python benchmarks/cz_benchmarks.py score out.npy cells.h5ad --labels-key cell_type
```
"""

import argparse
import hashlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import yaml
from numpy.typing import NDArray

KEY = "X_scfusion_ttt"


def embed_for_tasks(adata: ad.AnnData, model: str | Path) -> NDArray[np.float32]:
    """Give the embedding (n_obs, D) of raw counts, in the order of the cells; the AnnData stays as it is."""
    import scfusion_fm as sf

    found = np.asarray(sf.embed(adata, model, copy=True).obsm[KEY], dtype=np.float32)
    if not np.isfinite(found).all():
        empty = int((~np.isfinite(found)).any(1).sum())
        raise ValueError(f"`adata` must have counts in every cell, got {empty:,} cells without. Leave them out.")
    return found


def describe(model: str | Path, embedding: NDArray[np.float32]) -> dict[str, Any]:
    """Say which model, of which version and weights, made an embedding of which size."""
    import scfusion_fm as sf

    directory = sf.find_model(model)
    weights = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(directory.glob("*.safetensors"))))
    return {
        "model": {
            "name": directory.name,
            "package": "scfusion-fm",
            "version": version("scfusion-fm"),
            "weights_sha256": weights.hexdigest(),
        },
        "representation": {"kind": "cell embedding", "cells": embedding.shape[0], "width": embedding.shape[1]},
        "input": {"organism": "homo_sapiens", "counts": "raw", "genes": "Ensembl ids or symbols"},
    }


def run_tasks(adata: ad.AnnData, embedding: NDArray[np.float32], labels_key: str) -> dict[str, float]:
    """Score an embedding by the tasks of cz-benchmarks that need labels alone."""
    from czbenchmarks.tasks import (
        ClusteringTask,
        ClusteringTaskInput,
        EmbeddingTask,
        EmbeddingTaskInput,
        MetadataLabelPredictionTask,
        MetadataLabelPredictionTaskInput,
    )

    labels = adata.obs[labels_key]
    tasks = (
        (ClusteringTask, ClusteringTaskInput(obs=adata.obs, input_labels=labels)),
        (EmbeddingTask, EmbeddingTaskInput(input_labels=labels)),
        (MetadataLabelPredictionTask, MetadataLabelPredictionTaskInput(labels=labels)),
    )
    found = {}
    for task, given in tasks:
        for result in task().run(cell_representation=embedding, task_input=given):
            name = getattr(result.metric_type, "value", str(result.metric_type))
            found["/".join([task.__name__, name, *map(str, result.params.values())])] = float(result.value)
    return found


def main() -> None:
    """Do what the command says."""
    parser = argparse.ArgumentParser(description=__doc__.strip().split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    embed = commands.add_parser("embed", help="write the array and its description")
    embed.add_argument("model", help="directory of a model, or its name")
    embed.add_argument("data", type=Path, help=".h5ad with raw counts")
    embed.add_argument("output", type=Path, help="where both go, without a suffix")
    score = commands.add_parser("score", help="run tasks of cz-benchmarks")
    score.add_argument("array", type=Path, help=".npy of `embed`")
    score.add_argument("data", type=Path, help=".h5ad with the labels")
    score.add_argument("--labels-key", required=True, help="column of obs")
    arguments = parser.parse_args()
    adata = ad.read_h5ad(arguments.data)
    if arguments.command == "score":
        found: dict[str, Any] = run_tasks(adata, np.load(arguments.array), arguments.labels_key)
    else:
        embedding = embed_for_tasks(adata, arguments.model)
        found = describe(arguments.model, embedding)
        np.save(arguments.output.with_suffix(".npy"), embedding)
        arguments.output.with_suffix(".yaml").write_text(yaml.safe_dump(found, sort_keys=False))
    print(yaml.safe_dump(found, sort_keys=False))


if __name__ == "__main__":
    main()
