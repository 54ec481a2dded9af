"""Tell the summary of an atlas in the terminal."""

from collections.abc import Sequence

from scfusion_fm.data.inspect.summary import AtlasSummary

MAX_NAME_LENGTH = 24
MAX_OVERLAP_COLUMNS = 10


def render_summary(atlas: AtlasSummary) -> str:
    """Give the facts, a table of data sets, and tables of the genes and proteins that they share."""
    leaks = "not known (no fingerprints)" if atlas.leaked_test_cells is None else f"{atlas.leaked_test_cells:,}"
    facts = {
        "atlas": atlas.path,
        "cells": f"{atlas.cells:,} ({', '.join(f'{count:,} {name}' for name, count in atlas.splits.items())})",
        "vocabulary": f"{atlas.genes:,} genes, {atlas.proteins:,} proteins",
        "genes per cell": f"{atlas.nonzeros_per_cell:,.0f} with a count, on average",
        "size on disk": f"{atlas.size_bytes / 2**20:,.1f} MiB, {atlas.size_bytes / atlas.cells:,.0f} bytes per cell",
        "leaks": f"{leaks} test cells with the counts of a training or validation cell",
        "content": atlas.fingerprint[:16],
    }
    blocks = ["\n".join(f"{name:<16}{text}" for name, text in facts.items()), _render_datasets(atlas)]
    if 1 < len(atlas.datasets) <= MAX_OVERLAP_COLUMNS:
        blocks += [_render_overlap(atlas, "genes", atlas.shared_genes)]
        blocks += [_render_overlap(atlas, "proteins", atlas.shared_proteins)]
    elif len(atlas.datasets) > MAX_OVERLAP_COLUMNS:
        blocks.append("shared panels: too many data sets for a table; use --plot or --json")
    return "\n\n".join(blocks)


def render_columns(rows: Sequence[Sequence[str]]) -> str:
    """Align columns: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def shorten(name: str) -> str:
    """Cut a long name."""
    return name if len(name) <= MAX_NAME_LENGTH else name[: MAX_NAME_LENGTH - 1] + "…"


def _render_datasets(atlas: AtlasSummary) -> str:
    heading = ["data set", "cells", "with RNA", "with ADT", "genes", "proteins", "RNA counts", "ADT counts"]
    rows = [[*heading, "train", "val", "test", "licence"]]
    for found in atlas.datasets:
        numbers = [found.cells, found.cells_with_rna, found.cells_with_adt, found.genes, found.proteins]
        numbers += [found.median_rna_counts, found.median_adt_counts, *found.splits.values()]
        rows.append([shorten(found.name), *(f"{number:,.0f}" for number in numbers), shorten(found.licence)])
    return render_columns(rows) + "\ncounts are medians over cells that have some"


def _render_overlap(atlas: AtlasSummary, what: str, shared: list[list[int]]) -> str:
    names = [shorten(found.name) for found in atlas.datasets]
    numbers = [[f"{count:,}" if count else "-" for count in row] for row in shared]
    codes = [f"[{i}]" for i in range(1, len(names) + 1)]
    rows = [[f"shared {what}", *codes]]
    rows += [[f"{code} {name}", *row] for code, name, row in zip(codes, names, numbers, strict=True)]
    return render_columns(rows)
