"""Write a model as a Hugging Face directory that loads with or without this package."""

import json
import shutil
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import safetensors.numpy
from transformers import PreTrainedModel

from scfusion_fm.data.fingerprints.seen import SEEN_CELLS, SeenCells
from scfusion_fm.data.scratch import Scratch
from scfusion_fm.inference.model_files import EXTRACTOR, ModelFiles, find_model, verify_model
from scfusion_fm.model import ScFusionTTTFeatureExtractor
from scfusion_fm.model.files_scfusion_ttt import (
    CALIBRATIONS,
    CONFIG,
    EXTRACTOR_CODE,
    MODEL_CODE,
    WEIGHTS,
    WEIGHTS_CHECKSUM,
    find_checksum,
    update_checksums,
    write_code,
)
from scfusion_fm.model.hub_scfusion_ttt import push_directory, write_card
from scfusion_fm.model.pretrained_scfusion_ttt import ScFusionTTTPreTrainedModel
from scfusion_fm.untrusted.checksums import SUMS, read_sums
from scfusion_fm.untrusted.text import show_text, show_value


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
        # As transformers does: what belonged to the model that this one was made of does not belong to it.
        super(ScFusionTTTPreTrainedModel, model).save_pretrained(path)
        extractor.save_pretrained(path)
        write_code(path, CONFIG, MODEL_CODE)
        if seen is not None:
            seen.save(path / SEEN_CELLS)
            facts = facts | {"cells seen in training": describe_seen(seen)}
        for name, content in (files or {}).items():
            (path / name).write_bytes(bind_to_weights(name, content, path) if name in CALIBRATIONS else content)
        (path / "README.md").write_text(model_card(model, extractor, facts))
        update_checksums(path, ["*"])
        for file in path.iterdir():  # weights are written for their owner alone, a model is not
            file.chmod(0o644)
        scratch.publish()


def push_to_hub(model: str | Path, repo_id: str, **options: Any) -> str:
    """
    Upload a model directory to the Hugging Face Hub, after all of its files were compared with its checksums.

    Files on the Hub that the directory does not have are removed, so that what is there is this directory.

    Parameters
    ----------
    model
        Directory that an export or `save_pretrained` wrote, or the name of a model that comes with the package: what
        is published is its directory, with the code of its classes beside it.
    repo_id
        Name on the Hub, such as `lab/blood`, which is made if need be.
    options
        `private`, `token`, `revision`, `create_pr`, `commit_message` and `commit_description`, as in transformers.

    Returns
    -------
    Address of the commit.

    Raises
    ------
    ValueError
        If the directory is no model, is damaged, has no checksums, or holds files that are not in their list; or if the
        Hub cannot be reached or does not let you write.
    """
    path = ModelFiles.open(find_model(model)).path
    verify_model(path)
    unknown = sorted({file.name for file in path.iterdir()} - {SUMS, *(read_sums(path) or {})})
    if unknown:
        raise ValueError(
            f"`model` must hold files that are in its {SUMS} alone, got {show_value(unknown)}. Remove them, or add "
            "them to the list if they are yours."
        )
    if not (path / WEIGHTS).is_file():
        raise ValueError(f"`model` must hold all weights in {WEIGHTS}, got none in {str(path)!r}. Export it again.")
    try:
        with TemporaryDirectory() as empty:
            complete = path if any(path.glob("*.py")) else add_code(path, Path(empty))
            return push_directory(complete, repo_id, ("*",), **({"commit_message": "Upload model directory"} | options))
    except Exception as error:  # of many kinds: no network, no token, no access
        if type(error) is ValueError:  # our own, of an option
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"`repo_id` must be a name on the Hugging Face Hub that you may write to, got {repo_id!r} ({reason}). "
            "`hf auth login` logs in."
        ) from error


def add_code(model: Path, output: Path) -> Path:
    """Copy a model directory that has no code to an empty one, with the code of its classes; its path."""
    shutil.copytree(model, output, dirs_exist_ok=True)
    write_code(output, CONFIG, MODEL_CODE)
    write_code(output, EXTRACTOR, EXTRACTOR_CODE)
    update_checksums(output, ["*"])
    return output


def describe_seen(seen: SeenCells) -> str:
    """Say in a line which cells a model has seen."""
    parts = ", ".join(f"{part.num_cells:,} in {part.name}" for part in seen.parts)
    return f"{parts}; `scfusion seen PATH FILE` tells whether yours are among them"


def bind_to_weights(name: str, content: bytes, directory: Path) -> bytes:
    """Add to a calibration of this name the checksum of the weights that it was made for."""
    checksum = find_checksum(directory / WEIGHTS)
    if name.endswith(".safetensors"):
        return safetensors.numpy.save(safetensors.numpy.load(content), {WEIGHTS_CHECKSUM: checksum})
    return json.dumps(json.loads(content) | {WEIGHTS_CHECKSUM: checksum}, allow_nan=False).encode() + b"\n"


def model_card(model: PreTrainedModel, extractor: ScFusionTTTFeatureExtractor, facts: dict[str, Any]) -> str:
    """Write the README of a model directory."""
    known = {
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        "vocabulary": f"{len(extractor.gene_ids):,} genes, {len(extractor.protein_names):,} proteins",
    }
    told = {_as_markdown(name): _as_markdown(value) for name, value in facts.items()}
    return write_card(type(model).__name__, known | told)


def _as_markdown(text: Any) -> str:
    """Keep names of files and labels from being read as lines or tags of their own."""
    return escape(show_text(text), quote=False)
