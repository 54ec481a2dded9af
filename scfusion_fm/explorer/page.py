"""The page itself: cells and what shows them, in one file that loads nothing from anywhere."""

import json
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from scfusion_fm.data.files.readers import Given
from scfusion_fm.data.locations import check_suffix
from scfusion_fm.evaluation.report.run_files import replace_file
from scfusion_fm.evaluation.report.style import STYLE
from scfusion_fm.explorer.cells import MOST_CELLS, Proteins, ShownCells, collect_cells
from scfusion_fm.explorer.pack import encode, pack_labels, pack_numbers
from scfusion_fm.extras import explain_missing

MOST_VALUES = 80_000_000  # of proteins, a byte each before they are packed
KINDS = {"measured": "measured", "predicted": "predicted", "width": "width of the interval"}


def explore(
    given: Given,
    output: str | Path,
    *,
    basis: str = "X_scfusion_ttt",
    key: str = "protein_scfusion_ttt",
    max_cells: int = MOST_CELLS,
) -> Path:
    """
    Write a page to look at cells with in a browser: their UMAP by types, probabilities, surprise and proteins.

    Parameters
    ----------
    given
        AnnData, MuData or the path of a file, with what `sf.embed` wrote, and the other verbs as far as it is there.
    output
        The page, which ends in `.html`; one that is there is replaced.
    basis
        Embedding in obsm, of which a UMAP is computed where obsm has no `X_umap`.
    key
        Predicted proteins in obsm.
    max_cells
        Above it, a random sample is shown.

    Returns
    -------
    Path of the page. It is one file that needs no network; of a protein, 254 steps between its tails are kept.

    Raises
    ------
    ValueError
        If there is neither a layout nor an embedding, or umap-learn is missing and a UMAP is to be computed.
    """
    page = Path(output).expanduser()
    check_suffix(page, "output", ".html")
    if not page.parent.is_dir():
        raise ValueError(f"`output` must be in a directory that exists, got {str(page.parent)!r}. Make it first.")
    if not 4 <= max_cells <= 1_000_000:
        raise ValueError(f"`max_cells` must lie in [4, 1000000], got {max_cells}.")
    title = Path(given).name if isinstance(given, str | Path) else type(given).__name__
    with explain_missing():
        cells = collect_cells(given, basis=basis, key=key, most_cells=max_cells)
    replace_file(page, render(title, cells).encode())
    return page


def render(title: str, cells: ShownCells) -> str:
    """Fill the page in."""
    here = files("scfusion_fm.explorer")
    told, blobs = describe(title, cells)
    parts = {
        "TITLE": escape(title),
        "STYLE": STYLE + here.joinpath("page.css").read_text(),
        "CELLS": json.dumps(told).replace("<", "\\u003c"),
        "BLOBS": "\n".join(f'<script type="text/plain" id="{name}">{text}</script>' for name, text in blobs.items()),
        "PICTURE": here.joinpath("picture.js").read_text(),
        "SCRIPT": here.joinpath("page.js").read_text(),
    }
    text = here.joinpath("page.html").read_text()
    for name, content in parts.items():
        before, mark, after = text.partition(f"<!--{name}-->")
        assert mark, name
        text = before + content + after
    return text


def describe(title: str, cells: ShownCells) -> tuple[dict[str, Any], dict[str, str]]:
    """Give what the page knows of all fields, and the packed bytes of each by the id of its element."""
    blobs: dict[str, str] = {}

    def keep(packed: Mapping[str, Any], **more: Any) -> dict[str, Any]:
        blobs[f"b{len(blobs)}"] = packed["data"]
        return {name: value for name, value in packed.items() if name != "data"} | more | {"blob": f"b{len(blobs) - 1}"}

    fields = [keep(pack_labels(values), name=name, kind="label") for name, values in cells.labels.items()]
    fields += [keep(pack_numbers(values, True), name=name, kind="number") for name, values in cells.numbers.items()]
    notes = [*cells.notes]
    for kind, proteins in choose_proteins(cells, notes).items():
        fields += [
            keep(pack_numbers(proteins.values[:, i], False), name=name, kind=kind, note=proteins.notes.get(name, ""))
            for i, name in enumerate(proteins.names)
        ]
    x, y = (keep(pack_numbers(cells.positions[:, i], True)) for i in range(2))
    blobs["names"] = encode("\n".join(name.replace("\n", " ") for name in cells.names).encode())
    told = {"title": title, "n": len(cells.names), "layout": cells.layout, "x": x, "y": y, "fields": fields}
    return told | {"kinds": KINDS, "notes": notes}, blobs


def choose_proteins(cells: ShownCells, notes: list[str]) -> dict[str, Proteins]:
    """Keep as many proteins as the page may hold, those first that were measured, then those that vary most."""
    ranked = dict.fromkeys(cells.proteins["measured"].names) if "measured" in cells.proteins else {}
    if "predicted" in cells.proteins:
        predicted = cells.proteins["predicted"]
        spread = np.nan_to_num(np.nanstd(predicted.values[:10_000], axis=0))
        ranked |= dict.fromkeys(predicted.names[i] for i in np.argsort(-spread, kind="stable"))
    fit = MOST_VALUES // max(1, len(cells.names) * len(cells.proteins))
    kept = {*list(ranked)[:fit]}
    if len(ranked) > fit:
        notes.append(f"{fit} of {len(ranked)} proteins are in the page, measured and variable ones first.")
    chosen = {}
    for kind, proteins in cells.proteins.items():
        places = [i for i, name in enumerate(proteins.names) if name in kept]
        chosen[kind] = Proteins([proteins.names[i] for i in places], proteins.values[:, places], proteins.notes)
    return chosen
