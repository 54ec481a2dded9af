"""
Measure the tables of docs/benchmarks.md, keep them as JSON, and write them into the pages that quote them.

    python scripts/run_benchmarks.py gene_coverage        # measure this one; all without a name
    python scripts/run_benchmarks.py --render             # write the tables into the pages, and measure nothing

A page says where a table goes, and a test fails where it holds something else:

    <!-- table: gene_coverage -->
    <!-- end of table -->

What is measured stays in `benchmarks/results/NAME.json`, with the command, the commit and the kind of machine.
"""

import argparse
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scfusion_fm.cli.environment import describe_version

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
PLACE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end of table -->)", re.S)
BLOOD, TYPES = (f"scfusion_fm/shipped/scfusion-human-blood{end}" for end in ("", "-types"))
DEMO = "data/demo_teaseq_pbmc.h5mu"
Rows = list[dict[str, Any]]
Lines = Iterator[tuple[str, ...]]


@dataclass(frozen=True)
class Table:
    """
    A table that is measured.

    Attributes
    ----------
    command
        What measures it; `--json FILE` is added.
    draw
        Gives its lines, the head first, from the rows that were measured.
    """

    command: str
    draw: Callable[[Rows], Lines]


def draw_gene_coverage(rows: Rows) -> Lines:
    """Give a line for each part of the genes."""
    yield "genes kept", "counts kept", "embedding moved by", "cell type right among 10 neighbours"
    for row in rows:
        genes = "all" if row["genes"] == "all" else f"{row['share']:.0%}, {row['genes']}"
        yield genes, f"{row['counts']:.0%}", f"{row['moved']:.2f}", f"{row['right']:.2f}"


def draw_agreement(rows: Rows) -> Lines:
    """Give a line for each way in which a model may be called."""
    yield "compared", "cells with the same type", "embedding moved by"
    for row in rows:
        yield row["what"], f"{row['types']:.1%}", f"{row['moved']:.2%}" if "moved" in row else ""


def draw_ttt_layer(rows: Rows) -> Lines:
    """Give a line for each length, milliseconds and MiB of each layer."""
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    yield "tokens", *(f"{layer}, ms / MiB" for layer in layers)
    for tokens in sorted({row["tokens"] for row in rows}):
        found = {row["layer"]: row for row in rows if row["tokens"] == tokens}
        yield f"{tokens:,}", *(_show_cost(found[layer]) if layer in found else "" for layer in layers)


def _show_cost(row: dict[str, Any]) -> str:
    return f"{row['seconds'] * 1000:,.0f} / {row['peak_mib']:,.0f}"


TABLES = {
    "gene_coverage": Table(f"python benchmarks/gene_coverage.py {BLOOD} {DEMO}", draw_gene_coverage),
    "agreement": Table(f"python benchmarks/agreement.py {TYPES} {BLOOD} {DEMO}", draw_agreement),
    "ttt_layer": Table("python benchmarks/ttt_layer.py --lengths 400 2000 --repeats 5", draw_ttt_layer),
}


def measure(name: str) -> None:
    """Run the command of a table, and keep what it found."""
    command = TABLES[name].command
    with tempfile.TemporaryDirectory() as work:
        output = Path(work) / "rows.json"
        words = [sys.executable, *shlex.split(command)[1:], "--json", str(output)]
        subprocess.run(words, cwd=ROOT, check=True)
        rows = json.loads(output.read_text())["rows"]
    head = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(head, cwd=ROOT, capture_output=True, text=True, check=True)
    found = {
        "command": command,
        "commit": commit.stdout.strip(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": describe_machine(),
        "versions": describe_version(),
        "rows": rows,
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")


def describe_machine() -> str:
    """Say of what kind the machine is, without naming it."""
    import torch  # slow to load, and not needed to render

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    devices = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    processor = f"{cores} cores, {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
    return ", ".join([processor, *devices])


def render_table(name: str) -> str:
    """Give a table in Markdown, and below it how it was measured."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return f"Not measured yet: `python scripts/run_benchmarks.py {name}`.\n"
    found = json.loads(path.read_text())
    head, *rows = TABLES[name].draw(found["rows"])
    lines = [f"| {' | '.join(line)} |" for line in (head, ["---", *["---:"] * (len(head) - 1)], *rows)]
    told = f"`{found['command']}`, commit {found['commit']}, {found['date']}, {found['machine']}; {found['versions']}."
    return "\n".join([*lines, "", told, ""])


def render_page(text: str) -> str:
    """Put the tables that were measured where the places of a page are."""
    return PLACE.sub(lambda place: f"{place[1]}\n{render_table(place[2])}\n{place[3]}", text)


def main() -> None:
    """Measure what is named, and write it into the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(TABLES)}; all by default")
    parser.add_argument("--render", action="store_true", help="measure nothing")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(TABLES))
    if unknown:
        parser.error(f"`NAME` must be of {', '.join(TABLES)}, got {', '.join(unknown)}")
    for name in [] if arguments.render else arguments.names or TABLES:
        measure(name)
    for page in PAGES:
        text = page.read_text()
        if (rendered := render_page(text)) != text:
            page.write_text(rendered)
            print(f"wrote {page.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
