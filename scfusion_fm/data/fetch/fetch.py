"""Public data sets on this machine: fetched, put together, and compared with what they should hold."""

import gzip
import json
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scfusion_fm.data.fetch.demo import DEMO, LICENCE, TITLE, copy_demo
from scfusion_fm.data.fetch.download import download
from scfusion_fm.data.fetch.manifest import RemoteDataset, find_datasets, read_manifest
from scfusion_fm.data.locations import checksum
from scfusion_fm.data.scratch import Scratch
from scfusion_fm.notices import tell, warn

if TYPE_CHECKING:
    import anndata


def fetch(*names: str, directory: str | Path = "data") -> list[Path]:
    """
    Fetch public CITE-seq data sets, each as one file that everything else here reads.

    Parameters
    ----------
    *names
        Of data sets, as `scfusion fetch --list` gives them; `demo` is copied from the package.
    directory
        Where the files go. What is there already is not fetched again.

    Returns
    -------
    The files, in the order of the names. Beside each stands a JSON file with where it is from, its licence, whom to
    cite, and the SHA-256 of what the server gave.

    Raises
    ------
    ValueError
        If a name is unknown, something else has the name of the file, a server does not answer, or what it gives is not
        what was promised: run it again to go on where it broke off.

    Notes
    -----
    A checksum is compared where one was published, which the list says. The shape of the data is always compared.
    """
    known = {dataset.name: dataset for dataset in find_datasets([n for n in names if n != DEMO], read_manifest())}
    place = Path(directory)
    return [copy_demo(place) if n == DEMO else _fetch_one(known[n], place) for n in dict.fromkeys(names)]


def _fetch_one(dataset: RemoteDataset, directory: Path) -> Path:
    output, notes = directory / dataset.file_name, directory / f"{dataset.name}.json"
    if output.exists() and notes.exists():
        tell(f"{output} is there")
        return output
    parts = directory / f".{dataset.name}.parts"
    with Scratch(output, "directory") as scratch:
        parts.mkdir(exist_ok=True)
        files = {file.role: download(file, parts) for file in dataset.files}
        BUILDERS[dataset.kind](files, scratch.path)
        _check_shape(dataset, scratch.path)
        notes.write_text(json.dumps(_describe(dataset, files), indent=1))
        scratch.publish()
    shutil.rmtree(parts)
    tell(f"{output}: {dataset.title}. {dataset.licence}; cite {dataset.reference}")
    return output


def _describe(dataset: RemoteDataset, files: dict[str, Path]) -> dict:
    """Say where a data set is from, and what the server gave."""
    given = [
        {"url": file.url, "bytes": files[file.role].stat().st_size, "sha256": checksum(files[file.role])}
        for file in dataset.files
    ]
    known = ("name", "title", "licence", "reference", "counts", "batch_key", "donor_key")
    return {key: getattr(dataset, key) for key in known} | {"files": given, "checksums_published": dataset.is_checked}


def _check_shape(dataset: RemoteDataset, path: Path) -> None:
    """
    Compare what came with what a data set should hold, as the rest of this package reads it.

    Raises
    ------
    ValueError
        If cells, genes or proteins are others.
    """
    from scfusion_fm.data.files.readers import open_cells

    cells = open_cells(path)
    found = {
        "cells": len(cells.obs),
        "genes": 0 if cells.rna is None else len(cells.rna.var),
        "proteins": 0 if cells.adt is None else len(cells.adt.var),
    }
    wrong = {key: n for key, n in found.items() if getattr(dataset, key) not in (None, n)}
    if wrong:
        told = ", ".join(f"{n:,} {key} in place of {getattr(dataset, key):,}" for key, n in wrong.items())
        raise ValueError(
            f"`{dataset.name}` must be what it was, got {told}. The file on the server has changed; to fetch it "
            f"once more, remove the directory .{dataset.name}.parts first."
        )


def keep(files: dict[str, Path], output: Path) -> None:
    """Take a file as it is."""
    shutil.copyfile(files["cells"], output)


def unpack(files: dict[str, Path], output: Path) -> None:
    """
    Unpack a file that was packed by gzip.

    Raises
    ------
    ValueError
        If it is damaged.
    """
    with gzip.open(files["cells"]) as packed, output.open("wb") as plain:
        try:
            shutil.copyfileobj(packed, plain, 1 << 22)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            files["cells"].unlink()
            raise ValueError(
                f"`{files['cells'].name}` must be a whole gzip file, got {error}. Fetch it again."
            ) from error


def join_matrices(files: dict[str, Path], output: Path) -> None:
    """Put matrices in Matrix Market format together, with tables of features, barcodes and obs, as a MuData."""
    obs = pd.read_csv(files["obs"], index_col=0)
    rna, adt = (_read_matrix(files, modality) for modality in ("rna", "adt"))
    _join(rna, adt, obs, output)


def join_pair(files: dict[str, Path], output: Path) -> None:
    """Put an AnnData of RNA and one of proteins together: the cells that both hold."""
    import anndata

    rna, adt = (anndata.read_h5ad(files[modality]) for modality in ("rna", "adt"))
    _join(rna, adt, None, output)


def _read_matrix(files: dict[str, Path], modality: str) -> "anndata.AnnData":
    import anndata
    from scipy.io import mmread

    features, barcodes = (
        pd.read_csv(files[f"{modality}_{table}"], sep="\t", header=None, dtype=str)
        for table in ("features", "barcodes")
    )
    counts = mmread(files[f"{modality}_matrix"], spmatrix=False).T.tocsr().astype(np.float32)
    names = pd.Index(features[min(1, features.shape[1] - 1)].to_numpy(object))
    var = pd.DataFrame(index=anndata.utils.make_index_unique(names))
    if features.shape[1] > 1:  # as Cell Ranger writes it: id, name
        var["gene_ids"] = features[0].to_numpy(object)
    return anndata.AnnData(counts, obs=pd.DataFrame(index=pd.Index(barcodes[0].to_numpy(object))), var=var)


def _join(rna: "anndata.AnnData", adt: "anndata.AnnData", obs: pd.DataFrame | None, output: Path) -> None:
    """
    Write a MuData of the cells that both modalities, and the table of cells, hold.

    Raises
    ------
    ValueError
        If they have no cell in common.
    """
    import mudata

    from scfusion_fm.data.files.writers import writing

    shared = rna.obs_names.intersection(adt.obs_names)
    shared = shared if obs is None else shared.intersection(obs.index.astype(str))
    if not len(shared):
        raise ValueError("`files` must be of the same cells, got RNA and proteins without a common barcode.")
    if len(shared) < max(rna.n_obs, adt.n_obs):
        warn(f"{len(shared):,} cells are kept, which are in both: {rna.n_obs:,} have RNA, and {adt.n_obs:,} protein.")
    rna, adt = rna[shared].copy(), adt[shared].copy()
    if obs is not None:
        rna.obs = rna.obs.join(obs)
    with writing():
        mudata.MuData({"rna": rna, "adt": adt}).write_h5mu(output)


BUILDERS = {"10x_h5": keep, "h5ad_gz": unpack, "mtx": join_matrices, "h5ad_pair": join_pair}


def list_datasets(names: Sequence[str] = ()) -> str:
    """Tell what can be fetched: name, size, licence, and whether a checksum was published."""
    known = read_manifest()
    lines = []
    if not names or DEMO in names:
        lines = [f"{DEMO:<18} {TITLE}\n{'':<18} 1,262 cells, 4,020 genes, 46 proteins; licence {LICENCE}"]
    wanted = [name for name in names if name != DEMO]
    for dataset in known.values() if not names else find_datasets(wanted, known):
        sizes = ((dataset.cells, "cells"), (dataset.genes, "genes"), (dataset.proteins, "proteins"))
        shape = ", ".join(f"{n:,} {unit}" for n, unit in sizes if n)
        checked = "published" if dataset.is_checked else "none known"
        lines.append(
            f"{dataset.name:<18} {dataset.title}\n{'':<18} {shape}; licence {dataset.licence}; checksum {checked}"
        )
    return "\n".join(lines)
