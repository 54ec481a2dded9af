"""Tell the findings of the doctor in the terminal, and in a notebook."""

from __future__ import annotations

from collections import Counter
from html import escape
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, NamedTuple

from scfusion_fm.untrusted.text import show_text

if TYPE_CHECKING:
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


COLOURS = {"ok": "#009e73", "warnings": "#b07d00", "refused": "#c0392b"}
REFUSAL, WARNING, MORE = "x", "!", ""


class Fact(NamedTuple):
    """A line about a file: what it is about, REFUSAL, WARNING, or MORE about what stands before; and the text."""

    name: str
    text: str


def render_examination(found: Examination) -> str:
    """Give a block of lines per file and a summary at the end."""
    return "\n\n".join([*map(render_file, found.files), _summarise(found)])


def render_file(file: FileReport) -> str:
    """Give the lines of one file: verdict first, then what is in it, then warnings."""
    lines = [f"{Path(file.path).name}: {VERDICTS[file.verdict]}"]
    for name, text in list_facts(file):
        if name in (REFUSAL, WARNING):
            lines += _wrap(f"{name} ", text)
        else:
            lines += _wrap(f"  {name:<8}", text, extra=0 if name else 2)
    return "\n".join(lines)


def render_html(found: Examination) -> str:
    """Give the same for a notebook."""
    tables = []
    for file in found.files:
        verdict = f'<span style="color: {COLOURS[file.verdict]}">{escape(VERDICTS[file.verdict])}</span>'
        rows = "".join(_render_row(fact) for fact in list_facts(file))
        tables.append(f"<p><b>{_to_html(Path(file.path).name)}: {verdict}</b></p>\n<table>{rows}</table>")
    return "\n".join([*tables, f"<p>{_to_html(_summarise(found))}</p>"])


def _render_row(fact: Fact) -> str:
    kind = {REFUSAL: "refused", WARNING: "warnings"}.get(fact.name)
    name = {"refused": "refused", "warnings": "warning", None: fact.name}[kind]
    colour = f"; color: {COLOURS[kind]}" if kind else ""
    style = f'style="text-align: left; vertical-align: top{colour}"'
    return f"<tr><th {style}>{_to_html(name)}</th><td {style}>{_to_html(fact.text)}</td></tr>\n"


def _to_html(text: str) -> str:
    return escape(show_text(text))


def _summarise(found: Examination) -> str:
    counts = Counter(file.verdict for file in found.files)
    summary = ", ".join(f"{counts[verdict]} {text}" for verdict, text in VERDICTS.items() if counts[verdict])
    noun = "file" if len(found.files) == 1 else "files"
    return f"{len(found.files)} {noun}: {summary}"


def list_facts(file: FileReport) -> list[Fact]:
    """Say what is in a file, after why it is refused and before what it is warned of."""
    facts = [Fact(REFUSAL, file.refusal)] if file.refusal else []
    cells = f", {file.num_cells:,} cells" if file.num_cells else ""
    empty = f", {file.num_empty:,} of them without counts" if file.num_empty else ""
    facts.append(Fact("file", f"{file.kind}{cells}{empty}"))
    for modality in file.modalities:
        facts += _describe_modality(modality)
    for slot in file.slots:
        where = f"{slot.modality} {slot.slot}".strip()
        facts.append(Fact("slot", f"{where}: {slot.content}"))
    for role in ("labels", "groups"):
        columns = [c for c in file.columns if c.role == role]
        texts = [
            f"{c.name} ({c.num_classes:,}{f', {c.num_missing:,} cells without' if c.num_missing else ''})"
            for c in columns
        ]
        facts += [Fact(role, ", ".join(texts))] if texts else []
    for warning in file.warnings:
        facts.append(Fact(WARNING, warning.removeprefix(f"{file.path}: ").removeprefix(f"{file.path}, ")))
    return facts


def _describe_modality(found: ModalityReport) -> list[Fact]:
    noun = "genes" if found.name == "rna" else "antibodies"
    species = f", {found.species}" if found.species else ""
    text = (
        f"{found.num_features:,} {noun}{species}, {found.num_cells:,} cells with counts, median "
        f"{found.median_counts:,.0f}; counts from {found.slot}"
    )
    facts = [Fact(found.name.upper(), text)]
    resolved = found.num_features - sum(found.matches.get(k, 0) for k in ("unknown", "isotype", "hashtag"))
    naming = f" named by {found.naming}" if found.naming else ""
    facts.append(Fact("names", f"{resolved:,} of {found.num_features:,} {noun}{naming} resolve"))
    for kind, text in WAYS.items():
        if found.matches.get(kind):
            examples = found.examples.get(kind, [])
            more = ", ..." if examples and len(examples) < found.matches[kind] else ""
            shown = f": {', '.join(examples)}{more}" if examples else ""
            facts.append(Fact(MORE, f"{found.matches[kind]:,} {text}{shown}"))
    if found.vocabulary_size:
        share = found.in_vocabulary / found.vocabulary_size
        counts = f", {found.count_share:.0%} of the counts"
        text = f"{found.in_vocabulary:,} of the {found.vocabulary_size:,} in the vocabulary ({share:.0%}){counts}"
        facts.append(Fact("panel", text))
    return facts


def _wrap(start: str, text: str, extra: int = 0) -> list[str]:
    """Break a line; the rest stands under its text, or `extra` columns further in."""
    rest = " " * (len(start) + extra)
    return wrap(text, WIDTH, initial_indent=start, subsequent_indent=rest, break_on_hyphens=False)
