"""From files to an atlas: read, align to one vocabulary, shuffle, write."""

import hashlib
import shutil
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from .align import align_cells
from .atlas import write_atlas
from .hashing import hash_keys
from .readers import read_cells
from .schema import AlignedCells, Cells
from .split import assign_split
from .vocabulary import Vocabulary, build_vocabulary

DATASET = "dataset"  # group key that stands for the data set itself


@dataclass
class Source:
    """A file that becomes a data set of an atlas; see `scfusion_fm.config.SourceConfig`."""

    path: Path
    name: str
    modality: str = "auto"
    licence: str = "unknown"
    reference: str = ""


@dataclass
class SplitRule:
    """How cells are held out; see `scfusion_fm.config.SplitConfig`."""

    val_fraction: float = 0.1
    test_fraction: float = 0.2
    seed: int = 0
    group_key: str | None = None


@dataclass
class AtlasRecipe:
    """What goes into an atlas and how; see `scfusion_fm.config.PrepareConfig`."""

    sources: Sequence[Source]
    genes: str = "protein_coding"
    proteins: str = "all"
    obs_columns: Sequence[str] = ()
    split: SplitRule = field(default_factory=SplitRule)
    seed: int = 0


def prepare_atlas(recipe: AtlasRecipe, output: Path, report: Callable[[str], None] = print) -> dict:
    """
    Write an atlas from files; the directory appears when it is complete, or not at all.

    Parameters
    ----------
    recipe
        Files, vocabulary, split and seed.
    output
        Directory of the new atlas.
    report
        Receives progress lines.

    Returns
    -------
    The manifest.

    Raises
    ------
    ValueError
        If `output` exists, there are no sources, names repeat, or a file is refused by its reader.
    """
    check_new_path(output, "output")
    names = [s.name for s in recipe.sources]
    if not names:
        raise ValueError("`sources` must name at least one file, got none.")
    if len(set(names)) < len(names):
        raise ValueError(f"`sources` must have different names, got {names}.")
    cells = []
    for i, source in enumerate(recipe.sources, 1):
        cells.append(read_cells(source.path, modality=source.modality))
        report(f"[{i}/{len(names)}] read {source.name}: {describe(cells[-1])}")
    vocabulary = build_vocabulary(cells, genes=recipe.genes, proteins=recipe.proteins)
    report(f"vocabulary: {vocabulary.num_genes} genes, {vocabulary.num_proteins} proteins")
    aligned = [align_cells(c, vocabulary) for c in cells]
    adata = _stack(recipe, aligned, vocabulary)
    records = [_record(s, a) for s, a in zip(recipe.sources, aligned, strict=True)]
    output.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        manifest = write_atlas(scratch / "atlas", adata, vocabulary, records)
        check_new_path(output, "output")
        (scratch / "atlas").rename(output)
    finally:
        shutil.rmtree(scratch)
    report(f"wrote {output}: {adata.n_obs} cells, {manifest['cells_per_split']}")
    return manifest


def check_new_path(path: Path, name: str) -> None:
    """
    Refuse a path that exists.

    Raises
    ------
    ValueError
        If something is there.
    """
    if path.exists():
        raise ValueError(f"`{name}` must not exist yet, got {str(path)!r}; choose another path or remove it.")


def describe(cells: Cells) -> str:
    """Say in a few words what a file holds."""
    parts = [f"{len(cells.obs)} cells"]
    if cells.rna is not None:
        parts.append(f"{cells.rna.counts.shape[1]} genes")
    if cells.adt is not None:
        parts.append(f"{cells.adt.counts.shape[1]} antibodies")
    return ", ".join(parts)


def _stack(recipe: AtlasRecipe, aligned: list[AlignedCells], vocabulary: Vocabulary) -> ad.AnnData:
    """Put the data sets below each other, the rows of each in a random but reproducible order."""
    orders = [_row_order(a, s.name, recipe.seed) for a, s in zip(aligned, recipe.sources, strict=True)]
    pairs = list(zip(aligned, orders, strict=True))
    adata = ad.AnnData(
        X=sp.vstack([a.rna[o] for a, o in pairs], format="csr"),
        obs=pd.concat([_obs(recipe, s, a).iloc[o] for s, (a, o) in zip(recipe.sources, pairs, strict=True)]),
        var=pd.DataFrame(
            {"symbol": vocabulary.gene_symbols, "chromosome": vocabulary.gene_chromosomes},
            index=pd.Index(vocabulary.gene_ids, name="gene_id"),
        ),
    )
    for column in adata.obs:
        if adata.obs[column].dtype == object:
            adata.obs[column] = pd.Categorical(adata.obs[column].astype(str))
    names = [s.name for s in recipe.sources]
    adata.obs["dataset"] = pd.Categorical(adata.obs["dataset"], categories=names)
    adata.varm["rna_panel"] = np.stack([a.rna_observed for a in aligned], axis=1)
    adata.obsm["adt"] = np.concatenate([a.adt[o] for a, o in pairs])
    adata.uns["datasets"] = np.array(names)
    adata.uns["adt"] = {
        "names": np.array(vocabulary.protein_names, dtype=str),
        "gene_ids": np.array(vocabulary.protein_gene_ids, dtype=str),
        "panel": np.stack([a.adt_observed for a in aligned], axis=1),
    }
    return adata


def _obs(recipe: AtlasRecipe, source: Source, aligned: AlignedCells) -> pd.DataFrame:
    rule = recipe.split
    names = aligned.obs.index.astype(str)
    groups = None
    if rule.group_key == DATASET:
        groups = [source.name] * len(names)
    elif rule.group_key is not None:
        if rule.group_key not in aligned.obs:
            raise ValueError(
                f"`split.group_key` must be a column of obs in every source, got {rule.group_key!r}, which "
                f"{source.name} lacks; it has {list(aligned.obs.columns)}."
            )
        groups = aligned.obs[rule.group_key].astype(str).to_numpy()
    obs = pd.DataFrame(
        {
            "dataset": source.name,
            "split": assign_split(names, rule.val_fraction, rule.test_fraction, rule.seed, groups),
            "rna_present": aligned.rna_present,
            "adt_present": aligned.adt_present,
            "rna_total_counts": aligned.rna_total_counts,
        },
        index=source.name + ":" + names,
    )
    absent = [c for c in recipe.obs_columns if c not in aligned.obs]
    if absent:
        warnings.warn(f"{source.name} has no column {absent} in obs; written as 'nan'.", stacklevel=2)
    for column in recipe.obs_columns:
        values = aligned.obs.get(column)
        obs[column] = "nan" if values is None else values.astype(str).to_numpy()
    return obs


def _row_order(aligned: AlignedCells, name: str, seed: int) -> np.ndarray:
    key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
    return np.argsort(hash_keys(seed, np.uint64(key), np.arange(len(aligned.obs))), kind="stable")


def _record(source: Source, aligned: AlignedCells) -> dict:
    return {
        "name": source.name,
        "file": source.path.name,
        "sha256": _checksum(source.path),
        "licence": source.licence,
        "reference": source.reference,
        "cells": len(aligned.obs),
        "cells_with_rna": int(aligned.rna_present.sum()),
        "cells_with_adt": int(aligned.adt_present.sum()),
        "genes": int(aligned.rna_observed.sum()),
        "proteins": int(aligned.adt_observed.sum()),
    }


def _checksum(path: Path) -> str:
    """Hash a file, or the files of a store in the order of their names."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            with file.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()
