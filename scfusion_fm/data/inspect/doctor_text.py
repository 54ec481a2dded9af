"""Tell the findings of the doctor in the terminal."""

from collections import Counter
from pathlib import Path
from textwrap import wrap

from scfusion_fm.data.inspect.doctor import Examination, FileReport, ModalityReport

WIDTH = 110
VERDICTS = {"ok": "ok", "warnings": "usable with warnings", "refused": "REFUSED"}
WAYS = {
    "id": "by Ensembl id",
    "versioned_id": "by Ensembl id with version, symbol or prefix",
    "symbol": "by symbol",
    "previous": "by an old symbol",
    "alias": "by an alias",
    "table": "by a known name",
    "normalised": "by another spelling",
    "gene_symbol": "by the gene's symbol",
    "isotype": "isotype controls, left out",
    "hashtag": "hashtags, left out",
    "unknown": "unknown, left out",
}


def render_examination(found: Examination) -> str:
    """Give a block of lines per file and a summary at the end."""
    counts = Counter(file.verdict for file in found.files)
    summary = ", ".join(f"{counts[verdict]} {text}" for verdict, text in VERDICTS.items() if counts[verdict])
    noun = "file" if len(found.files) == 1 else "files"
    return "\n\n".join([*map(render_file, found.files), f"{len(found.files)} {noun}: {summary}"])


def render_file(file: FileReport) -> str:
    """Give the lines of one file: verdict first, then what is in it, then warnings."""
    lines = [f"{Path(file.path).name}: {VERDICTS[file.verdict]}"]
    if file.refusal:
        lines += _render_item("x", file.refusal)
    cells = f", {file.num_cells:,} cells" if file.num_cells else ""
    empty = f", {file.num_empty:,} of them without counts" if file.num_empty else ""
    lines += _render_fact("file", f"{file.kind}{cells}{empty}")
    for modality in file.modalities:
        lines += _render_modality(modality)
    for slot in file.slots:
        where = f"{slot.modality} {slot.slot}".strip()
        lines += _render_fact("slot", f"{where}: {slot.content}")
    for role in ("labels", "groups"):
        columns = [c for c in file.columns if c.role == role]
        texts = [
            f"{c.name} ({c.num_classes:,}{f', {c.num_missing:,} cells without' if c.num_missing else ''})"
            for c in columns
        ]
        lines += _render_fact(role, ", ".join(texts)) if texts else []
    for warning in file.warnings:
        lines += _render_item("!", warning.removeprefix(f"{file.path}: ").removeprefix(f"{file.path}, "))
    return "\n".join(lines)


def _render_modality(found: ModalityReport) -> list[str]:
    noun = "genes" if found.name == "rna" else "antibodies"
    species = f", {found.species}" if found.species else ""
    lines = _render_fact(
        found.name.upper(),
        f"{found.num_features:,} {noun}{species}, {found.num_cells:,} cells with counts, median "
        f"{found.median_counts:,.0f}; counts from {found.slot}",
    )
    resolved = found.num_features - sum(found.matches.get(k, 0) for k in ("unknown", "isotype", "hashtag"))
    naming = f" named by {found.naming}" if found.naming else ""
    lines += _render_fact("names", f"{resolved:,} of {found.num_features:,} {noun}{naming} resolve")
    for kind, text in WAYS.items():
        if found.matches.get(kind):
            examples = found.examples.get(kind, [])
            more = ", ..." if examples and len(examples) < found.matches[kind] else ""
            shown = f": {', '.join(examples)}{more}" if examples else ""
            lines += _wrap(" " * 10, f"{found.matches[kind]:,} {text}{shown}", extra=2)
    if found.vocabulary_size:
        share = found.in_vocabulary / found.vocabulary_size
        counts = f", {found.count_share:.0%} of the counts"
        text = f"{found.in_vocabulary:,} of the {found.vocabulary_size:,} in the vocabulary ({share:.0%}){counts}"
        lines += _render_fact("panel", text)
    return lines


def _render_fact(name: str, text: str) -> list[str]:
    return _wrap(f"  {name:<8}", text)


def _render_item(mark: str, text: str) -> list[str]:
    return _wrap(f"{mark} ", text)


def _wrap(start: str, text: str, extra: int = 0) -> list[str]:
    """Break a line; the rest stands under its text, or `extra` columns further in."""
    rest = " " * (len(start) + extra)
    return wrap(text, WIDTH, initial_indent=start, subsequent_indent=rest, break_on_hyphens=False)
