"""Models on the Hugging Face Hub: the model card, and uploads."""

import os
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from .files_scfusion_ttt import CHECKSUMS

OPTIONS = ("commit_message", "commit_description", "private", "token", "revision", "create_pr")
_CARD = """---
library_name: transformers
license: apache-2.0
tags: [single-cell, CITE-seq, RNA, protein, test-time-training, scfusion_ttt]
---
# {name}

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
{facts}

## Limits
Input must be raw counts of human cells. What was not measured is treated as not measured, never as zero. Proteins
and cell types that were not in the training data cannot be predicted. Not for clinical use.
"""


def write_card(name: str, facts: dict[str, str]) -> str:
    """Write the README of a model directory: the name of the class, and facts by their name, in Markdown."""
    return _CARD.format(name=name, facts="\n".join(f"- {key}: {value}" for key, value in facts.items()))


def push_directory(
    directory: str | os.PathLike,
    repo_id: str,
    delete: tuple[str, ...] = (),
    spare: tuple[str, ...] = (),
    **options: Any,
) -> str:
    """
    Upload a directory to the Hub; checksums of other files that are there already stay in the list.

    Parameters
    ----------
    directory
        What was saved.
    repo_id
        Name on the Hub, which is made if need be.
    delete
        Patterns of files on the Hub that go if the directory has none of that name.
    spare
        Files that stay on the Hub as they are, if they are there.
    options
        `commit_message`, `commit_description`, `private`, `token`, `revision` and `create_pr`, as in transformers.

    Returns
    -------
    Address of the commit.

    Raises
    ------
    ValueError
        If there is no such option.
    """
    unknown = sorted(options.keys() - set(OPTIONS))
    if unknown:
        raise ValueError(f"`push_to_hub` has the options {list(OPTIONS)}, got {unknown}. Leave them out.")
    api, revision = HfApi(token=options.pop("token", None)), options.get("revision")
    repo_id = api.create_repo(repo_id, private=options.pop("private", None), exist_ok=True).repo_id
    if revision is not None and not revision.startswith("refs/pr"):
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    there = set(api.list_repo_files(repo_id, revision=revision))
    left_out = [name for name in spare if name in there]
    if CHECKSUMS in there:
        listed = Path(api.hf_hub_download(repo_id, CHECKSUMS, revision=revision)).read_text()
        gone = [*delete, *(file.name for file in Path(directory).iterdir() if file.name not in left_out)]
        _merge_checksums(Path(directory), listed, gone, left_out)
    options |= {"ignore_patterns": left_out, "delete_patterns": list(delete)}
    return str(api.upload_folder(repo_id=repo_id, folder_path=directory, **options))


def _merge_checksums(directory: Path, listed: str, gone: list[str], left_out: list[str]) -> None:
    """Add the lines of the list on the Hub whose files stay there."""
    path = directory / CHECKSUMS
    lines = {line[66:]: line for line in path.read_text().splitlines() if line[66:] not in left_out}
    stay = (line for line in listed.splitlines() if not any(fnmatch(line[66:], pattern) for pattern in gone))
    lines |= {line[66:]: line for line in stay}
    path.write_text("".join(f"{lines[name]}\n" for name in sorted(lines)))
