"""Atlases as tests write them: quietly, interrupted, and compared."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np

from scfusion_fm.config.prepare import PrepareConfig
from scfusion_fm.data.atlas.atlas import Atlas
from scfusion_fm.data.atlas.manifest import MANIFEST, format_manifest, read_manifest
from scfusion_fm.data.fingerprints.seen import remember_atlas
from scfusion_fm.data.inspect.summary import summarise_atlas
from scfusion_fm.data.prepare.job import AtlasJob, Report, prepare_atlas
from scfusion_fm.data.prepare.store import consolidate


def silent(line: str) -> None:
    """Report to nobody."""


def write_atlas(
    settings: PrepareConfig, output: Path | str, append: bool = False, report: Report = silent, **changes: Any
) -> dict:
    """Prepare an atlas there, with some settings changed."""
    return prepare_atlas(replace(settings, output=output, **changes), append, report=report)


def plan_atlas(settings: PrepareConfig, output: Path, append: bool = False, **changes: Any) -> AtlasJob:
    """Plan to prepare an atlas there."""
    job = AtlasJob(replace(settings, output=output, **changes), append, silent)
    job.plan()
    return job


def remove_column(path: Path, name: str) -> None:
    """Make an atlas one that was written without a column of obs."""
    manifest = read_manifest(path)
    shutil.rmtree(path / "obs" / name)
    consolidate(path)
    manifest["files"] = {file: of for file, of in manifest["files"].items() if not file.startswith(f"obs/{name}/")}
    (path / MANIFEST).write_text(format_manifest(manifest))


def read_everything(path):
    """Read all that our readers give of an atlas."""
    atlas = Atlas(path)
    cells = atlas.read(np.arange(len(atlas)))
    seen = remember_atlas(atlas).parts[0]
    return {
        "rna": cells.rna,
        "adt": cells.adt,
        "rna_measured": cells.rna_observed,
        "adt_measured": cells.adt_observed,
        "totals": cells.rna_total_counts,
        "dataset": np.asarray(atlas.dataset),
        "split": np.asarray(atlas.split),
        "seen": np.concatenate([seen.rna.bits, seen.adt.bits]),
        "fingerprint": atlas.fingerprint,
        "vocabulary": atlas.vocabulary.fingerprint(),
        "summary": json.dumps(summarise_atlas(path).to_dict() | {"path": ""}),
    }


def content(path: Path) -> dict:
    """Read all that an atlas holds."""
    adata = ad.read_zarr(path)
    return {
        "X": adata.X.toarray(),
        "adt": adata.obsm["adt"],
        "obs": adata.obs.to_csv(),
        "var": adata.var.to_csv(),
        "panels": adata.varm["rna_panel"],
        "adt_panel": adata.uns["adt"]["panel"],
    }


def same(left: dict, right: dict) -> bool:
    return all(np.array_equal(left[key], right[key]) for key in left)


def files(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


class Killed(BaseException):
    """Ends the process at a place that a test chooses."""


def kill_after(monkeypatch, module, name: str, number: int) -> None:
    """Let a function be called so often, and then end the process before it does anything."""
    function, calls = getattr(module, name), []

    def counted(*args, **kwargs):
        if len(calls) == number:
            raise Killed
        calls.append(1)
        return function(*args, **kwargs)

    monkeypatch.setattr(module, name, counted)
