"""Files of results."""

import json
from pathlib import Path
from typing import Any

from anndata import AnnData
from mudata import MuData


def describe_provenance(container: AnnData | MuData) -> str:
    """Say in a line where a file is from, if it tells."""
    facts = container.uns.get("provenance", {})
    return "; ".join(f"{k}: {v}" for k, v in facts.items()) if isinstance(facts, dict) else str(facts)


def write_results(directory: Path, results: dict[str, Any]) -> None:
    """Write `results.json`."""
    (directory / "results.json").write_text(json.dumps(results, indent=1) + "\n")
