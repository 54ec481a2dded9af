"""Write a model as a Hugging Face directory that loads with or without this package."""

import json
import shutil
from html import escape
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

import scfusion_fm.model
from scfusion_fm.data.fingerprints.seen import SEEN_CELLS, SeenCells
from scfusion_fm.data.scratch import Scratch
from scfusion_fm.model import ScFusionTTTFeatureExtractor
from scfusion_fm.model.files_scfusion_ttt import update_checksums
from scfusion_fm.untrusted.text import show_text

NOT_SHIPPED = ("__init__.py", "ttt_reference.py")
_MODELING = "modeling_scfusion_ttt."
MODEL_AUTO_MAP = {
    "AutoConfig": "configuration_scfusion_ttt.ScFusionTTTConfig",
    "AutoModel": _MODELING + "ScFusionTTTModel",
    "AutoModelForPreTraining": _MODELING + "ScFusionTTTForPreTraining",
    "AutoModelForSequenceClassification": _MODELING + "ScFusionTTTForCellTypeAnnotation",
}
EXTRACTOR_AUTO_MAP = {"AutoFeatureExtractor": "feature_extraction_scfusion_ttt.ScFusionTTTFeatureExtractor"}


def export_model(
    model: PreTrainedModel,
    extractor: ScFusionTTTFeatureExtractor,
    output: Path,
    facts: dict[str, Any],
    seen: SeenCells | None = None,
    files: dict[str, bytes] | None = None,
) -> None:
    """
    Write weights, settings, vocabulary, normaliser, seen cells, code, model card and checksums; all of it or nothing.

    Parameters
    ----------
    model
        Any scFusionTTT model.
    extractor
        Its feature extractor.
    output
        New directory.
    facts
        What the model card tells under "Facts", by name.
    seen
        Fingerprints of the cells that the model was trained on; None where they are not known.
    files
        Content of further files by name, such as calibrations.

    Raises
    ------
    ValueError
        If `output` exists.
    """
    with Scratch(output) as scratch:
        path = scratch.path
        path.mkdir()
        model.save_pretrained(path)
        extractor.save_pretrained(path)
        _set_auto_map(path / "config.json", MODEL_AUTO_MAP)
        _set_auto_map(path / "preprocessor_config.json", EXTRACTOR_AUTO_MAP)
        for file in Path(scfusion_fm.model.__file__).parent.glob("*.py"):
            if file.name not in NOT_SHIPPED:
                shutil.copyfile(file, path / file.name)
        if seen is not None:
            seen.save(path / SEEN_CELLS)
            facts = facts | {"cells seen in training": describe_seen(seen)}
        else:
            (path / SEEN_CELLS).unlink(missing_ok=True)  # of the model that this one was made of
        for name, content in (files or {}).items():
            (path / name).write_bytes(content)
        (path / "README.md").write_text(model_card(model, extractor, facts))
        update_checksums(path, ["*"])
        for file in path.iterdir():  # weights are written for their owner alone, a model is not
            file.chmod(0o644)
        scratch.publish()


def describe_seen(seen: SeenCells) -> str:
    """Say in a line which cells a model has seen."""
    parts = ", ".join(f"{part.num_cells:,} in {part.name}" for part in seen.parts)
    return f"{parts}; `scfusion seen PATH FILE` tells whether yours are among them"


def model_card(model: PreTrainedModel, extractor: ScFusionTTTFeatureExtractor, facts: dict[str, Any]) -> str:
    """Write the README of a model directory."""
    lines = "\n".join(f"- {_as_markdown(name)}: {_as_markdown(value)}" for name, value in facts.items())
    return f"""---
library_name: transformers
license: apache-2.0
tags: [single-cell, CITE-seq, RNA, protein, test-time-training, scfusion_ttt]
---
# {type(model).__name__}

A scFusionTTT model (architecture after arXiv 2410.13257): Test-Time-Training encoders over genes and surface
proteins in genome order, fused to one embedding per cell.

## Use
```python
from transformers import AutoFeatureExtractor, AutoModel

extractor = AutoFeatureExtractor.from_pretrained(PATH, trust_remote_code=True)
model = AutoModel.from_pretrained(PATH, trust_remote_code=True)
# counts: a DataFrame with the raw counts of a cell in each row, and columns named by Ensembl id or symbol
inputs = extractor(rna_counts=counts)
embedding = model(**inputs).pooler_output
```
With the package `scfusion-fm`: `scfusion embed PATH IN.h5ad OUT.h5ad` reads files, finds genes and antibodies by
name, and keeps everything that is in the file.

## Facts
- parameters: {sum(p.numel() for p in model.parameters()):,}
- vocabulary: {len(extractor.gene_ids):,} genes, {len(extractor.protein_names):,} proteins
{lines}

## Limits
Input must be raw counts of human cells. What was not measured is treated as not measured, never as zero. Proteins
and cell types that were not in the training data cannot be predicted. Not for clinical use.
"""


def _as_markdown(text: Any) -> str:
    """Keep names of files and labels from being read as lines or tags of their own."""
    return escape(show_text(text), quote=False)


def _set_auto_map(path: Path, auto_map: dict[str, str]) -> None:
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"auto_map": auto_map}, indent=2) + "\n")
