"""The models that come with the package: what each is for, its size and its licence. Nothing here needs torch."""

import re
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from scfusion_fm.inference.model_config import ConfigFile
from scfusion_fm.inference.model_files import ModelFiles, list_shipped
from scfusion_fm.untrusted.checksums import read_bounded

CARD, LARGEST_CARD = "README.md", 1 << 20
PRETRAINED = "embeddings of cells, and a start for fine-tuning"


@dataclass(frozen=True)
class ShippedModel:
    """
    A model that comes with the package.

    Attributes
    ----------
    name
        What every `model` takes.
    purpose
        What it is for.
    megabytes
        Size of its directory, in 10^6 bytes.
    licence
        Of its weights, as its card tells.
    """

    name: str
    purpose: str
    megabytes: float
    licence: str

    def __str__(self) -> str:
        return f"{self.name}  {self.megabytes:.1f} MB, {self.licence}: {self.purpose}"


class ShippedModels(list[ShippedModel]):
    """The models that come with the package; printed, a line each, and a table in a notebook."""

    def __str__(self) -> str:
        return "\n".join(map(str, self)) or "this copy of the package comes without models"

    def _repr_html_(self) -> str:
        cells = [(m.name, m.purpose, f"{m.megabytes:.1f} MB", m.licence) for m in self]
        rows = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in cells)
        return f"<table>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))


def list_models() -> ShippedModels:
    """
    Tell the models that come with the package.

    Returns
    -------
    A list, which prints a line for each; their names are what `model` takes everywhere.
    """
    return ShippedModels(_describe(name, path) for name, path in list_shipped().items())


def _describe(name: str, path: Path) -> ShippedModel:
    size = sum(file.stat().st_size for file in path.iterdir())
    licence = re.search(r"^license: (.+)$", read_bounded(path / CARD, LARGEST_CARD).decode(), re.M)
    purpose = _tell_purpose(ModelFiles.open(path).read_config())
    return ShippedModel(name, purpose, round(size / 1e6, 1), licence[1] if licence else "see its README.md")


def _tell_purpose(config: ConfigFile) -> str:
    if config.labels:
        return f"{len(config.labels)} cell types, and unknown: {', '.join(config.labels)}"
    if config.predicted_features:
        return f"{len(config.predicted_features)} proteins from RNA, with intervals"
    return PRETRAINED
