"""Change the files of a model directory by hand, and make its checksums fit again."""

import hashlib
import json
import shutil
from pathlib import Path

from scfusion_fm.untrusted.checksums import SUMS


def copy_model(source: Path, target: Path) -> Path:
    """Copy a model directory, but for the code in it."""
    target.mkdir(parents=True)
    for file in source.iterdir():
        if file.suffix != ".py":
            shutil.copy(file, target)
    return seal(target)


def seal(directory: Path) -> Path:
    """Write checksums of what is there now."""
    files = sorted(p for p in directory.iterdir() if p.is_file() and p.name != SUMS)
    lines = (f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}\n" for p in files)
    (directory / SUMS).write_text("".join(lines))
    return directory


def change_json(path: Path, **fields) -> None:
    """Replace fields of a JSON file (`...` removes one), and seal its directory."""
    content = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))
    seal(path.parent)
